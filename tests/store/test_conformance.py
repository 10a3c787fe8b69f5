"""Every store keeps the same promises: folder, Hub, Hub with a bucket, S3 (moto's), Azure
(Azurite, `make e2e`). Google's speaks through the same code and was seen by nobody here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.buckets import Server, azurite, moto
from support.conformance import PROMISES, Promise, Schedule, World
from support.hub_store import HUB_WARNINGS
from support.worlds import FolderWorld, bucket_world, hub_world

pytestmark = HUB_WARNINGS
STORES = ["folder", "hub", "hub-bucket", "s3", pytest.param("az", marks=pytest.mark.e2e)]
NOT_KEPT = {("hub-bucket", "state_without_a_commit_is_never_an_empty_store")}
"""A branch whose history somebody has squashed and whose head.json is gone looks new, whatever lies
in the Hub's bucket."""
NUMBERS = iter(range(1, 1_000_000))


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="module")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """An empty place of this kind."""
    kind = request.param
    if kind == "folder":
        yield FolderWorld(tmp_path)
    elif kind in ("hub", "hub-bucket"):
        with hub_world(tmp_path, kind, monkeypatch) as hub:
            yield hub
    else:
        server = request.getfixturevalue(kind)
        with bucket_world(tmp_path, server, f"bucket-{next(NUMBERS)}") as bucket:
            yield bucket


@pytest.mark.once
@pytest.mark.parametrize("world", STORES, indirect=True)
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_every_store_keeps_it(
    request: pytest.FixtureRequest, world: World, promise: Promise
) -> None:
    if (request.node.callspec.params["world"], promise.__name__) in NOT_KEPT:
        request.applymarker(pytest.mark.xfail(strict=True))
    promise(world)


def schedules(count: int) -> list[object]:
    """A few in the suite, all of them in `make soak`."""
    few = list(range(count))
    return [*few, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(count, 500))]


@pytest.mark.once
@pytest.mark.parametrize("world", ["s3"], indirect=True)
@pytest.mark.parametrize("seed", schedules(20))
def test_any_schedule_ends_where_the_model_says(world: World, seed: int) -> None:
    """Saves, sweeps, successors, zombies and troubles in an order that follows from the seed."""
    Schedule(world, seed).run()
