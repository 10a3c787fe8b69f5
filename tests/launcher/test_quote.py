"""A quote is what steps, evaluations, saves, starts and losses add up to, and how sure that is.

Covers `xrun.launcher.memory` and `xrun.run.cost`.
"""

from __future__ import annotations

from typing import Any

import pytest

from xrun.launcher.memory import GIB, fit
from xrun.launcher.quote import (
    LOSSES,
    SHARED_START_SECONDS,
    START_SECONDS,
    evaluations,
    quote,
)
from xrun.launcher.throughput import (
    BETWEEN,
    CALL_SECONDS,
    UTILISATION,
    Machines,
    Speed,
    Throughput,
)
from xrun.recipe.accelerators import Accelerators
from xrun.recipe.schema import Recipe, Train
from xrun.run.cost import Cost, Trial

A100 = Machines(Accelerators("A100", 8))


def recipe(**train: Any) -> Recipe:
    told = {"steps": 36_000, "global_batch": 64, "micro_batch": 8, "precision": "bf16", **train}
    return Recipe.model_validate(
        {
            "name": "r",
            "model": {"name": "mlp"},
            "dataset": {"name": "digits"},
            "task": "classification",
            "train": told,
        }
    )


def cost(**changes: Any) -> Cost:
    """A billion parameters with Adam in fp32."""
    whole: dict[str, Any] = {
        "parameters": 10**9,
        "trained": 10**9,
        "weights": 4 * 10**9,
        "gradients": 4 * 10**9,
        "optimizer": 8 * 10**9,
        "average": 0,
        "state": 12 * 10**9,
        "unit": 10**8,
        "step_calls": 2,
        "trials": (Trial(8, 6 * 10**9, 10 * 10**9, 8e12, 1000),),
    }
    return Cost(**(whole | changes))


def test_a_measured_speed_holds_evaluations_and_saves_already() -> None:
    """A step a second for ten hours, on demand: a start comes to it and nothing else."""
    speed = Speed(1.0, "measured", measured=True)
    made = quote(recipe(), Throughput(36_000), speed, 5.0, spot=False)
    assert made is not None
    assert made.hours.likely == pytest.approx(10 + START_SECONDS[1] / 3600)
    assert made.usd.likely == pytest.approx(5 * made.hours.likely)
    assert made.preemptions == (0, 0, 0)
    assert made.hours.low < made.hours.likely < made.hours.high
    assert made.hours.low == pytest.approx(10 / 1.05 + START_SECONDS[0] / 3600)
    there = quote(recipe(), Throughput(36_000), speed, 5.0, spot=False, cloud="slurm")
    assert there is not None, "machines that are there before the job is"
    assert there.hours.likely == pytest.approx(10 + SHARED_START_SECONDS[1] / 3600)


def test_losses_cost_a_start_and_half_an_interval_and_happen_meanwhile_too() -> None:
    """hours = steps + start + losses * (start + interval / 2), and losses are rate * hours."""
    every = recipe().model_copy(
        update={"checkpoint": recipe().checkpoint.model_validate({"every": "30m"})}
    )
    speed = Speed(1.0, "measured", measured=True)
    made = quote(every, Throughput(36_000), speed, 1.0, spot=True)
    assert made is not None
    start = START_SECONDS[1] / 3600
    assert made.preemptions.likely == pytest.approx(LOSSES[1] * made.hours.likely)
    again = 10 + start + made.preemptions.likely * (start + 0.25)
    assert made.hours.likely == pytest.approx(again)


def test_without_a_measured_speed_flops_and_the_data_sheet_give_one() -> None:
    """64 samples are eight micro-batches, one for each of eight GPUs."""
    found = Throughput(36_000, {}, cost(), recipe().train).on(A100)
    assert found is not None
    assert found.steps_per_second == pytest.approx(8 * 312e12 * UTILISATION / 64e12)
    assert not found.measured
    low, high = found.spread
    assert low == pytest.approx(BETWEEN[0] / UTILISATION)
    assert high == pytest.approx(BETWEEN[1] / UTILISATION)
    assert "64 TFLOP a step" in found.source


def test_single_precision_is_slower_than_16_bits() -> None:
    both = (
        Throughput(1, {}, cost(), recipe(precision=name).train).on(A100)
        for name in ("fp32", "bf16")
    )
    fp32, bf16 = (each.steps_per_second for each in both if each)
    assert bf16 / fp32 == pytest.approx(312 / 19.5)


def test_a_small_model_waits_for_its_operations_to_start() -> None:
    small = cost(trials=(Trial(8, 1, 1, 1e6, 1000),))
    found = Throughput(1, {}, small, recipe().train).on(A100)
    assert found is not None
    assert found.steps_per_second == pytest.approx(1 / (1002 * CALL_SECONDS))


def test_evaluations_and_saves_are_in_an_estimate() -> None:
    """25 evaluations of 6,400 samples by a third of a training sample's FLOPs: 33 steps each."""
    evaluated = cost(evaluation=Trial(8, 1, 1, 8e12 / 3, 300), val_samples=6_400)
    told = recipe(evaluate={"every": "1000 steps"}, steps=25_000)
    plain, more = (
        quote(told, t, t.on(A100), 1.0, spot=False)
        for t in (Throughput(25_000, {}, each, told.train) for each in (cost(), evaluated))
    )
    assert plain is not None
    assert more is not None
    assert evaluations(told, evaluated, 25_000) == 25
    step = 64e12 / (8 * 312e12 * UTILISATION) / 3600
    added = 25 * 6_400 / 64 / 3 * step  # and the saves meanwhile
    assert more.hours.likely - plain.hours.likely == pytest.approx(added, rel=0.02)
    speed = Throughput(25_000, {}, cost(), told.train).on(A100)
    assert speed is not None
    bare = 25_000 / speed.steps_per_second / 3600 + START_SECONDS[1] / 3600
    assert bare < plain.hours.likely < 1.01 * bare


def test_epochs_are_evaluated_by_the_samples_that_there_are() -> None:
    told = recipe(steps=None, epochs=10, evaluate={"every": "2 epochs"})
    assert evaluations(told, cost(train_samples=6_400), 1_000) == 5


def test_nothing_is_quoted_of_what_nobody_knows() -> None:
    speed = Speed(1.0, "measured", measured=True)
    assert quote(recipe(), Throughput(None), speed, 1.0, spot=True) is None
    assert quote(recipe(), Throughput(5), None, 1.0, spot=True) is None


@pytest.mark.parametrize(
    ("world", "train", "expected"),
    [
        (1, {}, 12 + 10),  # gradients add up over eight micro-batches
        (8, {}, 12 + 6),  # one each
        (2, {"reduction": "exact"}, 12 + 10 + 3 * 4),  # log2(4) + 1 sums beside them
        (
            4,
            {"sharding": "fsdp"},
            12 / 4 + 0.2 + 10 - 3,
        ),  # two whole units, and a share of the rest
        (4, {"sharding": "fsdp", "accumulate": "whole"}, 12 / 4 + 0.2 + 10),  # and all gradients
    ],
)
def test_bytes_follow_from_processes_and_what_they_keep(
    world: int, train: dict[str, Any], expected: float
) -> None:
    assert cost().bytes_of(recipe(**train).train, 8, world) == pytest.approx(expected * 1e9)


def test_an_evaluation_may_need_the_most() -> None:
    large = cost(evaluation=Trial(512, 30 * 10**9, 30 * 10**9, 1, 1))
    assert large.bytes_of(recipe().train, 8, 8) == 42 * 10**9


def test_what_does_not_fit_says_how_much_it_needs() -> None:
    found = fit(cost(), recipe().train, Machines(Accelerators("T4", 8)))
    assert found is not None
    assert not found.fits
    assert found.needed == int(18e9 * 1.1) + GIB
    assert str(found) == "19.4 of 16 GiB"
    assert fit(cost(), recipe().train, A100) is not None
    assert fit(cost(), recipe().train, Machines()) is None


def test_auto_takes_the_largest_micro_batch_that_fits() -> None:
    """Of 1, 2, 4 and 8 samples at eight processes, at a GiB a sample beside 15 GiB."""
    trials = (Trial(1, GIB, GIB, 1e12, 10), Trial(2, 2 * GIB, 2 * GIB, 2e12, 10))
    held = cost(weights=15 * GIB, optimizer=0, gradients=0, trials=trials)
    auto = Train.model_validate({"steps": 1, "global_batch": 64})
    found = fit(held, auto, Machines(Accelerators("L4", 8)))
    assert found is not None
    assert (found.micro_batch, found.fits) == (4, True)
    small = fit(held, auto, Machines(Accelerators("T4", 8)))
    assert small is not None
    assert (small.micro_batch, small.fits) == (1, False)


def test_a_cost_comes_back_from_json() -> None:
    made = cost(evaluation=Trial(1, 2, 3, 4.0, 5), train_samples=7)
    assert Cost.from_json(made.to_json()) == made
    for wrong in ({}, {**made.to_json(), "weights": "many"}, {**made.to_json(), "trials": [{}]}):
        with pytest.raises(ValueError):  # noqa: PT011  each has words of its own
            Cost.from_json(wrong)


def test_what_saves_send_is_billed_and_sent_less_often() -> None:
    """12 GB of state on a Hub from AWS are $1.08 a save: as much as a machine of $10 an hour for
    six minutes and a half, so that sqrt(2 C M) is 48 minutes; else it is 161 seconds."""
    hub = recipe().checkpoint.model_validate({"store": "hub"})
    told = recipe().model_copy(update={"checkpoint": hub})
    found = Throughput(36_000, {}, cost(), told.train)
    speed = found.on(A100)
    priced, free = (
        quote(told, found, speed, 10.0, spot=True, cloud=cloud) for cloud in ("aws", "nebius")
    )
    assert priced is not None
    assert free is not None
    interval = (2 * (1.2 + 1.08 / 10 * 3600) * 3 * 3600) ** 0.5 / 3600
    assert priced.saved == pytest.approx(12 / interval)
    assert priced.saved_usd == pytest.approx(1.08 / interval)
    assert priced.usd.likely == pytest.approx(priced.hours.likely * (10 + 1.08 / interval))
    assert free.saved_usd == 0
    assert free.saved is not None
    assert free.saved > 10 * priced.saved
