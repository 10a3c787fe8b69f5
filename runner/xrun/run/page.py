"""What lies beside an exported model, in its folder `xrun/`, so that anybody can make it again:

recipe.yaml     the recipe, resolved
lock.json       every revision, version and commit that the run was made from
run.json        the run's id and digest, where its state is, the weights' digest, and each file's
receipt.json    what each attempt has cost, until the model was made
metrics.jsonl   loss, digest of the samples and metrics of each logged step
curves.svg      the losses as a picture
project/        the components' files, where the recipe says `publish_code`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import LaunchError
from ..files import read_small, typed
from .locked import Lock
from .points import Point, read_points, reproducible
from .receipt import Receipt

FOLDER = "xrun"
RECIPE, LOCK, RUN, POINTS = "recipe.yaml", "lock.json", "run.json", "metrics.jsonl"
RECEIPT, CURVES = "receipt.json", "curves.svg"


@dataclass(frozen=True)
class Facts:
    """`run.json`: which run it was, by which rule it has its `digest`, on how many `processes`, and
    what the export has made: the SHA-256 of each file of weights, and of all together as the record
    has it. `state` is the address of its state, "" where that is on one machine only; `sources` the
    digests of its components' files, `sample_flops` what the model computes for one sample, 0 where
    nobody has counted it. Pages of an older xrun lack these."""

    run: str
    digest: str = ""
    rule: int = 1
    processes: int = 1
    weights_sha256: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    sample_flops: float = 0.0


@dataclass(frozen=True)
class Page:
    """A model's folder, as it was exported or fetched."""

    model: Path

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.model / FOLDER

    @cached_property
    def facts(self) -> Facts:
        """Raises LaunchError."""
        told = self._json(RUN)
        try:
            return Facts(**{"run": "", **typed(Facts, told)})
        except ValueError as error:
            raise self._damaged(RUN, str(error)) from error

    @cached_property
    def lock(self) -> Lock:
        """Raises LaunchError."""
        try:
            return Lock.from_json(self._json(LOCK))
        except ValueError as error:
            raise self._damaged(LOCK, str(error)) from error

    @cached_property
    def receipt(self) -> Receipt:
        """What the run had cost when the model was made. Raises LaunchError."""
        try:
            return Receipt.from_json(self._json(RECEIPT))
        except ValueError as error:
            raise self._damaged(RECEIPT, str(error)) from error

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.folder / RECIPE

    @property
    def code(self) -> Path | None:
        """The folder of the components' files, where they are published; it is the recipe's project
        as well."""
        there = any((self.folder / name).is_dir() for name in ("models", "datasets"))
        return self.folder if there else None

    def points(self) -> list[Point]:
        """What the run has logged, without what tells of its machine."""
        return [reproducible(point) for point in read_points(self.folder / POINTS)]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            told = json.loads(read_small(self.folder / name))
        except FileNotFoundError:
            raise LaunchError(
                f"{self.model} has no {FOLDER}/{name}, so nobody can tell how it was made.",
                "Models have it from this version of xrun on: `xrun export-model RUN` makes it.",
            ) from None
        except (OSError, ValueError) as error:
            raise self._damaged(name, str(error)) from error
        if not isinstance(told, dict):
            raise self._damaged(name, "it is no object")
        return told

    def _damaged(self, name: str, why: str) -> LaunchError:
        return LaunchError(
            f"{self.folder / name} is damaged: {why}.", "Fetch the model again from where it is."
        )


def lines(points: Iterator[Point] | list[Point]) -> bytes:
    """Points as `metrics.jsonl` has them, without what differs between two runs of one lock."""
    told = (json.dumps(reproducible(point)) for point in points)
    return "".join(f"{line}\n" for line in told).encode()
