"""What a trial has come to: its result at a rung, as its run's store tells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EX_TEMPFAIL, AttemptEnd, StoppedOnPurpose
from ..run import points
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..run.record import RunRecord
from ..run.stores import open_store
from ..store.protocol import Head, Store
from .standing import Result
from .trials import Trials


@dataclass(frozen=True)
class Measure:
    """How trials are compared: by the newest value of a metric, or by the `best` so far."""

    metric: str
    mode: str
    best: bool = False

    @classmethod
    def of(cls, trials: Trials) -> Measure:
        """How those of a sweep are."""
        return cls(trials.metric, trials.mode, trials.counts_best)

    def result(self, logged: Iterable[Mapping[str, Any]], step: int) -> Result:
        """The result of a run with these points after so many steps."""
        name = f"val/{self.metric}"
        values = [float(each[name]) for each in logged if name in each and each["step"] <= step]
        finite = [value for value in values if math.isfinite(value)]
        if self.best and finite:
            return Result(step, min(finite) if self.mode == "min" else max(finite))
        if not values:
            return Result(step, failed=f"it has no {name} after step {step}")
        if not math.isfinite(values[-1]):
            return Result(step, failed=f"its {name} is {values[-1]}")
        return Result(step, values[-1])


def result_of(plan: Plan, measure: Measure) -> Result | None:
    """The result of a trial at the rung to which its plan goes; None while it is not there. Raises
    XrunError if that cannot be told now."""
    store = open_store(plan, "reader", create=False)
    head = store.head()
    if head is None:
        return None
    record = RunRecord.of(head)
    step = plan.pause_step(record.steps_per_epoch)
    if step is None or record.newest_step < step:
        if record.finished is None or not record.has_reached_the_end(plan):
            return None
        step = record.finished.step  # it has lost its patience before the rung
    return measure.result(_points(plan, store, head, record), step)


def failure_of(plan: Plan, code: int) -> Result | None:
    """That a trial has failed by itself, after it has ended with this code; None where something
    else has ended it: somebody, the budget, a store or an account. Raises XrunError."""
    head = open_store(plan, "reader", create=False).head()
    record = RunRecord.of(head)
    last = record.attempts[-1] if record.attempts else None
    if code in (0, EX_TEMPFAIL) or last is None or last.end != AttemptEnd.OWN:
        return None
    return Result(max(record.newest_step, 0), failed=last.reason or f"it ended with {code}")


def ended_by_budget(plan: Plan, code: int) -> Result | None:
    """That a trial has spent the recipe's own budget, which is a result as well."""
    record = RunRecord.of(open_store(plan, "reader", create=False).head())
    reason = (record.attempts[-1].reason or "") if record.attempts else ""
    if code != StoppedOnPurpose.exit_code or not reason.startswith("budget."):
        return None
    return Result(max(record.newest_step, 0), failed=reason)


def _points(plan: Plan, store: Store, head: Head, record: RunRecord) -> list[points.Point]:
    """Every point that is committed of the run, from this machine where it trained last."""
    folder = RunFolder(plan.folder)
    if not plan.address.durable or folder.logs(head.attempt).exists():
        return folder.points()
    return points.stored(store, record.points, max(record.newest_step, 0))
