"""A run's folder: where its files lie, and what they say for `status`, `report` and `logs`. Reads
only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import LaunchError, XrunError
from ..store.directory.store import DirectoryStore
from ..store.protocol import Head, Store, StoredFile
from ..tracker.jsonl import parse, read_points
from . import logs as attempt_logs
from .plan import Plan

_TAIL_BYTES = 4096


@dataclass(frozen=True)
class RunFolder:
    """One run's folder."""

    path: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def state(self) -> Path:
        """What the DirectoryStore keeps."""
        return self.path / "state"

    @property
    def model(self) -> Path:
        """The final weights."""
        return self.path / "model"

    @property
    def lock(self) -> Path:
        """Held by the launcher of a local run while it lives."""
        return self.path / "lock"

    @property
    def metrics(self) -> Path:
        """One line per logged step."""
        return self.path / "metrics.jsonl"

    def logs(self, attempt: str) -> Path:
        """What the processes of an attempt have printed."""
        return self.path / "logs" / attempt

    def plan(self) -> Plan:
        """The newest plan.

        Raises:
            LaunchError: there is no such run.
        """
        try:
            return Plan.from_json((self.path / "plan.json").read_text())
        except FileNotFoundError as error:
            raise LaunchError(
                f"There is no run {self.run} in {self.path.parent}.",
                "`xrun status` lists the runs.",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                f"{self.path / 'plan.json'} is damaged: {error}.",
                f"Delete that file and start the recipe again with --run {self.run}.",
            ) from error

    def store(self) -> Store:
        """The run's store, to read from; the folder may have been moved since the plan was
        written."""
        return open_store(replace(self.plan(), home=str(self.path.parent)), "reader", create=False)

    def head(self) -> Head | None:
        """The newest commit."""
        return self.store().head()

    def points(self) -> list[dict[str, Any]]:
        """Every logged point."""
        return read_points(self.metrics)

    def last_point(self) -> dict[str, Any]:
        """The newest point of training, found without reading the whole file; empty if there is
        none."""
        if not self.metrics.exists():
            return {}
        with self.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
        points = (parse(line) for line in reversed(lines))
        return next((point for point in points if point and "train/loss" in point), {})

    def log_text(self, attempt: int | None, rank: int) -> str:
        """What one training process of an attempt (counted from 1, default the last) has printed.

        Raises:
            LaunchError: there is no such attempt, or its process has left nothing.
        """
        store = self.store()
        record = self._record_or_nothing(store)
        folders = sorted(path.name for path in (self.path / "logs").glob("*"))
        attempts = [entry["id"] for entry in record.get("attempts", [])] or folders
        number = len(attempts) if attempt is None else attempt
        if not 1 <= number <= len(attempts):
            raise LaunchError(f"{self.run} has {len(attempts)} attempts (got {number}).")
        own = self.logs(attempts[number - 1])
        if (path := own / f"rank{rank}.log").exists():
            return path.read_text(errors="replace")
        if (text := attempt_logs.read(store, record, own.name, rank)) is not None:
            return text
        raise LaunchError(f"Attempt {number} of {self.run} has left no log of process {rank}.")

    def _record_or_nothing(self, store: Store) -> Mapping[str, Any]:
        """What the store has; logs that lie here can be read without it."""
        try:
            head = store.head()
        except XrunError:
            if not any((self.path / "logs").glob("*")):
                raise
            return {}
        return head.record if head else {}

    def report(self) -> dict[str, Any]:
        """Everything that is known of the run, as JSON."""
        head = self.head()
        record = head.record if head else {}
        attempts = record.get("attempts", [])
        finished = record.get("finished") or {}
        steps = [manifest["step"] for manifest in record.get("checkpoints", [])]
        return {
            "run": self.run,
            "status": self.status(record),
            "step": max(steps, default=None),
            "logged_step": self.last_point().get("step"),
            "checkpoints": steps,
            "committed": max(
                (manifest["time"] for manifest in record.get("checkpoints", [])), default=None
            ),
            "rejected": record.get("rejected", []),
            "exact": all(
                manifest["numbers"].get("exact", True)
                for manifest in record.get("checkpoints", [])[-1:]
            ),
            "attempts": attempts,
            "steps_recomputed": sum(attempt.get("steps_recomputed", 0) for attempt in attempts),
            "seconds_lost": round(sum(attempt.get("seconds_lost", 0.0) for attempt in attempts), 3),
            "metrics": self.metrics_now(),
            "weights_sha256": finished.get("weights_sha256"),
            "model": str(self.model) if finished else None,
            "folder": str(self.path),
        }

    def status(self, record: dict[str, Any]) -> str:
        """`running`, `finished`, `failed` (it will not go on by itself) or `stopped` (the same
        command goes on)."""
        if self.owner_pid():
            return "running"
        last = (record.get("attempts") or [{}])[-1]
        if is_finished(self.plan(), record):
            return "finished"
        return "failed" if last.get("code") not in (None, 0, 75) else "stopped"

    def owner_pid(self) -> int | None:
        """The process that runs this run now."""
        import fcntl

        try:
            with self.lock.open("r") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except (FileNotFoundError, ValueError):
            pass
        return None

    def metrics_now(self) -> dict[str, float]:
        """The newest value of every metric."""
        newest: dict[str, float] = {}
        for point in self.points():
            newest |= {
                name: value
                for name, value in point.items()
                if "/" in name and isinstance(value, int | float)
            }
        return newest


def is_finished(plan: Plan, record: Mapping[str, Any]) -> bool:
    """Whether the run has reached the step that its newest plan asks for."""
    finished, train = record.get("finished"), plan.recipe["train"]
    return finished is not None and finished["step"] >= (
        train["steps"] or train["epochs"] * finished["steps_per_epoch"]
    )


def open_store(plan: Plan, attempt: str, *, create: bool = True) -> Store:
    """The store of a plan's run, for one attempt; without `create` nothing is made where nothing
    is."""
    folder = RunFolder(plan.folder)
    if not plan.store:
        return DirectoryStore(folder.state, plan.run, attempt, plan.owner)
    from ..store.hub.store import (
        HubStore,
    )  # its library takes a second to import, which a run without it does not pay

    return HubStore(
        plan.store,
        plan.run,
        attempt,
        plan.owner,
        folder.path / "cache",
        create=create,
        **_pace(os.environ),
    )


def _pace(environ: Mapping[str, str]) -> dict[str, Any]:
    """Seconds between commits, commits an hour, and seconds of trying again, for a Hub of one's own
    with other limits."""
    names = {
        "spacing": "XRUN_HUB_SPACING",
        "hourly": "XRUN_HUB_HOURLY",
        "patience": "XRUN_HUB_PATIENCE",
    }
    return {
        name: float(environ[variable]) for name, variable in names.items() if environ.get(variable)
    }


def restore_soon(store: Store) -> None:
    """Begin to verify what the attempt will probably restore; a store that cannot be read is
    somebody else's news."""
    with contextlib.suppress(XrunError):
        head = store.head()
        manifests = head.record.get("checkpoints", []) if head else []
        newest: dict[str, Any] = max(
            manifests, key=lambda manifest: int(manifest["step"]), default={"files": {}}
        )
        store.fetch_soon(StoredFile.from_json(file) for file in newest["files"].values())


def runs_in(home: Path) -> list[RunFolder]:
    """Every run in a folder of runs, the newest first."""
    plans = sorted(home.glob("*/plan.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunFolder(path.parent) for path in plans]


def describe(folder: RunFolder) -> dict[str, Any]:
    """`report`, or why it cannot be read."""
    try:
        return folder.report()
    except XrunError as error:
        return {
            "run": folder.run,
            "status": "unreadable",
            "error": str(error),
            "folder": str(folder.path),
        }


def write_plan(folder: RunFolder, plan: Plan) -> Path:
    """Keep the plan in the run's folder, replacing the one before as a whole."""
    from ..tracker.jsonl import write_bytes

    folder.path.mkdir(parents=True, exist_ok=True)
    write_bytes(folder.path / "plan.json", plan.to_json().encode())
    return folder.path / "plan.json"
