"""A run's store in an empty bucket, on a clock that is in hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bad_way import BadWay
from support.buckets import Server, moto
from support.hub_store import Clock
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
def way(s3: Server) -> Iterator[BadWay]:
    """To the server."""
    with BadWay(s3.url) as way:
        yield way


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempt(s3: Server, way: BadWay, place: str, clock: Clock, tmp_path: Path) -> Opener:
    """Opens the run's store as an attempt, each one on an empty machine of its own."""

    def opened(name: str = "a1", **options: Any) -> BucketStore:
        settings = {
            "environ": s3.at(way.url),
            "clock": clock,
            "sleep": clock.sleep,
            "patience": 60.0,
            "piece": 1000,
            **options,
        }
        where, cache = settings.pop("place", place), tmp_path / f"cache-{name}"
        address = Address.parse(where)
        return BucketStore(address, "digits-1", name, f"{name}@host", cache, **settings)

    return opened
