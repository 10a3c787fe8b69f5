"""`Standing`: what a sweep's board says: the results of trials at their rungs, and which go on.

The rules by which trials go on stand here and nowhere else. A result is what a run's committed
points say at a step that follows from the recipe, so whoever computes it finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

FORMAT = 2
"""By format 1 a full rung kept a fraction of its trials rounded down. A board that has begun keeps
its format."""
Numbers = tuple[int, ...]
State = Literal["waits", "parked", "out", "failed", "finished"]
"""`waits`: it may run, to its next rung; `parked`: the rung is not full yet; `out`: others were
better; `failed`: it failed by itself, which is a result."""


@dataclass(frozen=True)
class Result:
    """A trial at a rung: its metric after `step` steps, or None and why it has none."""

    step: int
    value: float | None = None
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the board has it."""
        told = {"step": self.step, "value": self.value, "failed": self.failed or None}
        return {name: each for name, each in told.items() if each is not None}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Result:
        """Read what `to_json` wrote."""
        value = told.get("value")
        return cls(
            int(told["step"]), None if value is None else float(value), told.get("failed", "")
        )


@dataclass(frozen=True)
class Rules:
    """How many trials and rungs (the end is the last one) there are, which of two values is better,
    and of how many trials one goes on by which `method`; "" where all do. `format` is the board's.
    """

    trials: int
    rungs: int = 1
    mode: str = "min"
    method: str = ""
    reduction: float = 1
    format: int = FORMAT

    def kept(self, trials: int) -> int:
        """How many of so many trials go on from a full rung: one more rather than one less."""
        part = round(trials / self.reduction, 9)
        return max(1, math.ceil(part) if self.format > 1 else int(part))


@dataclass(frozen=True)
class Standing:
    """`results` and `decisions` by rung and trial, both counted from 1; a decision says whether the
    trial goes on. Nothing that is decided changes any more, nor does a result that it follows
    from. `proposed` are the values of the trials there are so far, where they follow from
    results."""

    rules: Rules
    results: Mapping[int, Mapping[int, Result]] = field(default_factory=dict)
    decisions: Mapping[int, Mapping[int, bool]] = field(default_factory=dict)
    proposed: tuple[Mapping[str, Any], ...] = ()

    def rung_of(self, trial: int) -> int:
        """The rung that a trial has to reach next, or where it has ended."""
        rung = 1
        while rung < self.rules.rungs and self.decisions.get(rung, {}).get(trial):
            rung += 1
        return rung

    def state_of(self, trial: int) -> State:
        """See State."""
        rung = self.rung_of(trial)
        result = self.results.get(rung, {}).get(trial)
        if result is None:
            return "waits"
        if result.failed:
            return "failed"
        if rung == self.rules.rungs:
            return "finished"
        return "out" if trial in self.decisions.get(rung, {}) else "parked"

    def may_run(self, trial: int) -> bool:
        """Whether it has something to do: one that has failed may be tried again by whoever names
        it, until others were compared to it."""
        undecided = trial not in self.decisions.get(self.rung_of(trial), {})
        return self.state_of(trial) == "waits" or (self.state_of(trial) == "failed" and undecided)

    def result_of(self, trial: int) -> Result | None:
        """The newest result of a trial."""
        known = [
            self.results[rung][trial]
            for rung in sorted(self.results)
            if trial in self.results[rung]
        ]
        return known[-1] if known else None

    def at(self, rung: int) -> Numbers:
        """The trials that are to reach a rung, as far as that is decided."""
        if rung == 1:
            return tuple(range(1, self.rules.trials + 1))
        return tuple(sorted(n for n, on in self.decisions.get(rung - 1, {}).items() if on))

    def ranked(self, rung: int) -> Numbers:
        """The trials with a value at a rung, the best first; of equal ones the smaller number."""
        sign = 1.0 if self.rules.mode == "min" else -1.0
        values = {
            n: each.value for n, each in self.results.get(rung, {}).items() if not each.failed
        }
        return tuple(sorted(values, key=lambda n: (sign * (values[n] or 0.0), n)))

    @property
    def best(self) -> int | None:
        """The best of the trials that have come to their end."""
        return next(iter(self.ranked(self.rules.rungs)), None)

    @property
    def is_complete(self) -> bool:
        """Whether no trial has anything left to do."""
        return all(
            self.state_of(n) not in ("waits", "parked") for n in range(1, self.rules.trials + 1)
        )

    def with_result(self, trial: int, rung: int, result: Result) -> Standing:
        """What follows from a trial's result at the rung that it is at: the standing as it is where
        the result is known and stays. A failure may be followed by what somebody has mended, until
        something was decided from it."""
        known = self.results.get(rung, {}).get(trial)
        decided = trial in self.decisions.get(rung, {})
        if rung != self.rung_of(trial) or decided or (known is not None and not known.failed):
            return self
        if result.value is not None and not math.isfinite(result.value):
            result = replace(result, value=None, failed=f"its metric is {result.value}")
        at_rung = {**self.results.get(rung, {}), trial: result}
        told = replace(self, results={**self.results, rung: at_rung})
        return told._decided(trial, rung) if rung < self.rules.rungs else told

    def _decided(self, trial: int, rung: int) -> Standing:
        """With what is decided at a rung now that this trial's result is there."""
        if self.rules.method == "asha":
            new = self._asha(trial, rung)
        elif self.rules.method == "halving" and set(self.at(rung)) <= self.results[rung].keys():
            new = self._halved(rung)
        else:
            return self
        before = self.decisions.get(rung, {})
        return replace(self, decisions={**self.decisions, rung: {**before, **new}})

    def _halved(self, rung: int) -> dict[int, bool]:
        """The rung is full: so many of its trials go on, none of them one that has failed."""
        here = self.at(rung)
        kept = self.ranked(rung)[: self.rules.kept(len(here))]
        return {number: number in kept for number in here}

    def _asha(self, trial: int, rung: int) -> dict[int, bool]:
        """It goes on if it is among the best of those that have a value here by now."""
        if self.results[rung][trial].failed:
            return {}  # whoever mends it may try again
        ranked = self.ranked(rung)
        return {trial: ranked.index(trial) < max(1, len(ranked) // self.rules.reduction)}

    def to_json(self) -> dict[str, Any]:
        """As the board has it."""
        return {
            "format": self.rules.format,
            "results": {
                str(rung): {str(trial): each.to_json() for trial, each in sorted(found.items())}
                for rung, found in sorted(self.results.items())
            },
            "decisions": {
                str(rung): {str(trial): on for trial, on in sorted(made.items())}
                for rung, made in sorted(self.decisions.items())
            },
            **({"proposed": [dict(each) for each in self.proposed]} if self.proposed else {}),
        }

    @classmethod
    def from_json(cls, rules: Rules, told: Mapping[str, Any]) -> Standing:
        """Read what `to_json` wrote; its format goes for the rules. Raises ValueError, TypeError,
        KeyError or AttributeError."""
        results = {
            int(rung): {int(trial): Result.from_json(each) for trial, each in found.items()}
            for rung, found in told.get("results", {}).items()
        }
        decisions = {
            int(rung): {int(trial): bool(on) for trial, on in made.items()}
            for rung, made in told.get("decisions", {}).items()
        }
        proposed = tuple(dict(each) for each in told.get("proposed", ()))
        return cls(replace(rules, format=int(told["format"])), results, decisions, proposed)
