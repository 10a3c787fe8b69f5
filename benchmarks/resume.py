"""Row 5: seconds to the first batch when a run resumes at batch 10^6, minus the same at batch
10^3."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.lab import Lab, lab
from benchmarks.result import Row, interleaved, main, median, spread

NEAR, FAR = 1_000, 1_000_000
WORKERS = (0, 2)
BLOCK = 1_000
SHARDS = 8


def measure(quick: bool) -> Iterator[Row]:
    with lab() as own:
        yield _measure(own, rounds=2 if quick else 9, slow=not quick)


def _measure(own: Lab, rounds: int, slow: bool) -> Row:
    logging.getLogger("xrun").setLevel(logging.ERROR)
    contestants: dict[str, Callable[[], float]] = {}
    for streamed in (False, True):
        for workers in WORKERS:
            for step in (NEAR, FAR):
                name = f"{'stream' if streamed else 'map'}, {workers} workers"
                contestants[f"{name} {step}"] = _resumed(own, streamed, workers, step)
    seen = interleaved(contestants, rounds)
    names = dict.fromkeys(name.rpartition(" ")[0] for name in contestants)
    later = {
        name: [
            1e3 * (far - near)
            for near, far in zip(seen[f"{name} {NEAR}"], seen[f"{name} {FAR}"], strict=True)
        ]
        for name in names
    }
    worst = max(names, key=lambda name: median(later[name]))
    return Row(
        5,
        "ms to the first batch at batch 10^6 minus the same at 10^3",
        median(later[worst]),
        5.0,
        "lower",
        _peers() if slow else {},
        spread(later[worst]),
        {"worst": worst, **{f"{name}, ms": median(values) for name, values in later.items()}},
    )


def _resumed(own: Lab, streamed: bool, workers: int, step: int) -> Callable[[], float]:
    """Commits a run's state at `step`; what measures the first batch of a run that is put together
    from it."""
    kind = "stream" if streamed else "map"
    overrides = [
        f"train.num_workers={workers}",
        f"dataset.args.streamed={'true' if streamed else 'false'}",
    ]
    plan = own.plan("resume", f"{kind}-{workers}-{step}", *overrides)
    training = own.training(plan)
    batch, state = training.train.global_batch, training.state
    state.step, state.samples = step, step * batch
    if streamed:
        size = len(own_samples(training)) // SHARDS
        start = step * batch // BLOCK * BLOCK
        state.stream = {
            "epoch": 0,
            "first_step": 0,
            "start": start,
            "offset": step * batch - start,
            "shard": start // size,
            "taken": start % size,
            "inner": {"position": start % size} if start % size else None,
        }
    training.checkpointer.begin()
    training.checkpointer.wait()
    training.checkpointer.close()
    training.tracker.finish()
    assert training.checkpointer.lease.committed_step == step

    def first_batch() -> float:
        again = own.training(plan)
        assert again.state.step == step
        began = time.perf_counter()
        batches = iter(again.loader)
        pieces = next(batches)
        took = time.perf_counter() - began
        assert pieces[0][0].step == step
        batches.close()  # type: ignore[attr-defined]
        again.checkpointer.close()
        again.tracker.finish()
        return took

    return first_batch


def own_samples(training: Any) -> range:
    """As many as the streamed split has samples."""
    split = training.sampler.split
    return range(split.num_shards * split.size)


def _peers() -> dict[str, float]:
    """Milliseconds, each once; accelerate over an iterable is measured at 10^4 and counted 100
    times."""
    import torch
    from accelerate import Accelerator, skip_first_batches
    from torch.utils.data import DataLoader, Dataset, IterableDataset
    from torchdata.stateful_dataloader import StatefulDataLoader

    warnings.simplefilter("ignore")

    class Held(Dataset[Any]):
        def __len__(self) -> int:
            return 64_000_000

        def __getitem__(self, index: int) -> Any:
            return torch.tensor([float(index)]), 0

    class Streamed(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for index in range(64_000_000):
                yield torch.tensor([float(index)]), 0

    accelerator = Accelerator(cpu=True)

    def skipped(dataset: Any, shuffle: bool, count: int) -> float:
        loader = accelerator.prepare(DataLoader(dataset, batch_size=16, shuffle=shuffle))
        began = time.perf_counter()
        next(iter(skip_first_batches(loader, count)))
        return time.perf_counter() - began

    def stateful(count: int) -> float:
        state = _edited(Held(), count)
        loader = StatefulDataLoader(Held(), batch_size=16, shuffle=True)
        loader.load_state_dict(state)
        began = time.perf_counter()
        next(iter(loader))
        return time.perf_counter() - began

    def _edited(dataset: Any, count: int) -> Any:
        """The state of a loader that has given `count` batches, made from one that has given
        three."""
        torch.manual_seed(0)
        loader = StatefulDataLoader(dataset, batch_size=16, shuffle=True)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        return _replaced(loader.state_dict(), {3: count, 48: count * 16})

    return {
        "accelerate, map ms": 1e3 * (skipped(Held(), True, FAR) - skipped(Held(), True, NEAR)),
        "accelerate, iterable ms (extrapolated)": 1e5
        * (skipped(Streamed(), False, 10_000) - skipped(Streamed(), False, 10)),
        "StatefulDataLoader, map ms": 1e3 * (stateful(FAR) - stateful(NEAR)),
    }


def _replaced(value: Any, numbers: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, numbers) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(inner, numbers) for inner in value)
    return (
        numbers.get(value, value)
        if isinstance(value, int) and not isinstance(value, bool)
        else value
    )


if __name__ == "__main__":
    main(measure)
