"""What is known of a run, for `status` and `report`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from .plan import Plan
from .points import SPEED, Seen, speed_of, usual_speed
from .receipt import NO_RECEIPT, Receipt, receipt_of
from .record import AttemptRecord, Finished, RunRecord

OVER = ("finished", "failed", "stopped", "killed", "unreadable")
"""How a run is that goes on with nothing by itself."""


def speed_words(speed: Mapping[str, float]) -> Iterator[str]:
    """What a run's speed is, for people: rates, and what the device does meanwhile."""
    for name, unit in (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s")):
        if name in speed:
            yield f"{_three_digits(speed[name])} {unit}"
    if "mfu" in speed:
        yield f"{100 * speed['mfu']:.1f} % MFU"
    if "memory_gib" in speed:
        yield f"{speed['memory_gib']:.3g} GiB"
    if "gpu_utilization" in speed:
        yield f"GPU {speed['gpu_utilization']:.0f} %"
    step, waited = speed.get("step_seconds", 0.0), speed.get("data_wait_seconds", 0.0)
    if step and waited >= 0.01 * step:
        yield f"{100 * waited / step:.0f} % waiting for data"


def left_words(seconds: float | None) -> str:
    """What is left of a run, for people; "" where nobody knows."""
    return duration_words(seconds) if seconds is not None else ""


def duration_words(seconds: float) -> str:
    """In the unit that says most: 80 s, 12 min, 5 h, 3 days."""
    for limit, unit, name in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(0.0, seconds) / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class RunReport:
    """Everything that is known of a run; of one that cannot be read only the `error`.

    `status` is `running`, `finished`, `failed` (something is to be mended first), `stopped` (the
    same command goes on, after a spent budget with a larger one), `killed` (it does as well; the
    last attempt is gone and has recorded no end), `unreadable` or `unreachable` (its store does not
    answer), and on a cloud SkyPilot's word for the job while it lives.
    `step` is the newest kept checkpoint's, of `steps` in all where that is known; `best` has
    `metric`, `value` and `step` of the best evaluation; `recipe` is the resolved one. `committed`
    is when that step was (seconds since 1970), `logged_step` the newest logged point's. `speed` is
    what `training/speed.py` names: the newest while it runs, afterwards the median over the run
    (of memory the most); `losses` are some of the training's, each with its step. `export_failed`
    is why a finished run has no model, or one that is not published. `receipt` is what it has cost
    until now; `sources` the digest of each file of its components by its place in the project.
    `no_room` says that its disk has no room for a save, while it runs here.
    """

    run: str
    folder: str
    status: str
    step: int | None = None
    steps: int | None = None
    best: Mapping[str, Any] | None = None
    logged_step: int | None = None
    checkpoints: tuple[int, ...] = ()
    committed: float | None = None
    rejected: tuple[int, ...] = ()
    exact: bool = True
    attempts: tuple[AttemptRecord, ...] = ()
    steps_recomputed: int = 0
    seconds_lost: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    speed: Mapping[str, float] = field(default_factory=dict)
    losses: Sequence[tuple[int, float]] = ()
    weights_sha256: str | None = None
    model: str | None = None
    export_failed: str | None = None
    error: str = ""
    receipt: Receipt = NO_RECEIPT
    recipe: Mapping[str, Any] | None = None
    no_room: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def last_seen(self) -> float:
        """The newest sign of life, in seconds since 1970; 0 where there is none."""
        signs = [self.committed or 0.0, *(attempt.last_known for attempt in self.attempts[-1:])]
        return max(signs)

    @property
    def seconds_left(self) -> float | None:
        """What is left to train takes so long at the newest speed, without evaluations, saves and
        waiting; None where that is not known, or it is over."""
        step = self.speed.get("step_seconds")
        if self.status in OVER or not step or not self.steps:
            return None
        return step * max(0, self.steps - max(self.step or 0, self.logged_step or 0))

    @property
    def lacks(self) -> str:
        """What a finished run does not have; "" for nothing. `export_failed` says why, unless its
        model was made and somebody has deleted it."""
        if self.export_failed:
            return "model not published" if self.model else "no model"
        return "model deleted" if self.status == "finished" and not self.model else ""

    @property
    def knows_what_was_lost(self) -> bool:
        """Whether the numbers of what was lost are whole: what a machine had computed that has gone
        with its log, nobody knows."""
        return all(
            after.steps_recomputed is not None
            for before, after in pairwise(self.attempts)
            if before.was_lost
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        if self.error:
            names = ("run", "status", "error", "folder")
            return {name: getattr(self, name) for name in names}
        told: dict[str, Any] = {
            name: value for name, value in vars(self).items() if name not in ("error", "losses")
        }
        told |= {"usd": self.receipt.usd, "receipt": self.receipt.to_json()}
        told["seconds_left"] = self.seconds_left
        lists = {"checkpoints": list(self.checkpoints), "rejected": list(self.rejected)}
        return {**told, **lists, "attempts": [attempt.to_json() for attempt in self.attempts]}


def report_of(
    run: str,
    folder: str,
    status: str,
    record: RunRecord,
    plan: Plan | None,
    model: str,
    now: float,
) -> RunReport:
    """What the record of a run says `now`; `model` is where a finished run's is, "" if it is not
    there any more, and its plan says how far it is to go."""
    attempts, finished = record.attempts, record.finished
    times = [checkpoint.time for checkpoint in record.checkpoints]
    return RunReport(
        run=run,
        folder=folder,
        status=status,
        step=record.newest.step if record.newest else None,
        steps=_steps(record, plan),
        best=_best(record, plan),
        recipe=plan.recipe if plan else record.recipe,
        sources=record.sources,
        checkpoints=tuple(checkpoint.step for checkpoint in record.checkpoints),
        committed=max(times, default=None),
        rejected=record.rejected,
        exact=record.newest is None or record.newest.exact,
        attempts=attempts,
        steps_recomputed=sum(attempt.steps_recomputed or 0 for attempt in attempts),
        seconds_lost=round(sum(attempt.seconds_lost or 0.0 for attempt in attempts), 3),
        weights_sha256=finished.weights_sha256 if finished else None,
        model=model or None if finished and _made(finished) else None,
        export_failed=finished.export_failed if finished else None,
        receipt=receipt_of(run, attempts, now, running=status == "running"),
    )


def _made(finished: Finished) -> bool:
    return finished.is_made or not finished.export_failed


def _steps(record: RunRecord, plan: Plan | None) -> int | None:
    if record.finished is not None and (plan is None or record.has_reached_the_end(plan)):
        return record.finished.step
    return (plan.last_step(record.steps_per_epoch) or None) if plan else None


def _best(record: RunRecord, plan: Plan | None) -> dict[str, Any] | None:
    found = record.newest.numbers.get("best") if record.newest else None
    if not found or plan is None:
        return None
    metric = plan.recipe["train"].get("evaluate", {}).get("metric", "loss")
    metric = found.get("metric", metric)  # an older xrun did not say by which it was chosen
    return {"metric": f"val/{metric}", "step": found["step"], "value": found["value"]}


def with_metrics(report: RunReport, step: int | None, seen: Seen) -> RunReport:
    """The report with the newest value of every metric, the step of the newest point, how fast it
    trains or has trained, and the losses."""
    own = {name: value for name, value in seen.newest.items() if not name.startswith(SPEED)}
    runs = report.status == "running"
    return replace(
        report,
        logged_step=step,
        metrics=own,
        speed=speed_of(seen.newest) if runs else usual_speed(seen.some),
        losses=tuple(
            (each["step"], each["train/loss"]) for each in seen.some if "train/loss" in each
        ),
    )


def status_of(record: RunRecord, plan: Plan | None) -> str:
    """How a run is that nobody trains now; without a plan by what its record says alone."""
    done = record.has_reached_the_end(plan) if plan else record.finished is not None
    if done:
        return "finished"
    if not record.attempts:
        return "stopped"
    last = record.attempts[-1]
    if last.end is None and last.code is None:
        return "killed"
    return "stopped" if last.may_be_followed else "failed"
