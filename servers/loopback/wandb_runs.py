"""The runs of the loopback W&B: one JSON file each, streams with W&B's offsets, the state machine,
ids that are gone for good."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .server import Refused

SILENT = 300.0
"""Seconds without a heartbeat after which a run counts as dead."""

STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "output"}
"""File of a file_stream request -> where its lines are kept. `wandb-summary.json` has one line that
counts."""

UPSERTED = (
    "displayName",
    "description",
    "notes",
    "tags",
    "groupName",
    "jobType",
    "commit",
    "host",
    "program",
    "repo",
    "sweep",
)
"""Variables of UpsertBucket that are kept as they come."""


@dataclass
class Run:
    """One run. `config` is as it came: every value in `{"value": ...}`; the lines of `streams` are
    JSON texts.

    `before` is the run as it was before its last change, for stale reads.
    """

    entity: str
    project: str
    name: str
    created: float
    heartbeat: float
    told: str = "running"
    exit_code: int | None = None
    stopped: bool = False
    deleted: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(
        default_factory=lambda: {name: [] for name in STREAMS.values()}
    )
    before: Run | None = None

    @property
    def path(self) -> str:
        """`entity/project/id`."""
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def id(self) -> str:
        """The id that mutations name a run by."""
        return base64.b64encode(
            f"Run:v1:{self.name}:{self.project}:{self.entity}".encode()
        ).decode()

    def rows(self, stream: str = "history") -> list[dict[str, Any]]:
        """A stream's lines as values; NaN and Infinity are texts, as the service gives them
        back."""
        return [json.loads(line, parse_constant=str) for line in self.streams[stream]]

    def state(self, now: float) -> str:
        """What the service shows: a silent run has crashed, one that had announced it was
        preempted."""
        if now - self.heartbeat <= SILENT:
            return self.told
        return {"running": "crashed", "preempting": "preempted"}.get(self.told, self.told)

    def begin(self) -> None:
        """A client has begun or resumed this run."""
        self.told, self.exit_code, self.stopped = "running", None, False

    def append(self, sent: dict[str, Any]) -> None:
        """Apply one file_stream request; a heartbeat is an empty one. Any of them brings an ended
        run back to life."""
        for name, chunk in (sent.get("files") or {}).items():
            self.write(name, chunk["offset"], chunk["content"])
        if sent.get("preempting"):
            self.told = "preempting"
        elif self.told != "preempting":
            self.told = "running"
        if sent.get("complete"):
            self.end(sent.get("exitcode") or 0)

    def write(self, name: str, offset: int, lines: list[str]) -> None:
        """Lines replace those from `offset` on. A gap before them means that something was lost,
        which is refused.

        The console may have gaps: a client sends the lines that changed, in any order.
        """
        if name == "wandb-summary.json":
            self.summary = json.loads(lines[-1], parse_constant=str)
        elif name in STREAMS:
            kept = self.streams[STREAMS[name]]
            if name == "output.log":
                kept += [""] * (offset - len(kept))
            if offset > len(kept):
                raise Refused(
                    400, f"{self.path}: {name} has {len(kept)} lines, these begin at {offset}"
                )
            kept[offset : offset + len(lines)] = lines

    def end(self, exit_code: int) -> None:
        """The client is done."""
        failed = (
            "preempted" if self.told == "preempting" else "killed" if self.stopped else "failed"
        )
        self.told, self.exit_code = failed if exit_code else "finished", exit_code

    def upsert(self, variables: dict[str, Any]) -> None:
        """Apply UpsertBucket; what it does not name stays."""
        self.attributes |= {
            name: variables[name] for name in UPSERTED if variables.get(name) is not None
        }
        if variables.get("display_name") is not None:  # the public API's spelling
            self.attributes["displayName"] = variables["display_name"]
        if variables.get("config"):
            self.config = json.loads(variables["config"], parse_constant=str)
        if variables.get("summaryMetrics"):
            self.summary = json.loads(variables["summaryMetrics"], parse_constant=str)
        self.told = variables.get("state") or self.told

    def keys(self) -> dict[str, Any]:
        """`historyKeys`: which keys the history has, how often, and its last step."""
        rows = self.rows()
        counts = Counter(key for row in rows for key in row)
        seen = {
            key: {"typeCounts": [{"type": "number", "count": n}], "monotonic": key == "_step"}
            for key, n in counts.items()
        }
        return {
            "sets": [],
            "keys": seen,
            "lastStep": max((row.get("_step", -1) for row in rows), default=-1),
        }


def place(run_id: str) -> tuple[str, str, str]:
    """(entity, project, name) of a run's id."""
    try:
        _, _, name, project, entity = base64.b64decode(run_id, validate=True).decode().split(":")
    except (binascii.Error, ValueError) as exc:
        raise Refused(400, f"not the id of a run: {run_id}") from exc
    return entity, project, name


def date(seconds: float) -> str:
    """Seconds since 1970 as the service writes dates."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Runs:
    """All runs under a folder, `entity/project/id/run.json`; a second object on the same folder
    finds them again.

    Not for several threads at once. `clock` returns seconds since 1970.
    """

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self.root, self.clock = root, clock
        self.all: dict[tuple[str, str, str], Run] = {}
        for path in sorted(root.glob("*/*/*/run.json")):
            run = loaded(json.loads(path.read_text()))
            self.all[run.entity, run.project, run.name] = run

    def find(self, entity: str, project: str, name: str) -> Run | None:
        """Return a run that exists and was not deleted."""
        run = self.all.get((entity, project, name))
        return None if run is None or run.deleted else run

    def living(self, entity: str, project: str) -> list[Run]:
        """The project's runs, oldest first."""
        return [
            run
            for run in self.all.values()
            if (run.entity, run.project) == (entity, project) and not run.deleted
        ]

    def projects(self, entity: str) -> list[str]:
        """The entity's projects."""
        return sorted({run.project for run in self.all.values() if run.entity == entity})

    def create(self, entity: str, project: str, name: str) -> Run:
        """Create a run; an id that once existed is refused with the service's words."""
        for part in (entity, project, name):
            if not part or part in (".", "..") or "/" in part:
                raise Refused(400, f"not a name: {part!r}")
        if (entity, project, name) in self.all:
            raise Refused(
                409,
                f"run {entity}/{project}/{name} was previously created and deleted; try a new"
                " run id",
            )
        run = self.all[entity, project, name] = Run(
            entity, project, name, self.clock(), self.clock()
        )
        return run

    @contextmanager
    def changing(self, run: Run) -> Iterator[None]:
        """Keep what the block changes; nothing of it if the block raises."""
        old = replace(
            run, streams={name: list(lines) for name, lines in run.streams.items()}, before=None
        )
        old.attributes, old.config, old.summary = (
            dict(run.attributes),
            dict(run.config),
            dict(run.summary),
        )
        try:
            yield
        except BaseException:
            run.__dict__.update(old.__dict__)
            raise
        run.before = old
        self.save(run)

    def save(self, run: Run) -> None:
        """Write the run's file in one step."""
        path = self.folder(run) / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(asdict(replace(run, before=None))))
        os.replace(path.with_suffix(".new"), path)

    def folder(self, run: Run) -> Path:
        """Where the run lies."""
        return self.root / run.entity / run.project / run.name

    def files(self, run: Run) -> dict[str, Path]:
        """The files that were uploaded, by name."""
        top = self.folder(run) / "files"
        return {
            str(path.relative_to(top)): path for path in sorted(top.rglob("*")) if path.is_file()
        }

    def file(self, run: Run, name: str) -> Path:
        """Where an uploaded file lies; names that lead out of the run's folder are refused."""
        top = (self.folder(run) / "files").resolve()
        path = (top / name).resolve()
        if not path.is_relative_to(top):
            raise Refused(400, f"not a file name: {name}")
        return path


def loaded(saved: dict[str, Any]) -> Run:
    """A run from its file; what this version does not know is ignored."""
    return Run(**{f.name: saved[f.name] for f in fields(Run) if f.name in saved})
