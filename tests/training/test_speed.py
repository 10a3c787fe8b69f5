"""What stands beside the loss of how fast a run trains: each value by a clock that is given, and in
the points of a real run. Covers `xrun.training.peak` and `xrun.training.flops`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from support.running import Project
from xrun.run.points import reproducible
from xrun.training.flops import sample_flops
from xrun.training.objective import Objective
from xrun.training.peak import peak_flops
from xrun.training.speed import Speed


class Clock:
    """A clock that stands where it was set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def trained(speed: Speed, clock: Clock, waits: float, takes: float, samples: int = 8) -> None:
    """One step of so many samples, 10 tokens each."""
    speed.begin()
    clock.now += waits
    speed.fetched()
    clock.now += takes
    speed.stepped(samples, 10 * samples)


def test_values_are_means_over_the_steps_since_the_last_ones() -> None:
    """Seconds between two steps (evaluation, saves) are nobody's; model FLOPs per second stand over
    the peak of all devices."""
    clock = Clock()
    speed = Speed(tokens=True, flops=1e9, peak=1e11, clock=clock)
    trained(speed, clock, waits=0.25, takes=0.75)
    clock.now += 60.0
    trained(speed, clock, waits=0.75, takes=0.25)
    told = speed.values(last=False)
    assert told.pop("speed/memory_gib") > 0
    assert told == {
        "speed/samples_per_second": 8.0,
        "speed/tokens_per_second": 80.0,
        "speed/step_seconds": 1.0,
        "speed/data_wait_seconds": 0.5,
        "speed/mfu": 8 * 1e9 / 1e11,
    }
    trained(speed, clock, waits=0.0, takes=2.0)
    assert speed.values(last=False)["speed/samples_per_second"] == 4.0


def test_short_steps_are_told_together() -> None:
    """Once a second of training, and at the last step whatever it took."""
    clock = Clock()
    speed = Speed(clock=clock)
    told = []
    for step in range(1, 11):
        trained(speed, clock, waits=0.0, takes=0.25)
        told.append(speed.values(last=step == 10).get("speed/samples_per_second"))
    assert told == [None, None, None, 32.0, None, None, None, 32.0, None, 32.0]


def test_what_is_not_known_is_left_out() -> None:
    """On a processor there is no peak and no NVML; only language models count tokens."""
    clock = Clock()
    speed = Speed(clock=clock, flops=1e9)
    trained(speed, clock, waits=0.0, takes=1.0)
    names = {name.partition("/")[2] for name in speed.values(last=True)}
    assert names == {"samples_per_second", "step_seconds", "data_wait_seconds", "memory_gib"}
    assert speed.values(last=True) == {}


@pytest.mark.parametrize(
    ("device", "precision", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10", "fp32", 31.2),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("Tesla T4", "tf32", 8.1),
        ("Tesla T4", "fp16", 65),
        ("Tesla T4", "bf16", 0),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA A10G", "bf16", 0),
        ("NVIDIA GeForce RTX 4090", "bf16", 0),
    ],
)
def test_the_peak_of_a_device(device: str, precision: str, teraflops: float) -> None:
    """0 where its data sheet is not known, or the arithmetic is only imitated."""
    assert peak_flops(device, precision) == teraflops * 1e12


@pytest.mark.parametrize("frozen", [False, True])
def test_flops_of_a_sample(frozen: bool) -> None:
    """Forward two per weight (40 and 12 of them); backward as much for the activations, and for the
    weights that are trained. Nothing of the model changes: BatchNorm has seen no batch."""
    first = nn.Linear(10, 4, bias=False).requires_grad_(not frozen)
    norm = nn.BatchNorm1d(4, affine=False)
    objective = Objective(nn.Sequential(first, norm, nn.Linear(4, 3, bias=False)), "classification")
    batch = torch.randn(6, 10), torch.zeros(6, dtype=torch.long)
    factor = 2 + 12 / 52 if frozen else 3
    assert sample_flops(objective, batch, 6) == pytest.approx(2 * 52 * factor)
    assert objective.training
    assert int(norm.num_batches_tracked or 0) == 0


def test_a_model_that_cannot_be_counted_trains_all_the_same() -> None:
    class OnlyTrains(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.training
            return super().forward(x)

    objective = Objective(OnlyTrains(10, 3), "classification")
    assert sample_flops(objective, (torch.randn(6, 10), torch.zeros(6, dtype=torch.long)), 6) == 0.0
    assert objective.model.training


def test_points_have_the_speed_beside_the_loss(tmp_path: Path) -> None:
    """The last point has it whatever it took, and so has the report. No comparison of two runs
    looks at it, and neither does the model card."""
    project = Project(tmp_path / "project")
    assert project.attempt().code == 0
    last = project.run.last_point()
    takes = last["speed/step_seconds"]
    told = [point["step"] for point in project.run.points() if "speed/step_seconds" in point]
    steps = range(max(told[:-1], default=0) + 1, 20 + 1)
    mean = sum(4 if step == 13 else 8 for step in steps) / len(steps)  # 13 ends an epoch of 100
    assert last["speed/samples_per_second"] == pytest.approx(mean / takes, rel=1e-4)
    assert 0 < last["speed/data_wait_seconds"] < takes
    assert [name for name in reproducible(last) if "speed" in name] == []
    report = project.run.report()
    assert report.speed["step_seconds"] == takes
    assert [name for name in report.metrics if "speed" in name] == []
    assert "speed/" not in (project.run.model / "README.md").read_text()
