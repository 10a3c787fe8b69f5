"""Which tensors a forward pass moves.

The copy that a save makes runs beside the next forward and backward pass, so what those change has
to be copied before. Of buffers that is known. Frozen weights usually stay, but the teacher of a
student moves, and a write to `.data` leaves no trace in a tensor's version. So what is not trained
is copied before the next forward pass until a later copy has had the same bytes; from then on it is
copied beside it, and the bytes of each copy are compared with those of the one before. What has
once moved is copied before for as long as the attempt lives.
"""

from __future__ import annotations

from collections.abc import Mapping, Set


class Movement:
    """What one process has seen of its tensors, by name, from save to save."""

    def __init__(self) -> None:
        self.moving: set[str] = set()
        """What has moved outside of the optimizer's step."""
        self._still: set[str] = set()
        self._seen: dict[str, tuple[int, str]] = {}

    def unsure(self, frozen: Set[str]) -> set[str]:
        """Of everything, what has to be copied before the next forward pass; `frozen` is what no
        step of the optimizer changes."""
        return self.moving | (frozen - self._still)

    def add(self, names: Set[str]) -> None:
        """These have moved."""
        self.moving |= names
        self._still -= names

    def compare(self, step: int, digests: Mapping[str, str]) -> set[str]:
        """Learn from the copy of a step, given by the digests of frozen tensors; returns those that
        have moved since the copy before, though it was known that they do not."""
        before = {name: self._seen.get(name, (step, digest)) for name, digest in digests.items()}
        moved = {name for name, digest in digests.items() if before[name][1] != digest}
        late = moved & self._still
        self._still |= {name for name in digests if before[name][0] < step} - self.moving
        self.add(moved)
        self._seen.update({name: (step, digest) for name, digest in digests.items()})
        return late
