"""`xrun rm`: everything of a run that lies here or in its store, seen first and then deleted.

Of a bucket only what lies below the run's own prefix; of the Hub the repository, if it has the
run's name and is private. What stays is said. A run that lives is not touched.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bar import bar
from ..errors import LaunchError
from ..files import needed
from ..run.folder import RunFolder, find_run
from ..run.opened import is_run_id, open_run
from ..run.record import RunRecord
from ..run.stores import Place, open_place
from .local import only_one
from .record import read_launch

if TYPE_CHECKING:
    from ..store.bucket.client import BucketClient

_ALIVE_SECONDS = 3600.0
"""After so long without a sign of life an attempt that has not said its end counts as gone."""


@dataclass(frozen=True)
class Removal:
    """What would go: the `folder` here with so many bytes, and the state at `place` far away, of
    `stored` bytes; `stays` says what does not, and why."""

    run: str
    folder: Path | None
    size: int
    place: Place | None = None
    stored: int = 0
    stays: str = ""

    def lines(self) -> Iterator[str]:
        """What would go, for people."""
        if self.folder is not None:
            yield f"{_bytes(self.size):>10}  {self.folder}"
        if self.place is not None:
            yield f"{_bytes(self.stored):>10}  {self.place.address}"
        if self.stays:
            yield f"{'stays':>10}  {self.stays}"

    @property
    def freed(self) -> str:
        """The space that it frees."""
        return _bytes(self.size + self.stored)


def removal(
    text: str, *, only_here: bool = False, clock: Callable[[], float] = time.time
) -> Removal:
    """What there is of the run that a person means: its id in this project, or its address; with
    `only_here` what this machine has of one whose state is elsewhere.

    Raises:
        LaunchError: there is no such run, it lives, or with `only_here` its state is nowhere else.
        StoreError: its store cannot be asked.
    """
    run, folder, place = _meant(text)
    has_ended = _refuse_what_lives(run, folder)
    here = folder.path if folder.path.is_dir() else None
    size = _size(here) if here else 0
    if place is None or not place.address.durable:
        if only_here:
            raise LaunchError(
                f"--here: nobody knows of a state of {run} besides {folder.path}.",
                f"`xrun rm {text}` deletes the run. Nothing was deleted.",
            )
        return Removal(run, here, size)
    if only_here:
        return Removal(run, here, size, stays=f"{place.address}")
    if not has_ended:
        _refuse_a_held_lease(run, place, clock)
    stored, stays = _far_away(place, run)
    return Removal(run, here, size, None if stays else place, stored, stays)


def _meant(text: str) -> tuple[str, RunFolder, Place | None]:
    """The run, its folder, which may not be there, and where its state is. Of a run elsewhere the
    folder is what this machine has fetched; one that has lost its plan is its folder alone."""
    if not is_run_id(text):
        opened = open_run(text, by_page=False)  # nothing is deleted by what a page says
        place = opened.place
        left = place.cache if place.address.durable else Path(place.address.name)
        return opened.run, opened.beside or RunFolder(left), place
    folder = find_run(text, known=False)
    if folder.plan_file.exists() or not folder.path.is_dir():
        return folder.run, folder, Place.of(folder.plan())
    return folder.run, folder, None


def remove(what: Removal) -> None:
    """Delete it, the state far away first: while that is there the folder knows where.

    Raises:
        LaunchError: somebody has begun to train it.
        StoreError: something cannot be deleted; the same command again deletes the rest.
    """
    if what.place is not None:
        _remove_far_away(what.place, what.run)
    if what.folder is not None:
        with needed(what.folder), only_one(RunFolder(what.folder)):
            shutil.rmtree(what.folder)


def _refuse_what_lives(run: str, folder: RunFolder) -> bool:
    """Raises LaunchError for a run that this machine trains or has a job for; returns whether it is
    certain that a job of it has ended."""
    if pid := folder.owner_pid():
        what = f"{run} is being trained here now (process {pid})."
        raise LaunchError(what, f"Stop it first: kill {pid}. Nothing was deleted.")
    if not folder.path.is_dir() or read_launch(folder) is None:
        return False
    from .sky.jobs import jobs

    if live := jobs(run, live=True):
        what = f"{run} has a job on a cloud now ({live[0].id}, {live[0].status.lower()})."
        raise LaunchError(what, f"First: xrun cancel {run}. Nothing was deleted.")
    return True


def _refuse_a_held_lease(run: str, place: Place, clock: Callable[[], float]) -> None:
    """Raises LaunchError where an attempt holds the run that nobody has seen end."""
    head = open_place(place, "reader", create=False).head()
    attempts = RunRecord.of(head).attempts if head else ()
    if not attempts or attempts[-1].ended is not None:
        return
    silent = clock() - attempts[-1].last_known
    if silent <= _ALIVE_SECONDS:
        minutes = _ALIVE_SECONDS / 60
        raise LaunchError(
            f"Attempt {attempts[-1].id} holds {run}; its last sign of life was"
            f" {max(0, silent) / 60:.0f} minutes ago.",
            f"First: xrun cancel {run}. One that was killed counts as gone after {minutes:.0f}"
            " minutes of silence. Nothing was deleted.",
        )


def _far_away(place: Place, run: str) -> tuple[int, str]:
    """The bytes at an address, and why what is there stays; "" if it may go."""
    if place.address.in_bucket:
        return sum(_objects(place).values()), ""
    return _on_hub(place, run)


def _on_hub(place: Place, run: str) -> tuple[int, str]:
    from ..store.hub.client import hub_api, reaching

    api, name = hub_api(), place.address.name
    where = f"{place.address}: "
    with reaching():
        if not api.repo_exists(name):
            return 0, f"{where}there is no such repository"
        if name.partition("/")[2] != run:
            return 0, f"{where}the repository has another name than the run; delete it on the Hub"
        if not api.repo_info(name).private:
            return 0, f"{where}the repository is public; delete it on the Hub"
        size = sum(each.size for each in api.list_lfs_files(name))
        return size + (_in_its_bucket(name) if place.address.kind == "hub-bucket" else 0), ""


def _in_its_bucket(name: str) -> int:
    """The bytes in a bucket of the Hub; there is none before the first file."""
    from huggingface_hub.errors import BucketNotFoundError

    from ..store.hub.client import hub_api

    try:
        return hub_api().bucket_info(name).size
    except BucketNotFoundError:
        return 0


def _remove_far_away(place: Place, run: str) -> None:
    if place.address.in_bucket:
        keys = sorted(_objects(place))  # `commits/` first: without them it is no run
        client = _client(place)
        with bar("Deleting", len(keys), "files") as shown:
            for start in range(0, len(keys), 1000):
                client.delete(keys[start : start + 1000])
                shown.advance(1000)
        return
    from ..store.hub.client import hub_api, reaching

    with reaching():
        hub_api().delete_repo(place.address.name)
        if place.address.kind == "hub-bucket":
            hub_api().delete_bucket(place.address.name, missing_ok=True)


def _client(place: Place) -> BucketClient:
    from ..libraries import BUCKET, require

    require(BUCKET)
    from ..store.bucket.client import BucketClient

    return BucketClient(place.address, environ={**os.environ, **place.env})


def _objects(place: Place) -> dict[str, int]:
    return dict(_client(place).sizes())


def _size(folder: Path) -> int:
    """Bytes on the disk; a file with several names counts once."""
    found: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _bytes(size: int) -> str:
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(max(len(str(size)) - 1, 0) // 3, len(units) - 1)
    return f"{size / 1000**power:.{1 if power else 0}f} {units[power]}"
