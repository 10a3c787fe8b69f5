"""Tokenized documents -> the rows that a language model trains on, several documents in each.

transformers keeps documents apart by positions that begin again, and only if `use_cache` is False
(docs/decisions/0043), so both are in the batch: whatever model it reaches, none looks over a border
or says nothing.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

_IGNORED = -100


@dataclass(frozen=True)
class Documents:
    """The tokens of documents one after the other, which of them carry loss, how many tokens each
    document has, and how many it had as a `whole`, before it was cut."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    whole: NDArray[np.int64]

    @property
    def losses(self) -> NDArray[np.int64]:
        """How many tokens of each document carry loss."""
        before, ends = np.cumsum(np.r_[0, self.trained]), np.cumsum(self.lengths)
        losses: NDArray[np.int64] = before[ends] - before[ends - self.lengths]
        return losses

    def revision(self, numbers: NDArray[np.int64]) -> str:
        """What names the content of these of them."""
        content = hashlib.blake2b(digest_size=16)
        for part in (self.tokens, self.trained, self.lengths, numbers):
            content.update(np.ascontiguousarray(part).data)
        return content.hexdigest()


class Rows:
    """Map-style dicts of int64: `input_ids`, `labels` (not shifted, -100 where no loss is), and of
    packed ones `position_ids`, which begin again with each document.

    With `packing` each has `context` tokens, filled up with the `padding` token, which is a
    document of its own. Otherwise a row is a document, and a batch is filled up at the end to its
    longest row, which no token before sees. `numbers` says which documents are in them.
    """

    def __init__(
        self,
        documents: Documents,
        numbers: NDArray[np.int64],
        context: int,
        packing: bool,
        padding: int,
    ) -> None:
        self.documents, self.context, self.packing = documents, context, packing
        self.starts = np.cumsum(documents.lengths) - documents.lengths
        lengths = documents.lengths[numbers].tolist()
        bins = best_fit(lengths, context) if packing else [[each] for each in range(len(numbers))]
        self.rows = [numbers[each] for each in bins]
        self.filling = {"input_ids": padding, "labels": _IGNORED}
        self.revision = documents.revision(numbers)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        lengths = self.documents.lengths[self.rows[index]].tolist()
        starts = self.starts[self.rows[index]].tolist()
        where = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
        tokens = self.documents.tokens[where].astype(np.int64)
        labels = np.where(self.documents.trained[where], tokens, _IGNORED)
        item = {"input_ids": tokens, "labels": labels}
        if self.packing:
            space = self.context - len(where)
            item = {name: self._filled(name, values, space) for name, values in item.items()}
            item["position_ids"] = np.concatenate([np.arange(n) for n in (*lengths, space)])
        return {name: torch.from_numpy(values) for name, values in item.items()}

    def _filled(self, name: str, values: NDArray[np.int64], space: int) -> NDArray[np.int64]:
        return np.pad(values, (0, space), constant_values=self.filling[name])

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """A batch, (samples, tokens)."""
        if self.packing:
            return {**default_collate(list(items)), "use_cache": False}
        return {
            name: pad_sequence([item[name] for item in items], True, value)
            for name, value in self.filling.items()
        }


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Numbers of lengths in bins of `size`: the longest first, each into the fullest bin that has
    room for it (best-fit decreasing); none may be longer than that."""
    bins: list[list[int]] = []
    with_space: dict[int, list[int]] = {}
    spaces: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        place = bisect_left(spaces, lengths[number])
        if place == len(spaces):
            space, which = size, len(bins)
            bins.append([])
        else:
            space = spaces[place]
            which = with_space[space].pop()
            if not with_space[space]:
                del with_space[spaces.pop(place)]
        bins[which].append(number)
        if left := space - lengths[number]:
            if left not in with_space:
                insort(spaces, left)
            with_space.setdefault(left, []).append(which)
    return bins
