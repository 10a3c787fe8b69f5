"""A run's folder: where its files lie, and what they say for `status`, `report` and `logs`. Reads
only, but for the plan."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..component import project_root
from ..errors import CheckpointError, LaunchError, XrunError, did_you_mean
from ..files import number, read_json, room_in, write_bytes
from ..lock import held_by
from ..store.protocol import Head
from . import logs, points
from .plan import Plan, check_run_id, default_home
from .record import RunRecord
from .report import RunReport, report_of, status_of, with_metrics
from .stores import open_store

if TYPE_CHECKING:
    from .stores import AnyStore

_LINE_BYTES = 4096
"""With less room a disk takes no line of a log."""
SWEEP = re.compile(r"-s[0-9a-f]{8}$")
"""How the names of sweeps end, which their boards have."""
STATE_IS_BACK = "Bring the store's files back, or start another run with --again."
"""The way out where state that was committed is not there."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder."""

    path: Path

    @property
    def run(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def plan_file(self) -> Path:
        """The newest plan."""
        return self.path / "plan.json"

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

    @property
    def config(self) -> Path:
        """What the tracker knows of the run's configuration, written when an attempt begins to
        log."""
        return self.path / "config.json"

    @property
    def witness(self) -> Path:
        """The newest commit that this machine knows of."""
        return self.path / "committed.json"

    @property
    def attempts(self) -> Path:
        """The run's attempts, for the process that feeds Weights & Biases."""
        return self.path / "attempts.json"

    @property
    def alerts(self) -> Path:
        """Which events people were told of from here."""
        return self.path / "alerts.json"

    @property
    def last_words(self) -> Path:
        """The sentence with which a launcher of its own (`launcher/detached.py`) has ended."""
        return self.path / "last_words"

    @property
    def smaller(self) -> Path:
        """Of a rehearsal: what its process has made smaller."""
        return self.path / "smaller.json"

    @property
    def cost(self) -> Path:
        """Of a quote: what a step takes, as its process has measured it."""
        return self.path / "cost.json"

    def logs(self, attempt: str) -> Path:
        """What the processes of an attempt have printed."""
        return self.path / "logs" / attempt

    def plan(self) -> Plan:
        """The newest plan.

        Raises:
            LaunchError: there is no such run.
        """
        if not os.path.lexists(self.plan_file):
            others = [each.run for each in runs_in(self.path.parent)]
            near = [run for run in others if run.startswith(f"{self.run}-")]
            hint = (
                f"Of that recipe there {'are' if near[1:] else 'is'} {', '.join(near[:3])}."
                if near
                else did_you_mean(self.run, others)
                or "`xrun status` lists the runs. One elsewhere goes by its address:"
                " hub://owner/name, s3://bucket/prefix/RUN, or a folder."
            )
            raise LaunchError(f"There is no run {self.run} in {self.path.parent}.", hint)
        return Plan.read(
            self.plan_file,
            f"Move it away and start the recipe again with --run {self.run}.",
        )

    def store(self) -> AnyStore:
        """The run's store, to read from; the folder may have been moved since the plan was
        written."""
        return self._store(self.plan())

    def _store(self, plan: Plan) -> AnyStore:
        return open_store(replace(plan, home=str(self.path.parent)), "reader", create=False)

    def head(self) -> Head | None:
        """The newest commit; None where nothing was ever committed.

        Raises:
            CheckpointError: this machine knows of a commit, and the store has none.
            XrunError: it cannot be read now.
        """
        return self.head_in(self.store())

    def head_in(self, store: AnyStore) -> Head | None:
        """The same, of the run's store that is open already."""
        known = commit_in(self.witness)  # first, or a commit that is made meanwhile would be gone
        head = store.head()
        if head is None and known is not None:
            plan = self.plan()
            if plan.run != self.run and not plan.address.durable and self.state.exists():
                raise CheckpointError(
                    f"{self.path} is the folder of the run {plan.run}, under another name; its"
                    " state is there, and nobody finds it so.",
                    f"Name it back: mv {self.path} {self.path.with_name(plan.run)}",
                )
            raise CheckpointError(
                f"The state of the run {self.run} is gone: {self.witness} knows of a commit of step"
                f" {known[0]}, and {plan.where if plan.address.durable else self.state} has none.",
                STATE_IS_BACK,
            )
        return head

    def what_is_safe(self) -> str:
        """What of the run is committed, as this machine knows it, in a sentence; "" where it knows
        of nothing. No store is asked, which may be why the run has stopped."""
        if (known := commit_in(self.witness)) is None:
            return "the state is safe." if self.witness.exists() else ""
        step, trained = known[0], int(number(self.last_point().get("step")))
        lost = f" What was trained after it, to step {trained}, was not saved."
        return f"step {step} is safe.{lost * (trained > step)}"

    def lacks_room(self, save: int = 0) -> str:
        """What it means for a run that trains that its disk has no room for a line, or for a save
        of so many bytes; "" where it has."""
        room = room_in(self.path)
        if room >= max(save, _LINE_BYTES):
            return ""
        what, waits = "is full", "what it logs waits in memory and its"
        if room >= _LINE_BYTES:
            what = f"has {room / 1e6:.3g} MB left, and a save takes {save / 1e6:.3g} MB"
            waits = "its"
        return (
            f"The disk of {self.path} {what}: training goes on, {waits} saves fail. Make room"
            " there; the run saves again by itself then."
        )

    def record(self) -> RunRecord:
        """What is committed; raises XrunError if that cannot be read now."""
        return RunRecord.of(self.head())

    def check_newest(self) -> None:
        """What lies here is the newest that there is of the run, and may be told as such.

        Raises:
            LaunchError: another machine has gone on with it.
            StoreError: nobody can tell.
        """
        head = self.head() if self.plan().address.durable else None
        if head is not None and not self.logs(head.attempt).exists():
            raise LaunchError(
                f"Another machine has gone on with the run {self.run} (attempt {head.attempt}) and"
                " sends its points, these included.",
                "Nothing was sent. Use `xrun sync` on that machine.",
            )

    def points(self) -> list[dict[str, Any]]:
        """Every logged point."""
        return points.read_points(self.metrics)

    def newest_points(self) -> list[dict[str, Any]]:
        """Every point that there is of the run, the store's where another machine has gone on with
        it. Raises XrunError."""
        store = self.store()
        head = self.head_in(store) if self.plan().address.durable else None
        if head is None or self.logs(head.attempt).exists():
            return self.points()
        record = RunRecord.of(head)
        return points.stored(store, record.points, max(record.newest_step, 0))

    def last_point(self) -> dict[str, Any]:
        """The newest point of training; empty if there is none."""
        return points.last_point(self.metrics)

    def last_speed(self) -> dict[str, float]:
        """The newest of what tells how fast it trains, from the end of the log alone."""
        return points.last_speed(self.metrics)

    def log_text(self, attempt: int | None, rank: int) -> str:
        """What one training process of an attempt (counted from 1, default the last) has printed.

        Raises:
            LaunchError: there is no such attempt, or its process has left nothing.
        """
        store = self.store()
        record = self._record_or_nothing(store)
        folders = sorted(path.name for path in (self.path / "logs").glob("*"))
        attempts = [each.id for each in record.attempts] or folders
        number = len(attempts) if attempt is None else attempt
        if not 1 <= number <= len(attempts):
            raise LaunchError(f"{self.run} has {len(attempts)} attempts (got {number}).")
        own = self.logs(attempts[number - 1])
        if (text := logs.here(own, rank)) is not None:
            return text
        if (text := logs.read(store, record.logs, own.name, rank)) is not None:
            return text
        raise LaunchError(f"Attempt {number} of {self.run} has left no log of process {rank}.")

    def _record_or_nothing(self, store: AnyStore) -> RunRecord:
        """What the store has; logs that lie here can be read without it."""
        try:
            return RunRecord.of(self.head_in(store))
        except XrunError:
            if not any((self.path / "logs").glob("*")):
                raise
            return RunRecord()

    def report(self, *, metrics: bool = True, plan: Plan | None = None) -> RunReport:
        """Everything that is known of the run, without `metrics` what its record says; `plan` is
        its newest, where somebody has read it. Raises XrunError if it cannot be read now."""
        plan = plan or self.plan()
        record = RunRecord.of(self.head_in(self._store(plan)))
        status = self.status(record, plan)
        elsewhere = str(plan.model_address or "")
        model, now = str(self.model) if self.model.is_dir() else elsewhere, time.time()
        made = report_of(self.run, str(self.path), status, record, plan, model, now)
        if status == "running":
            save = 0 if plan.address.durable else record.save_bytes
            made = replace(made, no_room=self.lacks_room(save))
        if metrics:
            return with_metrics(made, self.last_point().get("step"), points.seen_in(self.metrics))
        return replace(made, speed=self.last_speed()) if status == "running" else made

    def describe(self, *, metrics: bool = True, plan: Plan | None = None) -> RunReport:
        """`report`, or why it cannot be read."""
        try:
            return self.report(metrics=metrics, plan=plan)
        except XrunError as error:
            return RunReport(self.run, str(self.path), "unreadable", error=str(error))

    def status(self, record: RunRecord, plan: Plan) -> str:
        """See RunReport."""
        return "running" if self.owner_pid() else status_of(record, plan)

    def owner_pid(self) -> int | None:
        """The process that runs this run now."""
        written = held_by(self.lock) or ""
        return int(written) or None if written.isdecimal() and len(written) < 20 else None

    def metrics_now(self, until: int | None = None) -> dict[str, float]:
        """The newest value of every metric, up to a step."""
        newest = self._newest(until).items()
        return {name: value for name, value in newest if not name.startswith(points.SPEED)}

    def _newest(self, until: int | None = None) -> dict[str, float]:
        newest: dict[str, float] = {}
        for point in self.points():
            if until is not None and point["step"] > until:
                continue
            numbers = (item for item in point.items() if isinstance(item[1], int | float))
            newest |= {name: value for name, value in numbers if "/" in name}
        return newest

    def write_plan(self, plan: Plan) -> Path:
        """Keep the plan, replacing the one before as a whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_bytes(self.plan_file, plan.to_json().encode(), private=True)
        return self.plan_file


def commit_in(path: Path) -> tuple[int, str] | None:
    """The commit that a committed.json names; None where there is none, or nobody can read it."""
    known = read_json(path, dict) or {}
    step, head = known.get("step"), known.get("head")
    of_ours = type(step) is int and abs(step) < 2**1000 and isinstance(head, str)
    return (step, head) if of_ours and step is not None and head is not None else None


def home_here(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds the runs' folders of the project that the person stands in."""
    return default_home(project_here(), environ)


def project_here() -> Path:
    """The project that the person stands in, in whichever of its folders. One in the home folder
    itself is none of those below."""
    here = Path.cwd()
    found = project_root(here / "recipes" / "any.yaml")
    if (found / "pyproject.toml").is_file():
        return found
    home = Path("~").expanduser()
    for each in (here, *takewhile(lambda parent: parent != home, here.parents)):
        if any(each.glob("recipes/*.y*ml")) or any(each.glob("runs/*/plan.json")):
            return project_root(each / "recipes" / "any.yaml")
    return found


def name_here(run: str, folder: str | Path) -> str:
    """What names the run of this folder where the person stands: its id in its own project, and
    elsewhere the folder; of one at an address its id."""
    here = "://" in str(folder) or Path(folder).parent.resolve() == home_here().resolve()
    return run if here else str(folder)


def as_typed(run: str, folder: str | Path) -> str:
    """The same, as a shell takes it."""
    return shlex.quote(name_here(run, folder))


def find_run(run: str, *, known: bool = True) -> RunFolder:
    """The folder of a run of this project; without `known` one that may not be there.

    Raises:
        LaunchError: that is no run's id, there is no such run, or it is a sweep.
    """
    check_run_id(run)
    folder = RunFolder(home_here() / run)
    if SWEEP.search(run) and folder.path.is_dir() and not os.path.lexists(folder.plan_file):
        raise no_run_but_a_sweep(run, run, has_board=(folder.path / "state").is_dir())
    if known:
        folder.plan()
    return folder


def no_run_but_a_sweep(what: str, text: str, *, has_board: bool = True) -> LaunchError:
    """That somebody has named a sweep, by this text, where a run is meant; `has_board` says whether
    its board is found by that."""
    hint = "`xrun sweep status RECIPE` tells how far it is, `xrun sweep table RECIPE` its runs"
    more = f"; `xrun status {text}` lists them too, `xrun page {text}` shows them"
    return LaunchError(f"{what} is a sweep, not a run.", f"{hint}{more if has_board else ''}.")


def runs_in(home: Path) -> list[RunFolder]:
    """Every run in a folder of runs, the newest first."""
    written = (path / "plan.json" for path in home.glob("*"))
    plans = [path for path in written if os.path.lexists(path)]
    plans.sort(key=lambda path: path.lstat().st_mtime, reverse=True)
    return [RunFolder(path.parent) for path in plans]
