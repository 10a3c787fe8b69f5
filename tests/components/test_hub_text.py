"""What datasets/hub_text.py promises, on documents that are written here."""

from __future__ import annotations

import itertools
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from support.components import build, documents, finish, real_bytes, same
from xrun.errors import ComponentError


def test_packed_documents_lose_no_byte(texts: Path) -> None:
    """Blocks of a map-style split hold every byte of every document, with a 0 after each."""
    train = build("datasets", "hub_text", name=str(texts), val_split=None, context=32)["train"]
    items = train.__getitems__(list(range(len(train))))
    joined = b"".join(text.encode() + b"\0" for shard in range(2) for text in documents(shard))
    assert real_bytes(items) == joined
    assert len(train) == math.ceil(len(joined) / 32)
    assert same(train[3], items[3])


def test_unpacked_documents_are_cut_or_filled_up(texts: Path) -> None:
    """Without packing item i is the start of document i, and what fills it up has no label; held
    and streamed alike."""
    args = {"name": str(texts), "val_split": None, "context": 32, "packing": False}
    held = list(build("datasets", "hub_text", **args)["train"])
    stream = build("datasets", "hub_text", **args, streaming=True, val_documents=0)["train"]
    assert same(held, [stream.transform(example) for i in range(2) for example in stream.shard(i)])
    assert [real_bytes([item]) for item in held] == [
        (t.encode() + b"\0")[:32] for shard in range(2) for t in documents(shard)
    ]


def test_a_streamed_shard_is_packed_without_loss(texts: Path) -> None:
    """Blocks of a shard hold every byte of its documents once, in order."""
    stream = build(
        "datasets",
        "hub_text",
        name=str(texts),
        val_split=None,
        context=32,
        streaming=True,
        val_documents=0,
    )["train"]
    for shard in range(stream.num_shards):
        items = [stream.transform(example) for example in stream.shard(shard)]
        assert real_bytes(items) == b"".join(text.encode() + b"\0" for text in documents(shard))


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_packed_shard_resumes_after_any_block(texts: Path, held_out: int) -> None:
    """From the state after each block, through JSON, exactly the rest comes: within documents,
    between them and at the end."""
    args = {
        "name": str(texts),
        "val_split": None,
        "context": 32,
        "streaming": True,
        "val_documents": held_out,
    }
    stream = build("datasets", "hub_text", **args)["train"]
    whole, states, shard = [], [], stream.shard(0)
    states.append(json.dumps(shard.state_dict()))
    for example in shard:
        whole.append(example)
        states.append(json.dumps(shard.state_dict()))
    assert len(whole) > 20
    for taken, state in enumerate(states):
        resumed = stream.shard(0)
        resumed.load_state_dict(json.loads(state))
        assert finish(resumed) == whole[taken:]


def test_a_packed_shard_resumes_twice(texts: Path) -> None:
    """A state that was taken after resuming is as good as the first."""
    stream = build(
        "datasets",
        "hub_text",
        name=str(texts),
        val_split=None,
        context=16,
        streaming=True,
        val_documents=0,
    )["train"]
    whole, seen = finish(stream.shard(1)), list[Any]()
    state = json.dumps(stream.shard(1).state_dict())
    for _ in range(math.ceil(len(whole) / 7)):
        shard = stream.shard(1)
        shard.load_state_dict(json.loads(state))
        iterator = iter(shard)
        seen += itertools.islice(iterator, 7)
        state = json.dumps(shard.state_dict())
        finish(iterator)
    assert seen == whole


def test_the_state_of_a_packed_shard_stays_small(tmp_path: Path) -> None:
    """A document of a hundred thousand bytes leaves no more than a block in the state."""
    (tmp_path / "long").mkdir()
    datasets.Dataset.from_dict({"text": ["x" * 100_000, "y"]}).to_parquet(
        tmp_path / "long" / "train-00000-of-00001.parquet"
    )
    args = {
        "name": str(tmp_path / "long"),
        "val_split": None,
        "context": 64,
        "streaming": True,
        "val_documents": 0,
    }
    shard = build("datasets", "hub_text", **args)["train"].shard(0)
    assert max(len(json.dumps(shard.state_dict())) for _ in shard) < 2000


def test_held_out_documents_are_not_trained_on(texts: Path) -> None:
    """Without a validation split the first documents go to `val` and all others to `train`."""
    splits = build(
        "datasets",
        "hub_text",
        name=str(texts),
        val_split=None,
        context=32,
        streaming=True,
        val_documents=3,
    )
    trained = [splits["train"].transform(example) for example in splits["train"].shard(0)]
    assert real_bytes(list(splits["val"])) == b"".join(
        text.encode() + b"\0" for text in documents(0)[:3]
    )
    assert real_bytes(trained) == b"".join(text.encode() + b"\0" for text in documents(0)[3:])


def test_text_goes_through_a_tokenizer(texts: Path, tmp_path: Path) -> None:
    """With a tokenizer, here of a local folder, blocks hold its tokens, and its end-of-sequence
    token ends each document."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<eos>": 0, "<unk>": 1, "spot": 2, "run": 3}, "<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    fast.save_pretrained(tmp_path / "words")
    args = {
        "name": str(texts),
        "val_split": None,
        "tokenizer": str(tmp_path / "words"),
        "context": 8,
    }
    split = build("datasets", "hub_text", **args)["train"]
    assert split.tokenizer.eos_token == "<eos>", "it goes with the model"
    assert build("datasets", "hub_text", **args | {"tokenizer": None})["train"].tokenizer is None
    tokens = torch.cat([item["labels"] for item in split])
    counted = [int((tokens == number).sum()) for number in (0, 2, 3)]
    text = " ".join(text for shard in range(2) for text in documents(shard))
    assert counted == [40, text.count("spot"), text.count("run")]


def test_a_stream_of_json_lines_is_read(tmp_path: Path) -> None:
    """Where the columns are known only after reading, a stream works as well."""
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in documents(0))
    )
    args = {
        "name": str(tmp_path),
        "val_split": None,
        "context": 32,
        "streaming": True,
        "val_documents": 2,
    }
    splits = build("datasets", "hub_text", **args)
    items = [*splits["val"], *map(splits["train"].transform, splits["train"].shard(0))]
    assert real_bytes(items) == b"".join(text.encode() + b"\0" for text in documents(0))


def test_hub_text_names_the_columns_there_are(texts: Path) -> None:
    """A column that does not exist is an error that lists those that do."""
    with pytest.raises(ComponentError, match=r"no column body.*text"):
        build("datasets", "hub_text", name=str(texts), val_split=None, text_column="body")


def test_processes_of_a_machine_tokenise_once(texts: Path, monkeypatch: Any) -> None:
    """Two that begin at the same time: the second finds on the disk what the first has made, and so
    does the next run."""
    arguments = {"name": str(texts), "val_split": None, "context": 16}
    build("datasets", "hub_text", **arguments, val_documents=1)  # loads the component
    hub_text = sys.modules["xrun.components.datasets.hub_text"]
    pack, packed = hub_text.pack, texts.parent / "packed"  # a list would be hashed with its content

    def counted(batch: Any, **how: Any) -> Any:
        with packed.open("a") as file:
            file.write("1" * len(batch["text"]))
        return pack(batch, **how)

    monkeypatch.setattr(hub_text, "pack", counted)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: build("datasets", "hub_text", **arguments), range(2)))
    assert packed.stat().st_size == len(documents(0)) + len(documents(1))
    again = build("datasets", "hub_text", **arguments)["train"]
    assert same(list(both[0]["train"]), list(again))
    assert packed.stat().st_size == len(documents(0)) + len(documents(1))
