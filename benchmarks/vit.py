"""Row 2: samples per second of a small ViT, with a checkpoint every 30 s and tracking on, over a raw loop's."""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks.lab import Lab, StepClock, fresh, lab, progress_shown, run
from benchmarks.result import Row, interleaved, main, median, spread

WARM = 10
SECONDS = 33.0
"""A segment of xrun's run: long enough for one save by time, besides the one of step 0."""


def measure(quick: bool) -> Iterator[Row]:
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))  # as the entrypoint gives one rank
    with lab() as own:
        yield _measure(own, rounds=1 if quick else 2, seconds=2.0 if quick else SECONDS)


def _measure(own: Lab, rounds: int, seconds: float) -> Row:
    from benchmarks import peers
    from xrun.component import load_build
    from xrun.store.directory import DirectoryStore

    plan = own.plan("vit", "vit")
    recipe = plan.load_recipe()
    table = load_build("datasets", "table", own.root)(**recipe.dataset.args)["train"]
    build = load_build("models", "vit", own.root)
    batch = recipe.train.global_batch
    work = peers.Work(table, lambda: build(**recipe.model.args), batch, 0.001, WARM + 20, WARM)
    steps = WARM + max(5, int(seconds / peers.raw(work)))
    work = peers.Work(table, work.model, batch, 0.001, steps, WARM)
    shorter = peers.Work(table, work.model, batch, 0.001, WARM + (steps - WARM) // 3, WARM)  # it saves nothing
    commits = []

    def xrun() -> float:
        value = run(own.training(fresh(plan)), StepClock(steps)).seconds_per_step(WARM)
        head = DirectoryStore(plan.folder / "state", plan.run, "reader", plan.owner).head()
        commits.append(head.number - 1 if head else 0)
        return value

    with progress_shown(plan):
        seen = interleaved(
            {"raw": lambda: peers.raw(work), "xrun": xrun, "accelerate": lambda: peers.accelerate(shorter)}, rounds, warm=0
        )
    share = {name: [raw / value for value, raw in zip(values, seen["raw"], strict=True)] for name, values in seen.items()}
    return Row(
        2, "small ViT with checkpoints every 30 s, samples/s over raw", median(share["xrun"]), 0.99, "higher",
        {"accelerate, nothing saved": median(share["accelerate"])}, spread(share["xrun"]),
        {"raw_samples_per_s": batch / median(seen["raw"]), "commits_per_segment": commits, "steps_per_segment": steps},
    )  # fmt: skip


if __name__ == "__main__":
    main(measure)
