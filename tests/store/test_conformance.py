"""Every store keeps the same promises: folder, Hub, Hub with a bucket, S3 (moto's), Azure
(Azurite, `make e2e`). Google's speaks through the same code and was seen by nobody here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from support.buckets import Server, azurite, moto
from support.conformance import PROMISES, Promise, Schedule, World, everything
from support.hub_store import HUB_WARNINGS
from support.worlds import FolderWorld, bucket_world, hub_world

pytestmark = HUB_WARNINGS
STORES = ["folder", "hub", "hub-bucket", "s3", pytest.param("az", marks=pytest.mark.e2e)]
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
def empty(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], AbstractContextManager[World]]:
    """Makes an empty place of a kind."""

    def made(kind: str) -> AbstractContextManager[World]:
        number = next(NUMBERS)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        if kind == "folder":
            return nullcontext(FolderWorld(folder))
        if kind in ("hub", "hub-bucket"):
            return hub_world(folder, kind, monkeypatch)
        return bucket_world(folder, request.getfixturevalue(kind), f"bucket-{number}")

    return made


@pytest.fixture
def world(
    request: pytest.FixtureRequest, empty: Callable[[str], AbstractContextManager[World]]
) -> Iterator[World]:
    """An empty place of this kind."""
    with empty(request.param) as world:
        yield world


@pytest.mark.once
@pytest.mark.parametrize("world", STORES, indirect=True)
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_every_store_keeps_it(world: World, promise: Promise) -> None:
    promise(world)


def schedules() -> list[object]:
    """A few of each store in the suite, 500 in `make soak`."""
    few = {"folder": 5, "hub": 2, "hub-bucket": 2, "s3": 10, "az": 10}
    cloud = {"az": [pytest.mark.e2e]}
    return [
        *(pytest.param(kind, n, marks=cloud.get(kind, ())) for kind, n in few.items()),
        *(pytest.param(kind, 500, marks=[pytest.mark.soak, *cloud.get(kind, ())]) for kind in few),
    ]


@pytest.mark.once
@pytest.mark.parametrize(("kind", "count"), schedules())
def test_any_schedule_ends_where_the_model_says(
    kind: str, count: int, empty: Callable[[str], AbstractContextManager[World]]
) -> None:
    """Saves, sweeps, successors, zombies and troubles in an order that follows from the seed."""
    for seed in range(count):
        with empty(kind) as world:
            Schedule(world, seed).run()


def test_the_suite_is_one_list(tmp_path: Path) -> None:
    """For a store of one's own: every promise and so many schedules, by names that tell them
    apart, each one with an empty world."""
    suite = everything(schedules=3)
    assert suite[: len(PROMISES)] == PROMISES
    assert len({promise.__name__ for promise in suite}) == len(PROMISES) + 3
    for number, promise in enumerate(suite[-3:]):
        promise(FolderWorld(tmp_path / f"{number}"))
