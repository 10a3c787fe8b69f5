"""A sweep as its board tells it to whoever has no recipe: the values of its trials, and where they
stand. Boards are found by what is known of runs, or by their names beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..run.listing import board_at
from ..run.report import RunReport
from ..run.stores import BOARD
from ..store.protocol import Head
from .importance import importance
from .space import Values
from .standing import Rules, Standing
from .table import Row


@dataclass(frozen=True)
class ToldSweep:
    """`values` are those of the trials, by their numbers from 1 on."""

    id: str
    metric: str
    mode: str
    values: tuple[Values, ...]
    standing: Standing

    @classmethod
    def of(cls, head: Head) -> ToldSweep | None:
        """What a board's head says; None where that is damaged, or a newer xrun's."""
        try:
            told: Any = head.record[BOARD]
            values = tuple(dict(each) for each in told["trials"])
            rungs = [int(rung) for rung in (*told.get("results", ()), *told.get("decisions", ()))]
            rules = Rules(
                trials=len(values),
                rungs=int(told.get("rungs") or max(rungs, default=1)),
                mode=str(told["mode"]),
                method=str(told.get("method") or ""),
                reduction=float(told.get("reduction") or 1),
            )
            standing = Standing.from_json(rules, told)
            return cls(head.run, str(told["metric"]), rules.mode, values, standing)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @property
    def name(self) -> str:
        """That of its recipe."""
        return self.id.rpartition("-s")[0]

    def rows(self, reports: Sequence[RunReport], own: Mapping[str, str]) -> list[Row]:
        """A row for each trial, with its run where that is among the reports: one of the sweep's
        recipe with the trial's values. `own` are the sweeps of runs whose plans name one, which
        decides where several have them."""
        found = []
        for number, values in enumerate(self.values, 1):
            report = self._run_of(values, reports, own)
            result, state = self.standing.result_of(number), str(self.standing.state_of(number))
            if state == "waits" and report is not None and report.status == "running":
                state = "running"
            receipt = report.receipt if report is not None and report.receipt.lines else None
            found.append(
                Row(
                    trial=number,
                    run=report.run if report else "",
                    values=values,
                    state=state,
                    rung=self.standing.rung_of(number),
                    step=result.step if result else None,
                    value=result.value if result else None,
                    failed=result.failed if result else "",
                    hours=receipt.hours if receipt else None,
                    usd=receipt.usd if receipt else None,
                )
            )
        return found

    def _run_of(
        self, values: Values, reports: Sequence[RunReport], own: Mapping[str, str]
    ) -> RunReport | None:
        fitting = [
            report
            for report in reports
            if report.recipe
            and report.recipe.get("name") == self.name
            and all(_has(report.recipe, key.split("."), value) for key, value in values.items())
        ]
        fitting.sort(key=lambda each: (own.get(each.run) == self.id, each.last_seen))
        return fitting[-1] if fitting else None

    def importance(self) -> dict[str, float | None]:
        """Of each parameter, by the newest results of the trials; one that failed is the worst.
        None where they are too few to tell."""
        worst = float("inf") if self.mode == "min" else float("-inf")
        results: list[float | None] = []
        for number in range(1, len(self.values) + 1):
            result = self.standing.result_of(number)
            results.append((worst if result.value is None else result.value) if result else None)
        return importance(self.values, results)


def _has(recipe: Any, key: Sequence[str], value: Any) -> bool:
    """Whether a resolved recipe has this value there; of a mapping what is said of it, and defaults
    besides."""
    for part in key:
        recipe = recipe.get(part) if isinstance(recipe, Mapping) else None
    if isinstance(value, Mapping):
        return all(_has(recipe, [name], inner) for name, inner in value.items())
    return bool(recipe == value)


def sweep_at(where: str) -> tuple[ToldSweep, str] | None:
    """The sweep whose board lies at an address, or that has this id in this project, and the place
    where its trials are; None if there is none. Raises XrunError."""
    at = board_at(where)
    told = ToldSweep.of(at[0]) if at is not None else None
    return None if at is None or told is None else (told, at[1])
