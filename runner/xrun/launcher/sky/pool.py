"""`Pool`: machines of SkyPilot that stay for all trials of a sweep, `sweep.pool` of them.

A machine of a pool has the files of the pool, and of a job that it is handed it runs the command
alone. So the pool brings the cargo of one trial, and each job's command makes its own run's of it:
a copy, with what is different written out in the command, which is little more than the plan.
"""

from __future__ import annotations

import base64
import gzip
import io
import shlex
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...backoff import Backoff
from ...bar import bar
from ...errors import LaunchError
from ...files import parsed, read_small, typed, write_json
from ..bundle import Cargo, holds, there
from .client import skypilot
from .jobs import jobs
from .launch import Launch
from .recovery import OF_SKYPILOT
from .task import resources

LIMIT = 96 << 10
"""Bytes of a job's command: it travels through a shell's argument, which takes 128 KB."""
_BACKOFF = Backoff(first=2.0, longest=2.0)
_ENDED = 300.0
"""Seconds in which a pool's machines are gone."""


@dataclass(frozen=True)
class Pool:
    """The pool of a sweep: its `name`, which is the sweep's id, how many `machines` it has, what
    each of them costs an hour, and the folder here of the cargo that is on them."""

    name: str
    machines: int
    usd_per_hour: float
    cargo: str
    asked: float

    @classmethod
    def of(cls, folder: Path) -> Pool | None:
        """The pool that a launcher here has asked for and nobody has ended.

        Raises:
            LaunchError: nobody knows, since the record is damaged.
        """
        path = folder / "pool.json"
        try:
            return cls(**typed(cls, parsed(read_small(path))))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise LaunchError(
                f"{path} is damaged, so nobody knows whether {folder.name} has machines: {error}.",
                "Look with `sky jobs pool status`, end them with `sky jobs pool down"
                f" {folder.name}`, and move the file away.",
            ) from error

    @property
    def cost(self) -> str:
        """How many machines, and what they cost."""
        machines = "1 machine" if self.machines == 1 else f"{self.machines} machines"
        return f"{machines}, ${self.machines * self.usd_per_hour:.2f} an hour"

    @property
    def words(self) -> str:
        """Its name and its cost."""
        return f"pool {self.name} ({self.cost})"

    def task(self, launch: Launch) -> dict[str, Any]:
        """What each machine is: the launch's kinds of machine, without an order, which a pool does
        not take, and its files."""
        offers = launch.offers
        same = [each for each in offers.offers if each.use_spot == offers.best.use_spot]
        wide = replace(offers, offers=tuple(same), ordered=False)
        mounts = {**launch.task.get("file_mounts", {})}
        mounts[there(self.name)] = mounts.pop(there(launch.plan.run))
        config = {
            "name": self.name,
            "num_nodes": launch.task["num_nodes"],
            "resources": resources(launch.plan.load_recipe().hardware.any_of, wide),
            "file_mounts": mounts,
            "volumes": launch.task.get("volumes"),
            "pool": {"workers": self.machines},
        }
        return {name: value for name, value in config.items() if value not in ({}, None)}

    def job(self, launch: Launch) -> dict[str, Any]:
        """The task of a trial on one of the machines: the first that is free.

        Raises:
            LaunchError: it differs by too much from what the machines have.
        """
        left_out = ("file_mounts", "volumes", "resources")
        task = {name: value for name, value in launch.task.items() if name not in left_out}
        run = f"{self._unpacked(launch)}{task['run']}"
        if len(run) > LIMIT:
            raise LaunchError(
                f"What has changed in the project or in xrun since the pool {self.name} was made"
                f" takes {len(run) >> 10} KB, and {LIMIT >> 10} KB can be sent to its machines.",
                "`xrun sweep stop RECIPE` ends the pool once its trials have saved; then the same"
                " command makes another one.",
            )
        return {**task, "resources": {"job_recovery": dict(OF_SKYPILOT)}, "run": run}

    def _unpacked(self, launch: Launch) -> str:
        """What makes the cargo of a run out of the pool's, on each node."""
        new = _packed(launch.cargo, Path(self.cargo))
        gone = [name for name in _names(Path(self.cargo)) if name not in launch.cargo.files]
        own, made = there(launch.plan.run), f"{there(launch.plan.run)}.new"
        removed = f"(cd {made} && rm -f -- {shlex.join(gone)})\n" if gone else ""
        return (
            f"rm -rf {made} {own} && mkdir -p {made}\n"
            f"cp -R {there(self.name)}/. {made}\n"
            f"{removed}"
            f"base64 -d <<'END' | tar -xzf - -C {made}\n{new}END\n"
            f"mv {made} {own}\n"
        )


def raised(
    launch: Launch, folder: Path, sweep: str, machines: int, say: Callable[[str], None]
) -> Pool:
    """The pool of a sweep, asked for now unless it is there. `launch` is that of a trial, which
    somebody has agreed to. What is about to be asked is written down before.

    Raises:
        LaunchError: SkyPilot refuses it.
    """
    known = Pool.of(folder)
    there_is = is_there(sweep)
    if known is not None and there_is:
        say(f"The {known.words} is there already.")
        return known
    if there_is:
        raise LaunchError(
            f"SkyPilot has a pool {sweep} that was not made from here.",
            f"Go on where it was made, or end it: sky jobs pool down {sweep}",
        )
    launch.write()
    price = launch.offers.best.hourly
    pool = Pool(sweep, machines, price, str(launch.cargo.folder), time.time())
    with skypilot() as sky:
        from sky.serve.serve_utils import UpdateMode

        task = sky.Task.from_yaml_config(pool.task(launch))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "pool.json", dict(vars(pool)))
        with bar("SkyPilot takes the project and starts the pool"):
            sky.get(sky.jobs.pool_apply(task, sweep, UpdateMode.ROLLING, _need_confirmation=False))
    say(f"The pool {pool.name} has been started: {pool.cost}, until all trials are done.")
    return pool


def is_there(name: str) -> bool:
    """Whether SkyPilot has a pool of this name."""
    return bool(_found(name))


def _found(name: str) -> list[Mapping[str, Any]]:
    with skypilot() as sky:
        try:
            return [each for each in sky.get(sky.jobs.pool_status(None)) if each["name"] == name]
        except sky.exceptions.ClusterNotUpError:  # no controller: there was never a pool
            return []


def ended(folder: Path, runs: Sequence[str], say: Callable[[str], None]) -> bool:
    """End a sweep's pool unless a job of one of these runs is on it, or may be; whether it has
    ended."""
    pool = Pool.of(folder)
    if pool is None:
        return True
    left = [job.run for job in jobs(live=True) if job.run in runs]
    if left:
        trials = "1 trial is" if len(left) == 1 else f"{len(left)} trials are"
        say(
            f"{trials} still on the {pool.words}, which stays. The same command goes on with them;"
            " `xrun sweep stop RECIPE` ends them and the pool."
        )
        return False
    with skypilot() as sky, bar(f"Ending the pool {pool.name}"):
        if is_there(pool.name):
            sky.get(sky.jobs.pool_down(pool.name))
        tries, end = 0, time.monotonic() + _ENDED
        while is_there(pool.name):
            if time.monotonic() > end:
                say(
                    f"The {pool.words} is still being ended: `sky jobs pool status` shows it;"
                    f" `sky jobs pool down {pool.name} --purge` if it stays."
                )
                return False
            tries += 1
            time.sleep(_BACKOFF.seconds(tries))
    (folder / "pool.json").unlink(missing_ok=True)
    say(f"The pool {pool.name} has ended.")
    return True


def _packed(cargo: Cargo, there_is: Path) -> str:
    """The files of a cargo that another folder does not have, as a tar archive in base64; the same
    for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in sorted(cargo.files.items()):
            if holds(there_is / name, data):
                continue
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(data), 0o700 if name in cargo.programs else 0o600
            archive.addfile(about, io.BytesIO(data))
    return base64.encodebytes(gzip.compress(packed.getvalue(), mtime=0)).decode()


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
