"""One trial, from wherever it stands until it has to wait or has ended: `xrun RECIPE --trial N`.

Whoever runs it decides nothing alone: it trains to the next rung, puts the result on the board, and
goes on if the board says so. Killed at any moment, it finds at its next start what its run's store
and the board have.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from .. import environment
from ..errors import EX_TEMPFAIL, StoppedOnPurpose, TrainError
from ..machine.stop import end_with_parent
from ..run.plan import Limits, Plan
from ..run.stores import open_store
from .board import Board
from .result import Measure, ended_by_budget, failure_of, result_of
from .spent import WAY_ON, spent, spent_together
from .standing import Result, Standing
from .trials import Trials


@dataclass(frozen=True)
class Course:
    """A trial's way: its `number`, the plan of its run with the addresses that only a network
    tells, the board, and `launch`, which trains a plan and returns its exit code."""

    trials: Trials
    number: int
    plan: Plan
    board: Board
    launch: Callable[[Plan], int]
    say: Callable[[str], None]

    def go(self) -> int:
        """To the rung where it waits for others, or to its end. Returns the exit code: that of the
        run where it has failed or was stopped, else 0.

        Raises:
            StoppedOnPurpose: the sweep's budget is spent.
            XrunError: it cannot be launched, or a store cannot be asked.
        """
        standing = self.board.standing()
        if not standing.may_run(self.number):
            self._tell(standing)
            if standing.state_of(self.number) == "finished" and is_deleted(self.plan):
                self.say(f"Its run {self.plan.run} was deleted, and is trained again.")
                return self.launch(self._limited(self.plan))
        while standing.may_run(self.number):
            rung = standing.rung_of(self.number)
            plan = replace(self.plan, pause=self.trials.parts[rung - 1])
            code, result = 0, result_of(plan, Measure.of(self.trials))
            if result is None:
                code, result = self._launched(plan)
            if result is None:
                # Somebody has stopped it, or its job on a cloud goes on without this command.
                return code or EX_TEMPFAIL
            standing = self.board.post(self.number, rung, result)
            self._tell(standing)
            if result.failed:
                return code or TrainError.exit_code
        return 0

    def _launched(self, plan: Plan) -> tuple[int, Result | None]:
        """Train to the rung of the plan; its exit code, and what it has come to."""
        limited = self._limited(plan)
        code = self.launch(limited)
        result = result_of(plan, Measure.of(self.trials)) or failure_of(plan, code)
        if result is None and limited.limits == plan.limits:
            result = ended_by_budget(plan, code)  # its own, which no other trial has a part in
        return code, result

    def _limited(self, plan: Plan) -> Plan:
        """The plan with no more to spend than the sweep has left: nobody else may be there to end
        it."""
        limits = Limits(**self.trials.sweep.budget.model_dump())
        if not (limits.usd or limits.hours):
            return plan
        known = self.trials.with_proposed(self.board.standing())
        together = spent_together(each.plan for each in known.all())
        if reason := together.exceeds(limits):
            raise StoppedOnPurpose(reason, WAY_ON)
        own = together.left_for(plan.limits, limits, spent(plan))
        return replace(plan, recipe={**plan.recipe, "budget": asdict(own)})

    def _tell(self, standing: Standing) -> None:
        self.say(f"Trial {self.number} {words(self.trials, standing, self.number)}")


def is_deleted(plan: Plan) -> bool:
    """Whether nothing is there of a run that has come to a result. Raises StoreError."""
    return open_store(plan, "reader", create=False).head() is None


def words(trials: Trials, standing: Standing, number: int) -> str:
    """Where a trial stands, for people: what follows its number."""
    state, rung = standing.state_of(number), standing.rung_of(number)
    result, last = standing.result_of(number), len(trials.parts)
    if result is not None and result.failed:
        return f"has failed: {result.failed}"
    known = result is not None and result.value is not None
    value = f"{trials.metric} {result.value:.6g} at step {result.step}" if known and result else ""
    if state == "parked":
        here = len(standing.results.get(rung, {}))
        return f"waits at rung {rung}, {value}: {here} of {len(standing.at(rung))} are there."
    if state == "out":
        return f"is out at rung {rung}, {value}."
    if state == "finished":
        return f"has finished, {value}."
    where = f"to rung {rung} of {last - 1}" if rung < last else "to its end"
    return f"goes on {where}{', ' + value if value else ''}."


def follow_parent() -> None:
    """A trial that the sweep's own command has started ends with it, its state saved. What it
    starts itself has another parent."""
    if environment.PARENT.of():
        end_with_parent(signal.SIGTERM)
        del os.environ[environment.PARENT.name]
