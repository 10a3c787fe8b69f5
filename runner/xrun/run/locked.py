"""`Lock`: every revision, version and commit that a run was made from.

A plan has what is known at the launch, the record what the attempts have found besides, and the
exported model a copy of that. (The lock on a file is `xrun.lock`.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..files import typed


@dataclass(frozen=True)
class Lock:
    """`hub` is what was asked of the Hugging Face Hub (`models/owner/name@main`) and the commit
    that it was then; it stays for the whole run. `moved` are commits of the same names that people
    were told of since. `packages` are the versions of everything that was imported, and of what
    that needs; `machine` is what else the bits depend on. `code` is the project: `commit`,
    `remote`, `folder` in the repository, whether it is `dirty`, and the BLAKE3 of its `difference`.
    `image` is a container's, with its digest where that is known. `changes` says from which step on
    versions were others."""

    hub: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)
    image: str = ""
    changes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Lock()

    def to_json(self) -> dict[str, Any]:
        """As plans, records and models have it; what is not known is left out."""
        told = {name: value for name, value in vars(self).items() if value}
        return {**told, "changes": list(self.changes)} if self.changes else told

    @classmethod
    def from_json(cls, told: Mapping[str, Any] | None) -> Lock:
        """Read it; keys that a newer xrun has added are ignored. Raises ValueError."""
        known = typed(cls, told or {})
        return cls(**{**known, "changes": tuple(known.get("changes", ()))})

    def followed_by(self, now: Lock, step: int) -> Lock:
        """The lock of a run whose newest attempt, which began at `step`, has found this: what it
        began with of the Hub holds on, and other versions are told."""
        changed = [f"from step {step} on: {each}" for each in self.versions_of(now) if step > 0]
        told = {each.name: getattr(now, each.name) or getattr(self, each.name) for each in _FIELDS}
        return replace(
            Lock(**told),
            hub={**now.hub, **self.hub},
            moved={**self.moved, **now.moved},
            changes=tuple(dict.fromkeys([*self.changes, *changed])),
        )

    def versions_of(self, other: Lock) -> list[str]:
        """What is another version there, as `einops 0.8.0 -> 0.8.1`; of what both know."""
        told = [
            f"{name} {old} -> {new}" for name, old, new in _other(self.packages, other.packages)
        ]
        return [*_one("Python", self.python, other.python), *told]

    def machine_of(self, other: Lock) -> list[str]:
        """What else is not the same there: `threads 8 -> 2`."""
        return [f"{name} {old} -> {new}" for name, old, new in _other(self.machine, other.machine)]

    def sources_of(self, other: Lock) -> list[str]:
        """Which commits are others: those of the Hub, and the project's."""
        told = [f"{each} {a[:12]} -> {b[:12]}" for each, a, b in _other(self.hub, other.hub)]
        return [*told, *_one("image", self.image, other.image)]


_FIELDS = fields(Lock)
NO_LOCK = Lock()
"""Nothing is known."""


def asked(kind: str, name: str, revision: str | None) -> str:
    """A name of `hub`; `kind` is `model`, `dataset` or `space`."""
    return f"{kind}s/{name}@{revision or 'main'}"


def _other(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(before):
        if name in after and before[name] != after[name]:
            yield name, before[name], after[name]


def _one(name: str, before: str, after: str) -> list[str]:
    return [f"{name} {before} -> {after}"] if before and after and before != after else []
