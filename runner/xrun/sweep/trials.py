"""`Trials`: a recipe with a sweep -> the plan of each trial, and the sweep's own id.

A trial is the run that `xrun RECIPE -s KEY=VALUE ...` means, so it keeps its id, its state and its
bits whether the sweep knows it or not, and two sweeps that meet in a trial share the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from blake3 import blake3

from ..errors import LaunchError, Problem, RecipeError
from ..launcher.job import known_run
from ..recipe.load import in_order, load_recipe, place_of
from ..recipe.schema import Sweep
from ..run.origin import Origin
from ..run.plan import Plan, make_plan
from .space import Values, every_value, size_of, values_of
from .standing import Standing


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its number from 1 on, what it changes, and its plan."""

    number: int
    values: Values
    plan: Plan

    @property
    def words(self) -> str:
        """What it changes, for people."""
        return ", ".join(f"{key}={_text(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Trials:
    """All trials of a recipe, or those that are proposed so far. `base` is the plan of the recipe
    without its sweep, `id` what names the sweep's board: it follows from the recipe, and changes
    with whatever decides which trials there are and which of them go on."""

    sweep: Sweep
    base: Plan
    values: tuple[Values, ...]
    path: Path
    overrides: tuple[str, ...]
    origin: Origin | None = None
    processes: int | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        overrides: Sequence[str] = (),
        origin: Origin | None = None,
        processes: int | None = None,
    ) -> Trials:
        """The trials of the recipe in this file.

        Raises:
            RecipeError: it is wrong, or has no sweep.
        """
        recipe = load_recipe(path, overrides)
        if recipe.sweep is None:
            hint = "Add `sweep: {parameters: {train.optimizer.lr: [1e-3, 3e-3]}}`."
            raise RecipeError([Problem(str(path), 0, 0, "sweep", "there is none", hint=hint)])
        alone = recipe.model_copy(update={"sweep": None, "publish": None})
        base = make_plan(alone, path, overrides=overrides, origin=origin, processes=processes)
        values = tuple(values_of(recipe.sweep, recipe.train.seed))
        return cls(recipe.sweep, base, values, path, tuple(overrides), origin, processes)

    @property
    def count(self) -> int:
        """How many trials there are in the end."""
        if self.sweep.method != "bayes":
            return len(self.values)
        return int(min(self.sweep.max_trials or 0, size_of(self.sweep)))

    @property
    def are_open(self) -> bool:
        """Whether more trials will be proposed."""
        return len(self.values) < self.count

    def with_values(self, values: Sequence[Values]) -> Trials:
        """The trials with these values."""
        return replace(self, values=tuple(values))

    def with_proposed(self, standing: Standing) -> Trials:
        """The trials that are on the board so far, where they follow from results."""
        return self.with_values(standing.proposed) if self.sweep.method == "bayes" else self

    @property
    def own_plan(self) -> Plan:
        """The plan of a run of the sweep's own id: where its board lies."""
        return replace(self.base, run=self.id)

    def placed(self, plan: Plan) -> Trials:
        """The trials of whoever has this plan of the sweep's own: on the Hub each has a repository
        of its name with the same owner."""
        return replace(self, base=replace(self.base, owner=plan.owner, store=plan.store))

    @cached_property
    def id(self) -> str:
        """The sweep's, which is no run's."""
        told = self.sweep.model_dump(mode="json")
        deciding = {name: told[name] for name in ("parameters", "method", "max_trials", "stop")}
        train = self.base.recipe["train"]
        content = {
            **deciding,
            "metric": [self.metric, self.mode, self.counts_best],
            "base": self.base.digest,
            "length": [train["steps"], train["epochs"], train["evaluate"]["every"]],
        }
        digest = blake3(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.base.name}-s{digest[:8]}"

    @property
    def metric(self) -> str:
        """What decides, as the evaluation names it."""
        return self.sweep.metric or str(self.base.recipe["train"]["evaluate"]["metric"])

    @property
    def mode(self) -> str:
        """Whether less (`min`) or more (`max`) of it is better."""
        own = self.base.load_recipe().train.evaluate
        if self.sweep.metric in (None, own.metric) and self.sweep.mode is None:
            return own.better
        return self.sweep.mode or own.model_copy({"metric": self.metric, "mode": None}).better

    @property
    def counts_best(self) -> bool:
        """Whether the best value of a trial counts, which is what its model is then made of."""
        train = self.base.recipe["train"]
        return bool(train["export"] == "best" and self.metric == train["evaluate"]["metric"])

    @property
    def parts(self) -> tuple[float, ...]:
        """For each rung, of how many parts of a trial the first is done; 0 for the end, which is
        the last rung."""
        return (*(self.sweep.stop.parts if self.sweep.stop else ()), 0)

    def trial(self, number: int, publish: str = "null") -> Trial:
        """One of them. Its model is published where somebody has chosen it.

        Raises:
            LaunchError: there is no trial of this number.
            RecipeError: its recipe is wrong, each problem at the value's place in the sweep.
        """
        if not 1 <= number <= len(self.values):
            what = f"The sweep of {self.path} has {len(self.values)} trials"
            if self.are_open and number <= self.count:
                what = f"{what} so far, and others follow from their results"
            raise LaunchError(f"{what} (got {number}).", f"`xrun {self.lister}` lists them.")
        values = self.values[number - 1]
        own = [f"{key}={_text(value)}" for key, value in values.items()]
        overrides = [*self.overrides, "sweep=null", f"publish={publish}", *own]
        try:
            recipe = load_recipe(self.path, overrides)
            plan = make_plan(
                recipe,
                self.path,
                overrides=overrides,
                origin=self.origin,
                processes=self.processes,
            )
        except RecipeError as error:
            told = [self._in_the_sweep(each, own, number) for each in error.problems]
            raise RecipeError(told) from None
        if plan.address.on_hub and self.base.address.name:  # somebody has asked whose it is
            plan = plan.placed(self.base.address.owner)
        return Trial(number, values, replace(known_run(plan) or plan, sweep=self.id))

    @property
    def lister(self) -> str:
        """The command that lists them."""
        return "check" if self.sweep.method != "bayes" else "sweep table"

    def check(self) -> None:
        """Raises RecipeError as `all` does; of trials that are not there yet, for each value that
        they could have."""
        if self.sweep.method != "bayes":
            self.all()
            return
        for values in every_value(self.sweep):
            self.with_values([values]).trial(1)

    def all(self) -> list[Trial]:
        """Every trial, once it is certain that all of them can be made.

        Raises:
            RecipeError: the recipes of some are wrong, or two of them are one run.
        """
        made: dict[str, Trial] = {}
        problems: list[Problem] = []
        for number in range(1, len(self.values) + 1):
            try:
                trial = self.trial(number)
            except RecipeError as error:
                problems += error.problems
                continue
            other = made.setdefault(trial.plan.run, trial)
            if other is not trial:
                problems.append(self._one_run(other, trial))
        if problems:
            raise RecipeError(in_order(problems))
        return list(made.values())

    def _one_run(self, one: Trial, other: Trial) -> Problem:
        mark = place_of("sweep.parameters", self.path, self.overrides)
        what = f"trials {one.number} ({one.words}) and {other.number} ({other.words}) are one run"
        hint = "Leave out one of the values: they mean the same."
        return mark.problem("sweep.parameters", f"{what}, {one.plan.run}", hint=hint)

    def _in_the_sweep(self, problem: Problem, own: Sequence[str], number: int) -> Problem:
        """A problem of a trial's recipe where a person can act: the value in the sweep."""
        for override in own:
            key = override.partition("=")[0]
            if problem.path in (f"-s {override}", f"-s {key}=***") or problem.key == key:
                mark = place_of(self._key(key, number), self.path, self.overrides)
                return replace(problem, path=mark.path, line=mark.line, column=mark.column)
        return problem

    def _key(self, key: str, number: int) -> str:
        """Where the sweep says what this key is in a trial."""
        choices, value = self.sweep.parameters[key].values, self.values[number - 1][key]
        place = f".{choices.index(value)}" if value in choices else ""
        return f"sweep.parameters.{key}{place}"


def _text(value: Any) -> str:
    """A value as an override writes it."""
    return json.dumps(value, ensure_ascii=False)
