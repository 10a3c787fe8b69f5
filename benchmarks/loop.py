"""Row 1: what a loop costs per step beyond a raw PyTorch loop, on a perceptron that costs next to
nothing."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from benchmarks.lab import Lab, StepClock, fresh, lab, progress_shown, run
from benchmarks.result import Row, interleaved, main, median, spread

WARM = 50


def measure(quick: bool) -> Iterator[Row]:
    os.environ["OMP_NUM_THREADS"] = "1"  # the other core shows the progress
    with lab() as own:
        yield _measure(own, rounds=2 if quick else 15, steps=200 if quick else 600)


def _measure(own: Lab, rounds: int, steps: int) -> Row:
    import torch

    from benchmarks import peers
    from xrun.component import load_build

    torch.set_num_threads(1)
    plan = own.plan("loop", "loop")
    recipe = plan.load_recipe()
    table = load_build("datasets", "table", own.root)(**recipe.dataset.args)["train"]
    build = load_build("models", "mlp", own.root)
    work = peers.Work(
        table, lambda: build(**recipe.model.args), recipe.train.global_batch, 0.001, steps, WARM
    )

    def xrun() -> float:
        return run(own.training(fresh(plan)), StepClock(steps)).seconds_per_step(WARM)

    with progress_shown(plan):
        seen = interleaved(
            {
                "raw": lambda: peers.raw(work),
                "plain": lambda: peers.raw_plain(work),
                "xrun": xrun,
                **{
                    name.replace("transformers", "trainer"): functools.partial(loop, work)
                    for name, loop in peers.installed().items()
                },
            },
            rounds,
        )
    over = {
        name: [1e6 * (value - raw) for value, raw in zip(values, seen["raw"], strict=True)]
        for name, values in seen.items()
    }
    beside, unchecked = (
        [mine / theirs for mine, theirs in zip(over["xrun"], over[name], strict=True)]
        for name in ("accelerate, checking", "accelerate")
    )
    return Row(
        1,
        "loop overhead per step, over an accelerate loop's that checks its gradients as well",
        median(beside),
        0.25,
        "lower",
        {
            f"{name} µs": median(values)
            for name, values in over.items()
            if name not in ("raw", "plain", "xrun")
        },
        spread(beside),
        {
            "over_accelerate_without_the_check": median(unchecked),
            "xrun_us": median(over["xrun"]),
            "xrun_us_spread": spread(over["xrun"]),
            "raw_us": 1e6 * median(seen["raw"]),
            "plain_step_saves_us": -median(over["plain"]),
            "plain_step_saves_us_spread": spread(-value for value in over["plain"]),
        },
    )


if __name__ == "__main__":
    main(measure)
