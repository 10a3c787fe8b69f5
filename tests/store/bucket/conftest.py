"""A run's store in an empty bucket."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.buckets import Server, moto
from xrun.store.address import Address
from xrun.store.bucket.store import BucketStore

Opener = Callable[..., BucketStore]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    with moto() as server:
        yield server


@pytest.fixture
def place(s3: Server) -> str:
    """The address of a run in a bucket of its own."""
    return f"{s3.make(f'bucket-{next(_numbers)}')}/runs/digits-1"


@pytest.fixture
def attempt(s3: Server, place: str, tmp_path: Path) -> Opener:
    """Opens the run's store as an attempt, each one on an empty machine of its own."""

    def opened(name: str = "a1", **options: Any) -> BucketStore:
        settings = {"environ": s3.environ, "patience": 5.0, "piece": 1000, **options}
        run, where = settings.pop("run", "digits-1"), settings.pop("place", place)
        cache = settings.pop("cache", tmp_path / f"cache-{name}")
        return BucketStore(Address.parse(where), run, name, f"{name}@host", cache, **settings)

    return opened
