"""Whether a recipe's step fits into an accelerator's memory, by what its tensors take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..recipe.schema import Train
from ..run.cost import Cost, sizes
from .throughput import Machines

GIB = 2**30
MEMORY = {
    "V100": 16,
    "V100-32GB": 32,
    "T4": 16,
    "A10": 24,
    "A10G": 24,
    "A40": 48,
    "A6000": 48,
    "L4": 24,
    "L40": 48,
    "L40S": 48,
    "A100": 40,
    "A100-80GB": 80,
    "A100-80GB-SXM": 80,
    "H100": 80,
    "H100-SXM": 80,
    "H100-MEGA-80GB": 80,
    "H100-NVL": 94,
    "H200": 141,
    "H200-SXM": 141,
    "H200-NVL": 141,
    "B200": 180,
    "MI300X": 192,
}
"""GiB of one accelerator, from its maker's data sheet, by SkyPilot's names."""
OUTSIDE = GIB
"""Bytes that are no tensor's: CUDA's context, workspaces of cuBLAS and NCCL."""
FRAGMENTS = 0.1
"""What torch's allocator holds beyond living tensors, as a share of them."""


@dataclass(frozen=True)
class Fit:
    """What one process of a recipe needs of `there` bytes, in micro-batches of so many samples."""

    micro_batch: int
    tensors: int
    there: int

    @property
    def needed(self) -> int:
        """Bytes with what is no tensor."""
        return int(self.tensors * (1 + FRAGMENTS)) + OUTSIDE

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.needed <= self.there

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        told = {"micro_batch": self.micro_batch, "tensor_bytes": self.tensors}
        return {**told, "bytes": self.needed, "of": self.there, "fits": self.fits}

    def __str__(self) -> str:
        return f"{self.needed / GIB:.1f} of {self.there / GIB:.0f} GiB"


def fit(cost: Cost, train: Train, machines: Machines) -> Fit | None:
    """How a step lies in the memory of these machines; with `micro_batch: auto` by the largest that
    fits, else by the smallest there is. None for machines whose memory no table has."""
    each = machines.accelerators
    if each is None or each.name not in MEMORY:
        return None
    world, there = each.count * machines.nodes, MEMORY[each.name] * GIB
    allowed = sizes(train.global_batch, world)
    chosen = allowed if train.micro_batch == "auto" else [train.micro_batch]
    found = [Fit(size, cost.bytes_of(train, size, world), there) for size in chosen]
    return next((one for one in found if one.fits), found[-1] if found else None)
