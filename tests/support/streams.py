"""Streaming splits of shards that count what is read of them."""

from __future__ import annotations

from collections.abc import Iterator


class Shard:
    """Examples (shard, number); counts how many were really read."""

    def __init__(self, dataset: Shards, number: int) -> None:
        self.dataset, self.number = dataset, number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number in range(self.dataset.sizes[self.number]):
            self.dataset.read += 1
            yield self.number, number


class ResumableShard(Shard):
    """A shard that knows where it is, as Hugging Face's streams do."""

    at = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while self.at < self.dataset.sizes[self.number]:
            self.at += 1
            self.dataset.read += 1
            yield self.number, self.at - 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Shards:
    """A streaming split of shards of these sizes."""

    shuffle_block = 7

    def __init__(self, *sizes: int, kind: type[Shard] = Shard) -> None:
        self.sizes, self.kind, self.read, self.transformed = sizes, kind, 0, 0
        self.num_shards = len(sizes)

    def shard(self, number: int) -> Shard:
        return self.kind(self, number)

    def transform(self, example: tuple[int, int]) -> int:
        self.transformed += 1
        return example[0] * 1000 + example[1]
