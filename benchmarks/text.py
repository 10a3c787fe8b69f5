"""Row 18: tokens per CPU-second of streamed text, over Hugging Face's streaming.

The text is the sources of the standard library and of what is installed, in documents of 4,000
characters and row groups of 500 of them in 16 parquet files; the tokenizer is a byte-level BPE of
16,000 tokens made of them. Each side streams, encodes and packs rows of 1,024 tokens, in a fresh
process of its own: `datasets/hub_text` in lanes through xrun's sampler and loader, `datasets` with
its two batched maps through torch's DataLoader, and nanoGPT's way, whose file somebody has prepared
before. The first quarter of the tokens is not counted: there each imports and begins. Then what one
of four processes reads of the files while it trains on its part of all of them, over a quarter of
their bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Row, main, median, spread

TARGET, READ = 2.0, 1.1
CONTEXT, BATCH, FILES, WORLD = 1024, 8, 16, 4


def measure(quick: bool) -> Iterator[Row]:
    rounds, tokens = (1, 400_000) if quick else (2, 8_000_000)
    with tempfile.TemporaryDirectory() as folder:
        size = prepare(Path(folder), documents(2_000 if quick else 40_000))
        sides = ("lanes", "hugging face", "prepared file")
        found: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in sides[:: 1 if number % 2 else -1]:
                found[side].append(in_a_process(folder, side, tokens))
        ratios = [a / b for a, b in zip(found["lanes"], found["hugging face"], strict=True)]
        read = in_a_process(folder, "read", 0) / (size / WORLD)
    yield Row(
        18,
        "tokens per CPU-second of streamed text, over Hugging Face's",
        median(ratios),
        TARGET,
        "higher",
        {f"{side}, M tokens per CPU-second": median(found[side]) / 1e6 for side in sides[1:]},
        spread(ratios),
        {
            "M tokens per CPU-second": median(found["lanes"]) / 1e6,
            f"bytes that one of {WORLD} processes reads, over its part": read,
        },
        read <= READ,
    )


def documents(most: int) -> list[str]:
    """What this Python can import, as text."""
    texts: list[str] = []
    for place in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(place).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            texts += [text[i : i + 4000] for i in range(0, len(text), 4000)]
            if len(texts) >= most:
                return texts[:most]
    return texts


def prepare(folder: Path, texts: list[str]) -> int:
    """Parquet files, a tokenizer, and nanoGPT's file; the bytes of the first."""
    import datasets
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(texts[:4000], 16_000, special_tokens=["<end>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<end>")  # noqa: S106  a token of text
    fast.save_pretrained(folder / "tokenizer")
    (folder / "data").mkdir()
    paths = [folder / "data" / f"train-{n:05d}-of-{FILES:05d}.parquet" for n in range(FILES)]
    for number, path in enumerate(paths):
        rows = datasets.Dataset.from_dict({"text": texts[number::FILES]})
        rows.to_parquet(path, batch_size=500)
    (folder / "small" / "data").mkdir(parents=True)
    shutil.copy(paths[0], folder / "small" / "data")
    few = [each.ids for each in made._tokenizer.encode_batch_fast(texts[:2000])]
    np.array(list(chain.from_iterable(few)), dtype=np.uint16).tofile(folder / "train.bin")
    return sum(path.stat().st_size for path in paths)


def in_a_process(folder: str, side: str, tokens: int) -> float:
    """What a side measures, in a process that has done nothing before."""
    command = [sys.executable, "-m", "benchmarks.text", "--side", folder, side, str(tokens)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environ, check=True)
    return float(json.loads(done.stdout))


def cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    return sum(os.times()[:4])


def per_cpu_second(batches: Iterator[Any], tokens: int) -> float:
    """Tokens over the CPU-seconds that they took, from the first quarter of them on."""
    began, first, seen = 0.0, 0, 0
    while seen < tokens:
        seen += next(batches).numel()
        if not first and seen >= tokens // 4:
            began, first = cpu_seconds(), seen
    return (seen - first) / (cpu_seconds() - began)


def lanes(folder: Path, tokenizer: str | None = "tokenizer", lanes: int = 1) -> Iterator[Any]:
    """Batches of xrun's first process of `lanes`."""
    from xrun.component import load_build
    from xrun.data.lanes import LaneSampler
    from xrun.data.loader import Loader

    split = load_build("datasets", "hub_text", Path.cwd())(
        name=str(folder / "data"),
        val_split=None,
        val_documents=0,
        tokenizer=str(folder / tokenizer) if tokenizer else None,
        context=CONTEXT,
        streaming=True,
        lanes=lanes,
    )["train"]
    sampler = LaneSampler(split, BATCH * lanes, BATCH, seed=0)
    for step in Loader(split, sampler.steps(0, sys.maxsize, 0, lanes), 0):
        for _, batch in step:
            yield batch["input_ids"]


def hugging_face(folder: Path) -> Iterator[Any]:
    """As its documentation packs texts for causal language modelling, streamed."""
    import datasets
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    end = [tokenizer.eos_token_id]

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}

    def pack(batch: dict[str, Any]) -> dict[str, Any]:
        ids = list(chain.from_iterable(each + end for each in batch["input_ids"]))
        whole = len(ids) // CONTEXT * CONTEXT
        return {"input_ids": [ids[i : i + CONTEXT] for i in range(0, whole, CONTEXT)]}

    rows = datasets.load_dataset(str(folder / "data"), split="train", streaming=True)
    rows = rows.map(encode, batched=True, remove_columns=["text"]).map(pack, batched=True)
    for batch in DataLoader(rows.with_format("torch"), batch_size=BATCH):
        yield batch["input_ids"]


def prepared_file(folder: Path) -> Iterator[Any]:
    """nanoGPT's `get_batch`: windows at random places of a file of tokens."""
    import torch

    while True:
        data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - CONTEXT, (BATCH,)).tolist()
        rows = [torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in places]
        yield torch.stack(rows)


def bytes_read(folder: Path) -> int:
    """Of the files, by the first of four processes while it trains on its part of all of them."""
    import datasets

    rows = datasets.load_dataset(str(folder / "data"), split="train", streaming=True)
    own = sum(len(row["text"].encode()) + 1 for row in rows) // WORLD
    next(lanes(folder / "small", tokenizer=None))  # what is imported is read here
    before, seen = _read(), 0
    batches = lanes(folder, tokenizer=None, lanes=WORLD)
    while seen < own * 0.98:  # what it has read ahead is the rest
        seen += next(batches).numel()
    return _read() - before


def _read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


SIDES: dict[str, Callable[[Path], Iterator[Any]]] = {
    "lanes": lanes,
    "hugging face": hugging_face,
    "prepared file": prepared_file,
}


if __name__ == "__main__":
    if sys.argv[1:2] != ["--side"]:
        main(measure)
    else:
        where, what, wanted = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
        number = bytes_read(where) if what == "read" else per_cpu_second(SIDES[what](where), wanted)
        print(json.dumps(number), flush=True)
        os._exit(0)  # threads still read ahead
