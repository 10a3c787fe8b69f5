"""Language modelling on text from Hugging Face datasets: on the Hub or in a local folder, held or streamed.

Documents become tokens of a tokenizer, or their UTF-8 bytes, each followed by a separator, and are packed into blocks of
`context` tokens. No token is dropped: where documents run out (after every 1,000 held ones, or at a shard's end) the block is
filled up with the separator, where labels are -100. Nothing remote is executed: `datasets` runs no loading scripts.

In `lanes` a stream is read by each process only as far as it trains on it, and documents are encoded many at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.utils.file_utils import xopen
from torch import Tensor

from xrun.errors import ComponentError

IGNORED = -100
TOGETHER, CHARACTERS = 1000, 4 << 20
"""Documents that are encoded at once in a lane: so many, or fewer that are long."""
LANE_BLOCK, SHARDS = 256, 8
"""Of a lane: rows that are shuffled, and the shards that it is to have where files can be cut into row groups."""
Example = dict[str, Any]
Batch = dict[str, list[Any]]
Tokens = npt.NDArray[np.int32]
Group = tuple[str, int]
"""A parquet file and the number of a row group in it."""


class Encoder:
    """Text -> token numbers with the separator at the end; without a tokenizer the bytes, separated by a byte 0."""

    def __init__(self, name: str | None, revision: str | None) -> None:
        self.tokenizer = None
        self.separator = 0
        if name is not None:
            import transformers  # half a second that bytes do not need

            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
            self.separator = self.tokenizer.eos_token_id
        if self.separator is None:
            raise ComponentError(f"datasets/hub_text: the tokenizer {name} has no end-of-sequence token to end documents with.")

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        if self.tokenizer is None:
            return [[*text.encode(), self.separator] for text in texts]
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [[*tokens, self.separator] for tokens in encoded]

    def arrays(self, texts: Sequence[str]) -> list[Tokens]:
        """The same as arrays, int32 (tokens,). A fast tokenizer takes less than half the time where nobody asks for offsets."""
        if self.tokenizer is None:
            return [np.frombuffer(text.encode() + b"\0", np.uint8).astype(np.int32) for text in texts]
        if not self.tokenizer.is_fast:
            return [np.array(tokens, np.int32) for tokens in self(texts)]
        fast = self.tokenizer.backend_tokenizer
        fast.no_truncation()
        fast.no_padding()
        encoded = fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*each.ids, self.separator], np.int32) for each in encoded]


def block(tokens: Sequence[int], context: int, separator: int) -> Example:
    """`tokens`, at most `context` of them, filled up; `real` says how many there were."""
    return {"input_ids": [*tokens, *[separator] * (context - len(tokens))], "real": len(tokens)}


def to_item(example: Example) -> dict[str, Tensor]:
    """`input_ids` and `labels`, int64 (context,); labels are the inputs, not shifted, and -100 where filled up."""
    inputs = torch.as_tensor(example["input_ids"], dtype=torch.int64)
    labels = inputs.clone()
    labels[example["real"] :] = IGNORED
    return {"input_ids": inputs, "labels": labels}


def pack(batch: Batch, text_column: str, encoder: Encoder, context: int) -> Batch:
    """Documents -> blocks, for `datasets.map`, which keeps the result on disk by the hash of all of this."""
    tokens = list(chain.from_iterable(encoder(batch[text_column])))
    return columns([block(tokens[i : i + context], context, encoder.separator) for i in range(0, len(tokens), context)])


def cut(batch: Batch, text_column: str, encoder: Encoder, context: int) -> Batch:
    """Each document on its own, cut at `context` tokens."""
    return columns([block(tokens[:context], context, encoder.separator) for tokens in encoder(batch[text_column])])


def columns(blocks: list[Example]) -> Batch:
    return {"input_ids": [b["input_ids"] for b in blocks], "real": [b["real"] for b in blocks]}


class Blocks:
    """Map-style: `rows` have `input_ids` and `real`."""

    def __init__(self, rows: Any, revision: str, tokenizer: Any) -> None:
        self.rows, self.revision, self.tokenizer = rows, revision, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return to_item(self.rows[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        return [to_item(row) for row in self.rows.__getitems__([int(index) for index in indices])]


class PackedShard:
    """One shard's blocks. Resumes by JSON: the documents' position, the tokens carried over, the blocks already taken.

    `load_state_dict` goes back to before the last document that gave a block and encodes that one again, so the state is at most
    `context` tokens however long documents are.
    """

    def __init__(self, documents: datasets.IterableDataset, text_column: str, encoder: Encoder, context: int) -> None:
        self.documents, self.text_column, self.encoder, self.context = documents, text_column, encoder, context
        self.state: Example = {"documents": documents.state_dict(), "carry": [], "taken": 0}

    def state_dict(self) -> Example:
        return {**self.state, "carry": list(self.state["carry"])}

    def load_state_dict(self, state: Example) -> None:
        self.documents.load_state_dict(state["documents"])
        self.state = {**state, "carry": list(state["carry"])}

    def __iter__(self) -> Iterator[Example]:
        carry, skip = self.state["carry"], self.state["taken"]
        before = self.state["documents"]
        for document in self.documents:
            tokens = carry + self.encoder([document[self.text_column]])[0]
            full = len(tokens) // self.context
            for i in range(skip, full):
                self.state = {"documents": before, "carry": carry, "taken": i + 1}
                yield block(tokens[i * self.context : (i + 1) * self.context], self.context, self.encoder.separator)
            carry, skip = tokens[full * self.context :], 0
            before = self.documents.state_dict()
        if carry:
            self.state = {"documents": before, "carry": [], "taken": 0}
            yield block(carry, self.context, self.encoder.separator)


class TextStream:
    """Streaming: one shard per file. Packed in the shard's iterator; unpacked documents are encoded in the workers instead."""

    def __init__(
        self, rows: datasets.IterableDataset, text_column: str, encoder: Encoder, context: int, packing: bool, held_out: int,
        tag: str,
    ) -> None:  # fmt: skip
        self.rows, self.text_column, self.encoder, self.context = rows, text_column, encoder, context
        self.packing, self.held_out, self.revision, self.tokenizer = packing, held_out, tag, encoder.tokenizer
        self.num_shards: int = rows.num_shards

    def documents(self, index: int) -> datasets.IterableDataset:
        return self.rows.shard(num_shards=self.num_shards, index=index)

    def shard(self, index: int) -> Any:
        rows = self.documents(index)
        if index == 0 and self.held_out:
            rows = rows.skip(self.held_out)
        return PackedShard(rows, self.text_column, self.encoder, self.context) if self.packing else rows

    def transform(self, example: Example) -> dict[str, Tensor]:
        if not self.packing:
            tokens = self.encoder([example[self.text_column]])[0]
            example = block(tokens[: self.context], self.context, self.encoder.separator)
        return to_item(example)


class EncodedShard:
    """One shard's blocks, of documents that are encoded together; the last block of these is filled up. Resumes by JSON: where
    these documents begin and the blocks already taken of them."""

    def __init__(self, documents: Any, text_column: str, encoder: Encoder, context: int, packing: bool) -> None:
        self.documents, self.text_column, self.encoder = documents, text_column, encoder
        self.context, self.packing = context, packing
        self.state: Example = {"documents": documents.state_dict(), "taken": 0}

    def state_dict(self) -> Example:
        return dict(self.state)

    def load_state_dict(self, state: Example) -> None:
        self.documents.load_state_dict(state["documents"])
        self.state = dict(state)

    def __iter__(self) -> Iterator[Example]:
        begin, skip = self.state["documents"], self.state["taken"]
        documents = iter(self.documents)
        while texts := self._together(documents):
            blocks = self._blocks(self.encoder.arrays(texts))
            for number in range(skip, len(blocks)):
                self.state = {"documents": begin, "taken": number + 1}
                yield blocks[number]
            begin, skip = self.documents.state_dict(), 0

    def _together(self, documents: Iterator[Example]) -> list[str]:
        texts: list[str] = []
        length = 0
        while len(texts) < TOGETHER and length < CHARACTERS and (document := next(documents, None)) is not None:
            texts.append(document[self.text_column])
            length += len(texts[-1])
        return texts

    def _blocks(self, encoded: list[Tokens]) -> list[Example]:
        if not self.packing:
            return [self._block(tokens[: self.context]) for tokens in encoded]
        tokens = np.concatenate(encoded)
        return [self._block(tokens[i : i + self.context]) for i in range(0, len(tokens), self.context)]

    def _block(self, tokens: Tokens) -> Example:
        inputs = np.full(self.context, self.encoder.separator, np.int32)
        inputs[: len(tokens)] = tokens
        return {"input_ids": inputs, "real": len(tokens)}


class Contents(dict[str, pq.FileMetaData]):
    """Of parquet files, what each says of itself at its end, read once and not a byte more of the file.

    Raises:
        ComponentError: a file has no such end.
    """

    def __missing__(self, path: str) -> pq.FileMetaData:
        with xopen(path, "rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - 8))
            end = file.read(8)
            size = int.from_bytes(end[:4], "little")
            if end[4:] != b"PAR1" or size + 12 > length:
                raise ComponentError(f"datasets/hub_text: {path} is no whole parquet file.", "Fetch it again, or leave it out.")
            file.seek(length - 8 - size)
            self[path] = pq.read_metadata(pa.BufferReader(b"PAR1" + file.read(size + 8)))
        return self[path]

    def __reduce__(self) -> Any:
        return Contents, ()  # a worker reads no files

    def groups(self, path: str) -> list[Group]:
        return [(path, number) for number in range(self[path].num_row_groups)]


class ParquetDocuments:
    """Documents of some row groups, in order: this one column, each file opened once for those that follow each other in it.
    Resumes by JSON. Older runs have saved where `datasets` itself was, which then reads the rest of the shard."""

    def __init__(self, groups: list[Group], text_column: str, contents: Contents, streamed: Callable[[], Any]) -> None:
        self.groups, self.text_column, self.contents, self.streamed = groups, text_column, contents, streamed
        self.older: Any = None
        self.skipped = 0
        self.state = {"group": 0, "row": 0}

    def skip(self, count: int) -> ParquetDocuments:
        """The same without the first documents."""
        group, self.skipped = 0, count
        while group < len(self.groups) and count >= (rows := self._rows(group)):
            group, count = group + 1, count - rows
        self.state = {"group": group, "row": count}
        return self

    def state_dict(self) -> Example:
        return self.older.state_dict() if self.older is not None else dict(self.state)

    def load_state_dict(self, state: Example) -> None:
        if "group" in state:
            self.state = dict(state)
        else:
            self.older = self.streamed().skip(self.skipped) if self.skipped else self.streamed()
            self.older.load_state_dict(state)

    def __iter__(self) -> Iterator[Example]:
        if self.older is not None:
            yield from self.older
            return
        for path, groups in groupby(self.groups[self.state["group"] :], key=itemgetter(0)):
            # With a buffer of its own a thread of Arrow's would call Python, and outlive it.
            alone = {"pre_buffer": False, "metadata": self.contents[path]}
            with xopen(path, "rb") as opened, pq.ParquetFile(opened, **alone) as file:
                for _, number in groups:
                    yield from self._group(file, number)

    def _group(self, file: pq.ParquetFile, number: int) -> Iterator[Example]:
        skip = self.state["row"]
        for batch in file.iter_batches(TOGETHER, row_groups=[number], columns=[self.text_column], use_threads=False):
            texts = batch.column(0)[skip:]
            skip = max(0, skip - len(batch))
            for text in texts.to_pylist():
                self.state["row"] += 1
                yield {self.text_column: text}
        self.state = {"group": self.state["group"] + 1, "row": 0}

    def _rows(self, group: int) -> int:
        path, number = self.groups[group]
        return int(self.contents[path].row_group(number).num_rows)


class TextLanes:
    """Streaming in `lanes`. Where there are few files for them, a shard is some row groups of them, or what else `datasets` cuts
    such files into. `files` are those of a stream of parquet, which is read without it."""

    shuffle_block = LANE_BLOCK

    def __init__(self, stream: TextStream, lanes: int, files: list[str]) -> None:
        self.stream, self.lanes, self.files, self.contents = stream, lanes, files, Contents()
        self.revision, self.tokenizer, self.num_shards = stream.revision, stream.tokenizer, stream.num_shards
        self.few = 0 < self.num_shards < SHARDS * lanes
        self.rows = stream.rows.reshard() if self.few and not files else stream.rows
        if self.few:
            self.num_shards = min(len(self._groups()) if files else self.rows.num_shards, SHARDS * lanes)

    def _groups(self) -> list[Group]:
        return list(chain.from_iterable(self.contents.groups(path) for path in self.files))

    def documents(self, index: int) -> Any:
        if not self.files:
            return self._streamed(index)
        if self.few:
            groups = self._groups()
            each, more = divmod(len(groups), self.num_shards)
            begin = each * index + min(index, more)
            groups = groups[begin : begin + each + (index < more)]
        else:
            groups = self.contents.groups(self.files[index])
        return ParquetDocuments(groups, self.stream.text_column, self.contents, lambda: self._streamed(index))

    def _streamed(self, index: int) -> datasets.IterableDataset:
        """The same by `datasets`, which opens a file again for each row group."""
        rows = self.rows.reshard() if self.few and self.files else self.rows
        return rows.shard(num_shards=self.num_shards, index=index, contiguous=True)

    def shard(self, index: int) -> EncodedShard:
        rows = self.documents(index)
        if index == 0 and self.stream.held_out:
            rows = rows.skip(self.stream.held_out)
        return EncodedShard(rows, self.stream.text_column, self.stream.encoder, self.stream.context, self.stream.packing)

    def transform(self, example: Example) -> dict[str, Tensor]:
        return to_item(example)


def version(name: str, revision: str | None) -> str:
    """What names the data: the given revision, for a folder the hash of its files' names and sizes, else the moving `main`."""
    if not Path(name).is_dir():
        return revision or "main"
    files = [(path.relative_to(name).as_posix(), path.stat().st_size) for path in Path(name).rglob("*") if path.is_file()]
    return hashlib.blake2b(repr(sorted(files)).encode(), digest_size=16).hexdigest()


def parquet_files(builder: datasets.DatasetBuilder, split: str) -> list[str]:
    """The addresses of a split's files in order; none if they are of another kind."""
    files = (builder.config.data_files or {}).get(split, []) if builder.name == "parquet" else []
    return list(files) if all(str(path).endswith(".parquet") for path in files) else []


def only(rows: Any, text_column: str) -> Any:
    """`rows` with this one column; ComponentError if it is missing. Streams of JSON do not know their columns (None)."""
    if rows.column_names is not None and text_column not in rows.column_names:
        known = ", ".join(rows.column_names)
        raise ComponentError(f"datasets/hub_text: no column {text_column}.", f"There are: {known}.")
    return rows.select_columns([text_column])


def one_at_a_time() -> filelock.BaseFileLock:
    """Held by one process of a machine at a time: what the first makes, the others find on the disk."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / "xrun.lock")


def build(
    name: str,
    revision: str | None = None,
    config_name: str | None = None,
    text_column: str = "text",
    train_split: str = "train",
    val_split: str | None = "validation",
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
    context: int = 1024,
    packing: bool = True,
    streaming: bool = False,
    val_documents: int = 1000,
    lanes: int | None = None,
) -> dict[str, Blocks | TextStream | TextLanes]:
    """`train` and `val` of dicts `input_ids` and `labels`, int64 (context,).

    `name` is owner/dataset or a local folder (parquet, arrow, text, ...); pin `revision` to a full commit; `tokenizer` is a name
    or folder for transformers' AutoTokenizer, or nothing for bytes. Without `packing` a document is one item, cut at `context`.
    With `streaming` nothing is downloaded first; then `val` is the first `val_documents` documents of `val_split`, or, if that is
    null, of the first training shard, which leaves them out of training. `lanes` (a number that divides the global batch, at best
    one or more for each process): each process reads only its own part of the stream, many documents at once; needs `streaming`.
    """
    if lanes is not None and not streaming:
        raise ComponentError("datasets/hub_text: lanes are of a stream.", "Give streaming: true, or leave lanes out.")
    encoder, tag = Encoder(tokenizer, tokenizer_revision), version(name, revision)

    def split(which: str) -> Any:
        return only(datasets.load_dataset(name, config_name, split=which, revision=revision, streaming=streaming), text_column)

    def blocks(rows: Any) -> Blocks:
        how = {"text_column": text_column, "encoder": encoder, "context": context}
        with one_at_a_time():
            mapped = rows.map(pack if packing else cut, batched=True, remove_columns=[text_column], fn_kwargs=how)
        return Blocks(mapped, tag, encoder.tokenizer)

    if not streaming:
        return {key: blocks(split(which)) for key, which in (("train", train_split), ("val", val_split)) if which}
    if lanes:
        builder = datasets.load_dataset_builder(name, config_name, revision=revision)
        rows = only(builder.as_streaming_dataset(split=train_split), text_column)
        files = parquet_files(builder, train_split)
    else:
        rows = split(train_split)
    held_out = 0 if val_split else val_documents
    stream = TextStream(rows, text_column, encoder, context, packing, held_out, tag)
    train = TextLanes(stream, lanes, files) if lanes else stream
    source = split(val_split) if val_split else train.documents(0)
    documents = datasets.Dataset.from_list(list(islice(source, val_documents)))
    return {"train": train, "val": blocks(documents)} if val_documents else {"train": train}
