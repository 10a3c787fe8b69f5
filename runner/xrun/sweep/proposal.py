"""What `method: bayes` tries next: proposals of Optuna's TPE sampler, each on the board before its
trial starts, so that nobody proposes anew what was proposed.

A proposal follows from the recipe's seed and from what the board has then: the values and results
of the trials before it. Nothing else is remembered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LaunchError, RecipeError
from ..recipe.rules import MOST_TRIALS
from ..recipe.schema import Parameter
from .board import Board
from .space import Values, combinations, size_of
from .standing import Standing
from .trials import Trials

if TYPE_CHECKING:
    import optuna

_TRIES = 100
"""Proposals until one is a run that is not there yet."""


def propose(trials: Trials, board: Board, runs: Collection[str] = ()) -> Trials:
    """The trials with one more, which is committed on the board, and whose run is none of `runs`,
    the trials'; with those that are there where another process has proposed meanwhile.

    Raises:
        LaunchError: every combination is a trial already.
        RecipeError: every other one is no recipe.
        StoreError: the board cannot be reached.
    """

    def with_one_more(standing: Standing) -> Standing:
        if len(trials.values) < len(standing.proposed) or not trials.are_open:
            return standing
        values = _next(trials, standing, runs)
        return replace(standing, proposed=(*standing.proposed, values))

    return trials.with_proposed(board.change(with_one_more))


def _next(trials: Trials, standing: Standing, runs: Collection[str]) -> Values:
    """The values of the next trial: the first proposal that is a run, and none that is there."""
    number, wrong = len(trials.values) + 1, None
    seen = set(map(_written, trials.values))
    for values in _candidates(trials, standing):
        if (written := _written(values)) in seen:
            continue
        seen.add(written)
        try:
            made = trials.with_values((*trials.values, values)).trial(number)
        except RecipeError as error:
            wrong = error
            continue
        if made.plan.run not in runs:
            return values
    if wrong is not None:
        raise wrong
    what = f"The sweep of {trials.path} has no combination left after {number - 1} trials"
    raise LaunchError(f"{what}.", f"Set sweep.max_trials to {number - 1}.")


def _written(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _candidates(trials: Trials, standing: Standing) -> Iterator[Values]:
    """What Optuna proposes, one after another, and then whatever is left of a small space."""
    import optuna

    seed = f"xrun sweep {trials.base.recipe['train']['seed']} {len(trials.values)}"
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)
    direction: Literal["minimize", "maximize"]
    direction = "minimize" if trials.mode == "min" else "maximize"
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each study
    study = optuna.create_study(sampler=sampler, direction=direction)
    space = {key: _distribution(each) for key, each in trials.sweep.parameters.items()}
    study.add_trials(
        [_told(trials, standing, each, space) for each in range(1, len(trials.values) + 1)]
    )
    for _ in range(_TRIES):
        asked = study.ask(space)  # one that is of no use stays there, and the next keeps away
        yield {
            key: _value(each, asked.params[key]) for key, each in trials.sweep.parameters.items()
        }
    if size_of(trials.sweep) <= MOST_TRIALS:
        yield from combinations(trials.sweep)


def _told(
    trials: Trials, standing: Standing, number: int, space: dict[str, Any]
) -> optuna.trial.FrozenTrial:
    """What Optuna hears of a trial: a value at its end, or at the last rung that it has come to,
    or that it has failed, or that it runs."""
    from optuna.trial import TrialState, create_trial

    values, result = trials.values[number - 1], standing.result_of(number)
    params = {key: _param(each, values[key]) for key, each in trials.sweep.parameters.items()}
    told: dict[str, Any] = {"params": params, "distributions": space}
    if result is None:
        return create_trial(state=TrialState.RUNNING, **told)
    if result.value is None:
        return create_trial(state=TrialState.FAIL, **told)
    if standing.state_of(number) == "finished":
        return create_trial(state=TrialState.COMPLETE, value=result.value, **told)
    reached = {result.step: result.value}
    return create_trial(state=TrialState.PRUNED, intermediate_values=reached, **told)


def _distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """A list is its places, in no order; points of a range are places in their order; else it is
    the range itself."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if parameter.values:
        return CategoricalDistribution(range(len(parameter.values)))
    if parameter.choices is not None:
        return IntDistribution(0, len(parameter.choices) - 1)
    low, high = parameter.min, parameter.max
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=parameter.log)
    return FloatDistribution(low or 0.0, high or 0.0, log=parameter.log)


def _value(parameter: Parameter, param: Any) -> Any:
    """What the recipe gets for what Optuna says."""
    if (choices := parameter.choices) is not None:
        return choices[param]
    return param if isinstance(param, int) else parameter.rounded(param)


def _param(parameter: Parameter, value: Any) -> Any:
    """What Optuna says for a value of the recipe's; 1, 1.0 and true are three."""
    if (choices := parameter.choices) is None:
        return value
    return [json.dumps(each) for each in choices].index(json.dumps(value))
