"""How fast a run trains on which machines: measured in earlier attempts, else estimated from what
was measured elsewhere.

An attempt's entry in a run's record says on which machines it ran (`accelerators`, `nodes`), and
its checkpoints how fast. Between machines that were measured and those that were not stands an
estimate, which is always called one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import XrunError
from ..recipe.accelerators import Accelerators
from ..recipe.schema import Recipe, Train
from ..run.checkpoint import Checkpoint
from ..run.cost import Cost
from ..run.folder import RunFolder, runs_in
from ..run.plan import Plan
from ..run.record import AttemptRecord, RunRecord

PEAK = {
    "V100": 125,
    "V100-32GB": 125,
    "T4": 65,
    "A10": 125,
    "A10G": 125,
    "A40": 150,
    "A6000": 155,
    "L4": 121,
    "L40": 181,
    "L40S": 362,
    "A100": 312,
    "A100-80GB": 312,
    "A100-80GB-SXM": 312,
    "H100": 989,
    "H100-SXM": 989,
    "H100-MEGA-80GB": 989,
    "H100-NVL": 835,
    "H200": 989,
    "H200-SXM": 989,
    "H200-NVL": 835,
    "B200": 2250,
    "MI300X": 1307,
}
"""Peak dense 16-bit tensor TFLOP/s of one accelerator, from its maker's data sheet."""
SINGLE = {
    "V100": 15.7,
    "V100-32GB": 15.7,
    "T4": 8.1,
    "A10": 31.2,
    "A10G": 31.2,
    "A40": 37.4,
    "A6000": 38.7,
    "L4": 30.3,
    "L40": 90.5,
    "L40S": 91.6,
    "A100": 19.5,
    "A100-80GB": 19.5,
    "A100-80GB-SXM": 19.5,
    "H100": 67,
    "H100-SXM": 67,
    "H100-MEGA-80GB": 67,
    "H100-NVL": 60,
    "H200": 67,
    "H200-SXM": 67,
    "H200-NVL": 60,
    "B200": 75,
    "MI300X": 163,
}
"""The same in 32 bits without TF32, which torch does not use for matrix products by default."""
UTILISATION = 0.25
"""What of the peak a training step reaches: 0.23 to 0.24 was measured on an H100 with a GPT of this
project that is not compiled (docs/performance.md)."""
BETWEEN = (0.10, 0.40)
"""From small models, and those that wait for memory, to large compiled ones: nanoGPT reaches 0.4 on
A100, PaLM 0.46 (Chowdhery et al. 2022)."""
CALL_SECONDS = 10e-6
"""What torch takes to start an operation on a GPU; a small model's step waits for nothing else."""
MEASURED_SPREAD, COMPARED_SPREAD = (0.95, 1.05), (0.7, 1.4)
"""How far a speed may be off that was measured there, or elsewhere."""
ESTIMATE = (
    "estimate by the data sheets' peak dense 16-bit TFLOP/s, as if more accelerators were"
    " proportionally faster"
)


@dataclass(frozen=True)
class Machines:
    """What decides how fast a run is: accelerators per node, None on machines without, and
    nodes."""

    accelerators: Accelerators | None = None
    nodes: int = 1

    @property
    def peak(self) -> float | None:
        """TFLOP/s of all of them together; None for what has no data sheet here."""
        each = self.accelerators
        known = each is not None and each.name in PEAK
        return PEAK[each.name] * each.count * self.nodes if each and known else None

    def __str__(self) -> str:
        if self.accelerators is None:
            return "machines without accelerators"
        return f"{self.nodes} x {self.accelerators}" if self.nodes > 1 else str(self.accelerators)


@dataclass(frozen=True)
class Speed:
    """Steps per second, and where the number comes from. `spread`: the slowest and the fastest that
    it may be, over it. `alone`: evaluation and saves are not in it."""

    steps_per_second: float
    source: str
    measured: bool
    spread: tuple[float, float] = MEASURED_SPREAD
    alone: bool = False


@dataclass(frozen=True)
class Throughput:
    """What is known before a launch. `steps_left` is None while nobody knows how many steps the run
    has; `cost` while nobody has measured what a step takes, of the recipe with this `train`."""

    steps_left: int | None = None
    measured: Mapping[Machines, Speed] = field(default_factory=dict)
    cost: Cost | None = None
    train: Train | None = None

    def on(self, machines: Machines) -> Speed | None:
        """How fast the run is there: measured, else estimated from the most similar machines that
        were measured, else from what a step computes."""
        if machines in self.measured:
            return self.measured[machines]
        known = [other for other in self.measured if other.peak]
        if machines.peak is None or not known:
            return self._by_flops(machines)
        peak = machines.peak
        nearest = min(known, key=lambda other: abs((other.peak or 0) / peak - 1))
        factor = peak / (nearest.peak or peak)
        return Speed(
            self.measured[nearest].steps_per_second * factor,
            f"{ESTIMATE}; measured on {nearest}",
            measured=False,
            spread=COMPARED_SPREAD,
        )

    def flops(self) -> float | None:
        """FLOP of a whole step; None where nobody has measured it."""
        if self.cost is None or self.train is None:
            return None
        trial = self.cost.trials[-1]
        return trial.flops / trial.samples * self.train.global_batch

    def _by_flops(self, machines: Machines) -> Speed | None:
        flops, train, cost = self.flops(), self.train, self.cost
        each, peak = machines.accelerators, machines.peak
        if flops is None or train is None or cost is None or each is None or peak is None:
            return None
        if train.precision == "fp32":
            peak *= SINGLE[each.name] / PEAK[each.name]
        world = each.count * machines.nodes
        size = cost.trials[-1].samples
        own = max(1, train.global_batch // size // world)
        called = (own * cost.trials[-1].calls + cost.step_calls) * CALL_SECONDS

        def seconds(share: float) -> float:
            return max(flops / (peak * 1e12 * share), called)

        low, high = (seconds(UTILISATION) / seconds(share) for share in BETWEEN)
        bits = 32 if train.precision == "fp32" else 16
        return Speed(
            1 / seconds(UTILISATION),
            f"estimate from {counted(flops)} a step at {UTILISATION:.0%} of the data sheets' peak"
            f" dense {bits}-bit FLOP/s ({BETWEEN[0]:.0%} to {BETWEEN[1]:.0%})",
            measured=False,
            spread=(low, high) if low < 1 < high else (0.5, 2.0),
            alone=True,
        )


def counted(flops: float) -> str:
    """FLOP with the prefix that people read."""
    for size, name in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if flops >= size:
            return f"{flops / size:.3g} {name}FLOP"
    return f"{flops / 1e6:.3g} MFLOP"


def known_throughput(plan: Plan, cost: Cost | None = None) -> Throughput:
    """What earlier attempts of this run, or of runs that compute the same kind of step, have
    measured; `cost` is what a step takes, where that is known."""
    measured: dict[Machines, Speed] = {}
    for folder in runs_in(Path(plan.home)):
        if _same_step(folder, plan):
            measured = {**_speeds(folder), **measured}
    return Throughput(_steps_left(plan, cost), measured, cost, plan.load_recipe().train)


def hours_left(folder: RunFolder) -> float | None:
    """Hours until the run is finished, at the speed of its newest attempt; None where nobody has
    measured it."""
    steps, speeds = _steps_left(folder.plan()), list(_speeds(folder).values())
    return steps / speeds[-1].steps_per_second / 3600 if speeds and steps is not None else None


def _same_step(folder: RunFolder, plan: Plan) -> bool:
    """Whether a step of that run takes as long as one of this plan: the same model on the same
    batch in the same precision."""
    try:
        other = folder.plan()
    except XrunError:
        return False
    return folder.run == plan.run or _step(other.load_recipe()) == _step(plan.load_recipe())


def _step(recipe: Recipe) -> tuple[Any, ...]:
    train = recipe.train
    return recipe.model, recipe.dataset.name, train.global_batch, train.micro_batch, train.precision


def _speeds(folder: RunFolder) -> dict[Machines, Speed]:
    """Steps per second by machines, the newest last; of two attempts on the same ones the newest
    counts."""
    record = _record(folder)
    speeds: dict[Machines, Speed] = {}
    for number, attempt in enumerate(record.attempts, 1):
        rate = _rate(attempt, record.checkpoints)
        if rate > 0 and attempt.cloud is not None:
            machines = Machines(_accelerators(attempt), attempt.nodes)
            source = f"measured in attempt {number} of {folder.run}"
            speeds.pop(machines, None)
            speeds[machines] = Speed(rate, source, measured=True)
    return speeds


def _accelerators(attempt: AttemptRecord) -> Accelerators | None:
    return Accelerators.parse(attempt.accelerators) if attempt.accelerators else None


def _rate(attempt: AttemptRecord, checkpoints: Sequence[Checkpoint]) -> float:
    """Steps per second between an attempt's kept checkpoints, else over its life with its start; 0
    where it has none."""
    own = [(each.step, each.time) for each in checkpoints if each.attempt == attempt.id]
    if len(own) < 2:
        end_of = (attempt.committed or 0, attempt.last_known)
        own = [(attempt.first_step, attempt.started), end_of]
    (first, began), (last, end) = own[0], own[-1]
    return (last - first) / (end - began) if end > began else 0.0


def _steps_left(plan: Plan, cost: Cost | None = None) -> int | None:
    """Steps of the run less the newest committed one; None where the number of steps follows from
    data nobody has counted yet."""
    train, record = plan.load_recipe().train, _record(RunFolder(plan.folder))
    per_epoch = None if train.steps else _steps_per_epoch(record) or _counted_elsewhere(plan)
    if per_epoch is None and cost and cost.train_samples:
        per_epoch = -(-cost.train_samples // train.global_batch)
    total = plan.last_step(per_epoch)
    return max(0, total - max(0, record.committed_step)) if total else None


def _steps_per_epoch(record: RunRecord) -> int | None:
    """What an attempt of a run has counted."""
    counted = (each.steps_per_epoch for each in record.attempts if each.steps_per_epoch)
    return next(counted, None)


def _counted_elsewhere(plan: Plan) -> int | None:
    """The same for another run with the same data in the same batches."""
    own = _epoch(plan.load_recipe())
    for folder in runs_in(Path(plan.home)):
        with contextlib.suppress(XrunError):
            same = _epoch(folder.plan().load_recipe()) == own
            if same and (found := _steps_per_epoch(_record(folder))):
                return found
    return None


def _epoch(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.dataset, recipe.train.global_batch


def _record(folder: RunFolder) -> RunRecord:
    """What is committed of a run; a store that cannot be read now has nothing to say about
    speed."""
    try:
        return folder.record() if folder.plan_file.exists() else RunRecord()
    except XrunError:
        return RunRecord()
