"""What a rank computes on: what was rented, or nothing at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from support.drivers import stand_in
from support.running import Project, attempt, record
from xrun.machine.nodes import nodes_of
from xrun.recipe.schema import Candidate
from xrun.run.checkpoint import ARITHMETIC, Checkpoint
from xrun.training.conditions import Build, environment_of, nccl_of, rented

H100 = ("NVIDIA H100 80GB HBM3", (9, 0))
V100 = ("Tesla V100-SXM2-16GB", (7, 0))
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def skypilot(accelerators: str) -> dict[str, str]:
    return {"SKYPILOT_NODE_IPS": "10.0.0.4", "SKYPILOT_NUM_GPUS_PER_NODE": accelerators}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what would be missing")
def test_rented_accelerators_that_torch_does_not_see_end_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs were rented, the driver has them and torch does not: both ranks refuse before
    anything is built, the attempt ends with 75 as one that the machine has ended, and the record
    has driver, CUDA and build."""
    project = Project(tmp_path)
    project.write("models/line.py", "def build():\n    raise SystemExit('a model was built')\n")
    path = stand_in(tmp_path / "bin", "470.82.01", gpus=2)
    monkeypatch.setenv("PATH", path + os.pathsep + os.environ["PATH"])
    for name, value in skypilot("2").items():
        monkeypatch.setenv(name, value)
    done = attempt(project.plan(), nodes=nodes_of(os.environ))
    assert done.code == 75, done.err
    last = record(project.run)["attempts"][-1]
    assert (last["kind"], last["code"], last["processes"]) == ("outside", 75, 2)
    assert "sees 0 of the 2 accelerators that were rented" in last["reason"]
    build = f"torch {torch.__version__}, without CUDA; driver 470.82.01 with 2 x NVIDIA H100"
    assert build in last["reason"]
    assert project.run.points() == []
    assert record(project.run)["checkpoints"] == []


def test_a_machine_of_ones_own_trains_on_what_it_has(tmp_path: Path) -> None:
    """Without SkyPilot nothing was rented."""
    assert Project(tmp_path).attempt("train.steps=1").code == 0


@pytest.mark.parametrize(
    ("asked", "environ", "number"),
    [
        ((8,), {}, 0),
        ((8,), skypilot("8"), 8),
        ((8,), skypilot("0"), 8),
        ((8, 4), skypilot("0"), 4),
        ((8, 0), skypilot("0"), 0),
        ((0,), skypilot("0"), 0),
        ((), skypilot("2"), 2),
    ],
)
def test_how_many_were_rented(asked: tuple[int, ...], environ: dict[str, str], number: int) -> None:
    """As SkyPilot says; a cloud's machine without any is right only for a candidate without."""
    candidates = tuple(
        Candidate(accelerators=f"H100:{count}") if count else Candidate() for count in asked
    )
    assert rented(candidates, environ) == number


@pytest.mark.parametrize(
    ("build", "number", "wrong"),
    [
        (Build("2.13.0+cu130", "13.0", CU130, (H100,) * 8), 8, ""),
        (Build("2.13.0+cu130", "13.0", CU130, (H100,) * 9), 8, ""),
        (
            Build("2.13.0+cu130", "13.0", CU130, (H100,) * 7),
            8,
            "torch sees 7 of the 8 accelerators that were rented",
        ),
        (
            Build("2.13.0+cu130", "13.0", CU130, (V100,)),
            1,
            "torch has no kernels for Tesla V100-SXM2-16GB (compute capability 7.0)",
        ),
        (Build("2.13.0+cu126", "12.6", CU126, (V100,)), 1, ""),
        (Build("2.13.0+cpu"), 0, ""),
    ],
)
def test_what_a_build_lacks(build: Build, number: int, wrong: str) -> None:
    """Fewer GPUs than were rented, or GPUs of a kind that it has no kernels for."""
    assert build.lacks(number) == wrong


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (CU130, (8, 9), True),  # an L4 runs what was made for 8.6
        (CU130, (10, 3), True),
        (CU130, (12, 1), True),
        (CU130, (13, 0), True),  # PTX
        (CU126, (10, 0), False),
        (CU126, (12, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_86",), (8, 0), False),
        (("gfx90a",), (9, 0), False),
    ],
)
def test_which_gpus_a_build_serves(
    architectures: tuple[str, ...], capability: tuple[int, int], runs: bool
) -> None:
    assert Build("2.13.0", "13.0", architectures).serves(capability) == runs


def test_nccl_and_its_settings_are_conditions() -> None:
    """Another version or another algorithm sums in another order; what NCCL writes down and the
    name of a network interface change nothing."""
    settings = {"NCCL_NVLS_ENABLE": "0", "NCCL_ALGO": "Ring", "RANK": "0"}
    elsewhere = {"NCCL_SOCKET_IFNAME": "=ens5", "NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": "x"}
    now = nccl_of((2, 27, 5), settings)
    assert (
        now
        == nccl_of((2, 27, 5), settings | elsewhere)
        == ("2.27.5 NCCL_ALGO=Ring NCCL_NVLS_ENABLE=0")
    )
    before = Checkpoint(
        step=1,
        environment={"nccl": nccl_of((2, 27, 5), {"NCCL_ALGO": "Tree"})},
        arithmetic=ARITHMETIC,
    )
    assert before.differences({"nccl": now}) == (
        "nccl 2.27.5 NCCL_ALGO=Tree -> 2.27.5 NCCL_ALGO=Ring NCCL_NVLS_ENABLE=0"
    )


def test_on_processors_the_conditions_keep_their_form() -> None:
    """Without CUDA there is no NCCL, however many processes there are; torch's build is part of its
    version, and another one is another condition."""
    told = environment_of(torch.device("cpu"), 2)
    assert set(told) == {"device", "torch", "accelerate", "cuda", "threads", "processes"}
    assert told["torch"] == torch.__version__
    assert environment_of(torch.device("cpu"), 2, compiles=True) == told | {"compile": 2}
    more = environment_of(torch.device("cpu"), 2, requirements="einops 0.8.1")
    assert more == told | {"requirements": "einops 0.8.1"}
    before = Checkpoint(step=1, environment=told | {"torch": "2.13.0+cu126"}, arithmetic=ARITHMETIC)
    assert before.differences(told | {"torch": "2.13.0+cu130"}) == (
        "torch 2.13.0+cu126 -> 2.13.0+cu130"
    )
