"""What datasets/hub_text.py promises of a stream in lanes, on documents that are written here."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from support.components import build, documents, finish, real_bytes, same
from xrun.errors import ComponentError

ARGS = {"val_split": None, "context": 32, "streaming": True, "val_documents": 0, "lanes": 1}

GROUPS = {"lanes": 2, "packing": False, "val_documents": 5, "context": 4096}
TEXTS = [f"document {i} {random.Random(i).randbytes(2000).hex()}" for i in range(400)]


def in_lanes(folder: Path, **args: Any) -> Any:
    return build("datasets", "hub_text", **ARGS | {"name": str(folder)} | args)


@pytest.fixture
def few_together(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven documents are encoded at once."""
    in_lanes(texts)
    monkeypatch.setattr(sys.modules["xrun.components.datasets.hub_text"], "TOGETHER", 7)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A folder with a tokenizer of 300 tokens, which cuts and fills up where nobody forbids it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.train_from_iterator(
        documents(0), trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"])
    )
    made.enable_truncation(8)
    made.enable_padding(length=8)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    fast.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two files of ten row groups, with a column that nobody asks for."""
    (tmp_path / "large").mkdir()
    for number in range(2):
        texts = TEXTS[number * 200 : number * 200 + 200]
        rows = datasets.Dataset.from_dict({"text": texts, "url": texts})
        file = tmp_path / "large" / f"train-{number:05d}-of-00002.parquet"
        rows.to_parquet(file, batch_size=20)
    return tmp_path / "large"


def text_of(train: Any, example: Any) -> str:
    return real_bytes([train.transform(example)])[:-1].decode()


def characters_read() -> int:
    """By this thread, of files and all else."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def real_tokens(items: list[dict[str, Tensor]]) -> Tensor:
    """Those that have a label, in order."""
    return torch.cat([item["input_ids"][item["labels"] != -100] for item in items])


def test_a_lane_loses_no_byte(texts: Path, few_together: None) -> None:
    """Blocks hold every byte of a shard's documents in order; what is encoded together ends in a
    block that is filled up."""
    train = in_lanes(texts)["train"]
    assert train.num_shards == 2
    for number in range(2):
        items = [train.transform(example) for example in train.shard(number)]
        assert real_bytes(items) == b"".join(t.encode() + b"\0" for t in documents(number))
        part = len(b"".join(t.encode() + b"\0" for t in documents(number)[:7]))
        assert real_bytes(items[: -(-part // 32)])[part:] == b""


@pytest.mark.parametrize("packing", [True, False])
def test_its_tokens_are_those_of_a_held_split(texts: Path, tokenizer: str, packing: bool) -> None:
    """Whatever the tokenizer's file says of cutting and filling up."""
    args = {"packing": packing, "tokenizer": tokenizer}
    train = in_lanes(texts, **args)["train"]
    held = list(in_lanes(texts, **args, streaming=False, lanes=None)["train"])
    streamed = [train.transform(example) for i in range(2) for example in train.shard(i)]
    assert torch.equal(real_tokens(streamed), real_tokens(held))
    assert packing or same(streamed, held)


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_lane_resumes_after_any_block(texts: Path, few_together: None, held_out: int) -> None:
    """From the state after each block, through JSON, exactly the rest comes, and it is small."""
    train = in_lanes(texts, val_documents=held_out)["train"]
    whole, states, shard = [], [], train.shard(0)
    states.append(json.dumps(shard.state_dict()))
    for example in shard:
        whole.append(train.transform(example))
        states.append(json.dumps(shard.state_dict()))
    assert len(whole) > 20
    assert max(map(len, states)) < 1000
    for taken, state in enumerate(states):
        resumed = train.shard(0)
        resumed.load_state_dict(json.loads(state))
        rest = [train.transform(example) for example in finish(resumed)]
        assert same(rest, whole[taken:])


def test_few_large_files_become_shards_of_row_groups(large: Path) -> None:
    """Each row group is in one shard, in order; the held-out documents are in none, and resuming
    works, from where `datasets` itself was too, as older runs have saved it."""
    splits = in_lanes(large, **GROUPS)
    train = splits["train"]
    rows = datasets.load_dataset(str(large), split="train", streaming=True)
    rows = rows.select_columns(["text"]).reshard()
    assert train.num_shards == 16
    found = []
    for number in range(train.num_shards):
        shard, read = train.shard(number), 0
        older = rows.shard(num_shards=16, index=number, contiguous=True)
        older = older.skip(5) if number == 0 else older
        states, older_states = [], [older.state_dict()]
        for example in shard:
            states.append(shard.state_dict())
            found.append(text_of(train, example))
            read += 1
        older_states += [older.state_dict() for _ in older]
        assert len(older_states) == read + 1
        for taken in (4, read - 1) if number in (0, 9) else ():
            for state in (states[taken - 1], {"documents": older_states[taken], "taken": 0}):
                resumed = train.shard(number)
                resumed.load_state_dict(json.loads(json.dumps(state)))
                rest = [text_of(train, example) for example in resumed]
                assert rest == found[len(found) - read + taken :]
    assert found == TEXTS[5:]
    assert [real_bytes([each])[:-1].decode() for each in splits["val"]] == TEXTS[:5]


def test_a_lane_reads_its_own_row_groups_and_nothing_twice(large: Path) -> None:
    """Of each file once what it says of itself, and then one column of the shard's row groups."""
    train = in_lanes(large, **GROUPS | {"val_documents": 0})["train"]
    files = [pq.read_metadata(path) for path in sorted(large.iterdir())]
    column = sum(
        file.row_group(number).column(0).total_compressed_size
        for file in files
        for number in range(file.num_row_groups)
    )
    before = characters_read()
    for number in range(train.num_shards):
        for _ in train.shard(number):
            pass
    assert column <= characters_read() - before < 1.15 * column  # a buffer of 8 KB


def test_a_file_that_was_cut_off_is_named(large: Path) -> None:
    path = sorted(large.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ComponentError, match=f"{path} is no whole parquet file"):
        in_lanes(large, **GROUPS)


def test_lanes_are_of_a_stream(texts: Path) -> None:
    with pytest.raises(ComponentError, match="lanes are of a stream"):
        in_lanes(texts, streaming=False)
