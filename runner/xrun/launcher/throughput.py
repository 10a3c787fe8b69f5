"""How fast a run trains on which machines: measured (`speeds` says where), else estimated from what
was measured on others, or from what a step computes.

Between machines that were measured and those that were not stands an estimate, which is always
called one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..recipe.accelerators import Accelerators
from ..recipe.schema import Train
from ..run.cost import Cost

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
    has; `cost` while nobody has measured what a step takes, of the recipe with this `train`.
    `measured` has the speeds of machines that were seen at such steps, or at similar ones."""

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
        known = [other for other in known if self.measured[other].measured] or known
        if machines.peak is None or not known:
            return self._by_flops(machines)
        peak = machines.peak
        nearest = min(known, key=lambda other: abs((other.peak or 0) / peak - 1))
        factor = peak / (nearest.peak or peak)
        return Speed(
            self.measured[nearest].steps_per_second * factor,
            f"{ESTIMATE}; {self.measured[nearest].source} on {nearest}",
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
