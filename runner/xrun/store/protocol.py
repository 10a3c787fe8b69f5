"""Where a run's committed state lives: the `Store` protocol and its values.

A store keeps immutable files and one *head*, the JSON record of what is committed now. Files come
first, the head last, so whatever is killed in between leaves the old head and nothing else. A store
knows nothing of checkpoints: in a record it looks only for lists of strings under the key "copies"
(`StoredFile.to_json` writes them), at any depth. `DirectoryStore` keeps all this in a folder,
`HubStore` in a repository of the Hugging Face Hub, `BucketStore` in a bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..errors import LeaseLost
from .blocks import Block, Range, count, covering, cut

Chunk = bytes | memoryview
"""A piece of a file: anything with the buffer protocol that is C-contiguous."""


@dataclass(frozen=True)
class StoredFile:
    """Bytes that were written and synced: their hash (hex), size in bytes, and the places in the
    store that hold them.

    The hash is XXH3-128, 32 digits; files from before docs/decisions/0015 have a BLAKE3, 64 digits.
    `blocks` are the hashes (XXH3-128) of its blocks of `block` bytes, cut as `blocks.cut` says;
    without them it is read whole.
    """

    hash: str
    size: int
    copies: tuple[str, ...]
    block: int = 0
    blocks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what a record says of this file; the key "copies" is what keeps it from being
        swept."""
        told = {"hash": self.hash, "size": self.size, "copies": list(self.copies)}
        blocks = {"block": self.block, "blocks": list(self.blocks)}
        return told | (blocks if self.blocks else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StoredFile:
        """Read what `to_json` wrote; unknown keys are ignored, so that an older xrun reads what a
        newer one wrote. Blocks that are cut in another way than this one cuts are none."""
        file = cls(
            hash=value["hash" if "hash" in value else "blake3"],
            size=value["size"],
            copies=tuple(value["copies"]),
        )
        block, blocks = value.get("block", 0), tuple(value.get("blocks", ()))
        known = block > 0 and count(file.size, block) == len(blocks)
        return replace(file, block=block, blocks=blocks) if known else file

    def blocks_of(self, ranges: Iterable[Range]) -> list[Block]:
        """The blocks that cover these ranges."""
        places = cut(self.size, self.block) if self.blocks else []
        blocks = (Block(*place, each) for place, each in zip(places, self.blocks, strict=True))
        return covering(blocks, ranges)


@dataclass(frozen=True)
class Head:
    """What is committed now.

    `number` grows with every commit and is never used twice. `id` names exactly this commit and its
    whole content; `parent` is the id of the head that it replaced, "" for the first. `time` is the
    committing machine's clock and orders nothing.
    """

    number: int
    id: str
    parent: str
    run: str
    attempt: str
    owner: str
    time: float
    record: dict[str, Any]


def copies_named(record: Any) -> Iterator[str]:
    """Yield every stored place that a record names: the strings of each list under a key "copies",
    at any depth."""
    if isinstance(record, dict):
        copies = record.get("copies")
        if isinstance(copies, list):
            yield from (copy for copy in copies if isinstance(copy, str))
        record = list(record.values())
    if isinstance(record, list):
        for value in record:
            yield from copies_named(value)


class Store(Protocol):
    """Immutable files and one head, for one attempt of one run. One thread at a time puts, commits
    and sweeps."""

    @property
    def damaged(self) -> list[str]:
        """The commits that the last look at the head had to skip, newest first."""

    def head(self) -> Head | None:
        """Return the newest valid head; None means "certainly nothing was ever committed here".

        Raises `CheckpointCorrupt` when there is state and no valid head, `StoreUnavailable` when
        nobody can tell, and `StoreError` when the state is another run's.
        """

    def put(
        self, chunks: Iterable[Chunk], suffix: str = ".safetensors", *, blocks: bool = False
    ) -> StoredFile:
        """Write the chunks as one durable file, hashed on the way; it is invisible until a commit
        names it.

        `suffix` tells people what the file holds, where a store has names that people see.
        `blocks`: its blocks are hashed as well, for those who are going to read parts of it.

        The content may have been put before; that costs space until the next sweep and hurts
        nothing. A file that a head named and no longer names must be put again, never named again.
        The run's first commit, which takes the lease, comes before the first file. Raises
        `StoreError`; then nothing is left behind.
        """

    def commit(self, record: dict[str, Any], parent: Head | None) -> Head:
        """Replace the head `parent` (None: there is none yet) by `record`, or raise `LeaseLost` and
        change nothing.

        The files that the record names are durable before, the new head is durable after.
        `StoreError` means that nothing was committed, except for `StoreUnavailable`, which means
        that nobody can tell; then commit again with the same parent, and the store recognises its
        own commit if it was made after all.
        """

    def fetch(self, file: StoredFile) -> Path:
        """Return a local path whose content was verified just now; read it, never write to it.

        Bad copies go to quarantine. Raises `CheckpointCorrupt` if no copy is intact,
        `StoreUnavailable` if that cannot be told.
        """

    def fetch_ranges(self, file: StoredFile, ranges: Sequence[Range]) -> Path:
        """Return a local path at which these bytes of the file were verified just now, and no more
        was read than the blocks that cover them; what else lies there may be anything.

        A file without blocks is fetched whole. Several processes of a machine may do it at once:
        what one of them was given stays there. Raises what `fetch` raises.
        """

    def fetch_soon(self, files: Iterable[StoredFile]) -> None:
        """Begin, in threads, with what `fetch` will do for these files: while torch is being
        imported, there is time."""

    def sweep(self) -> None:
        """Delete what the head does not name, of this attempt and earlier ones; never call it
        between `put` and `commit`.

        Does nothing unless the head is this attempt's. After a failed save it frees what that save
        had written.
        """


@runtime_checkable
class Duplicating(Protocol):
    """A store on disks of one's own, which has one copy of a file until it is asked for another."""

    def duplicate(self, file: StoredFile) -> StoredFile:
        """Return the file with a second physical copy, made from a verified one, if fewer than two
        are there. Raises what `fetch` and `put` raise."""


@runtime_checkable
class RateLimited(Protocol):
    """A store that takes a commit only now and then."""

    def commit_delay(self) -> float:
        """Seconds until it takes a commit at all; a commit before that waits."""


@runtime_checkable
class Publisher(Protocol):
    """Where others see a run: the place for its finished model, beside the state or elsewhere."""

    def publish(self, folder: Path, run: str, message: str) -> str:
        """Put the finished model where people look for it, tagged with the run; returns the
        revision. The same content again changes nothing. Raises `StoreError`."""


@runtime_checkable
class KeepsHistory(Protocol):
    """A store that has more of a finished run's state than its last commit."""

    def drop_history(self) -> None:
        """The run is over: drop the history of its state. Raises `StoreError`; trying again is
        harmless."""


class StopRequests(Protocol):
    """How somebody elsewhere asks an attempt to save and to stop for good."""

    def ask_to_stop(self) -> str:
        """Ask the attempt that has the head; returns its id, or "" if there is no head.

        No other attempt is meant, also none that follows. Raises `StoreError`.
        """

    def asked_to_stop(self) -> bool:
        """Whether somebody has asked this attempt; says so once. Raises `StoreError`."""


def commit_delay(store: Store) -> float:
    """Seconds until a store takes a commit."""
    return store.commit_delay() if isinstance(store, RateLimited) else 0.0


def lease_lost(
    where: str, run: str, attempt: str, head: Head | None, damaged: Sequence[str] = ()
) -> LeaseLost:
    """What an attempt is told whose run has this head now; `where` as in "in FOLDER"."""
    if head is None:
        return LeaseLost(
            f"The commits {where} are gone: somebody has deleted the state of the run {run}.",
            "Nothing more can be saved there. Bring its files back from a copy, or start another"
            " run with --again.",
        )
    if head.attempt == attempt:
        wrong = f" Damaged: {', '.join(damaged)}." if damaged else ""
        what = f"The head {where} is now commit {head.number} of this attempt, {attempt}.{wrong}"
        return LeaseLost(what)
    who = f"attempt {head.attempt} of {head.owner}"
    return LeaseLost(
        f"Run {run} was taken over by {who} (commit {head.number}); attempt {attempt} stops."
    )
