"""The trials as rows, for `xrun check` and `xrun sweep`: what each changes, how far it is, what it
has come to and what it has cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..run.folder import RunFolder
from .spent import Spent, spent
from .standing import Standing
from .trials import Trial, Trials


@dataclass(frozen=True)
class Row:
    """A trial. `state` is `running` or what the board says, `rung` the one that it is to reach,
    `step` and `value` its newest result, `failed` why it has none. `hours` and `usd` are None where
    nothing is known."""

    trial: int
    run: str
    values: Mapping[str, Any]
    state: str = "waits"
    rung: int = 1
    step: int | None = None
    value: float | None = None
    failed: str = ""
    hours: float | None = None
    usd: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def rows(all_: Sequence[Trial], standing: Standing, *, costs: bool = True) -> Iterator[Row]:
    """A row for each trial, by its number. Raises XrunError where a store cannot be asked."""
    for each in all_:
        number, plan = each.number, each.plan
        result, state = standing.result_of(number), str(standing.state_of(number))
        if state == "waits" and RunFolder(plan.folder).owner_pid() is not None:
            state = "running"
        cost = spent(plan) if costs else Spent()
        yield Row(
            trial=number,
            run=plan.run,
            values=each.values,
            state=state,
            rung=standing.rung_of(number),
            step=result.step if result else None,
            value=result.value if result else None,
            failed=result.failed if result else "",
            hours=cost.hours or None,
            usd=cost.usd,
        )


def cells(trials: Trials, found: Sequence[Row], *, results: bool = True) -> list[list[str]]:
    """The rows as texts, with the head before them; without `results` what is known before anything
    was trained."""
    keys = list(trials.sweep.parameters)
    names = {key: _short(key, keys) for key in keys}
    head = ["trial", *names.values(), "run"]
    head += ["state", "step", trials.metric, "hours"] if results else []
    known_usd = results and any(row.usd is not None for row in found)
    head += ["usd"] if known_usd else []
    lines = [head]
    for row in found:
        line = [str(row.trial), *(_cell(row.values[key]) for key in keys), row.run]
        if results:
            state = f"{row.state} ({row.rung})" if row.state in ("parked", "out") else row.state
            hours = row.hours and f"{row.hours:.3f}"
            line += [state, _cell(row.step), _cell(row.value), _cell(hours)]
        line += [_cell(row.usd and f"{row.usd:.2f}")] if known_usd else []
        lines.append(line)
    return lines


def space_text(trials: Trials) -> Iterator[str]:
    """Of what trials that follow from results will be made."""
    yield f"{trials.count} trials, each proposed from what those before it have come to, of"
    for key, each in trials.sweep.parameters.items():
        if each.values:
            yield f"  {key}: {', '.join(map(_cell, each.values))}"
            continue
        evenly = ", evenly in factors" if each.log else ""
        points = f", {each.points} values" if each.points else ""
        yield f"  {key}: {_cell(each.min)} to {_cell(each.max)}{evenly}{points}"


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, as far as it is this key's alone."""
    parts = key.split(".")
    for first in range(len(parts) - 1, 0, -1):
        short = ".".join(parts[first:])
        if sum(f".{other}".endswith(f".{short}") for other in keys) == 1:
            return short
    return key


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
