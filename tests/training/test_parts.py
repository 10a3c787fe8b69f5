"""A micro-batch that does not fit into memory is computed in parts: real attempts of a model that
says that memory is lacking."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.running import RECIPE, Project, curve, record
from xrun.errors import OutOfMemory
from xrun.training.micro_batch import enough_memory

LIMITED = """
import os
from pathlib import Path

import torch
from torch import nn


class Limited(nn.Sequential):
    def forward(self, x):
        file = Path(__file__).parent.parent / f"memory-{os.environ.get('RANK', '0')}"
        if self.training and file.exists() and len(x) > int(file.read_text()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().forward(x)


def build(width: int = 8, norm: bool = False):
    inner = nn.BatchNorm1d(width) if norm else nn.LayerNorm(width)
    return Limited(nn.Linear(4, width), inner, nn.GELU(), nn.Linear(width, 3))
"""
WHOLE = 4
"""Samples of a micro-batch; two of them are a global batch."""


def made(root: Path) -> Project:
    project = Project(root, RECIPE.replace("micro_batch: 2", f"micro_batch: {WHOLE}"))
    project.write("models/line.py", LIMITED)
    return project


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run that had enough memory."""
    project = made(tmp_path_factory.mktemp("whole"))
    assert project.attempt().code == 0
    assert record(project.run)["checkpoints"][-1]["numbers"]["exact"] is True
    return project


def close(one: Project, other: Project) -> bool:
    """Whether both have the same final weights but for the last bits."""
    first, second = (load_file(project.run.model / "model.safetensors") for project in (one, other))
    return all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5) for name in first)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_smaller_machine_goes_on(whole: Project, tmp_path: Path, processes: int) -> None:
    """A run goes on where only one sample fits: in parts, in the same attempt, with the same
    samples and sums; it is told."""
    project = made(tmp_path)
    project.trap("SIGKILL", call=11 * (2 // processes), committed=5)
    assert project.attempt(processes=processes).code == 75
    began = max(record(project.run)["checkpoints"][-1]["step"], 0)
    for rank in range(processes):
        project.write(f"memory-{rank}", "1")
    done = project.attempt(processes=processes)
    assert done.code == 0, done.err
    assert "A micro-batch of 4 in 1 parts does not fit into memory" in done.err
    assert f"From step {began} on each micro-batch of 4 is computed in 4 parts" in done.err
    last = record(project.run)["attempts"][-1]
    assert (last["parts"], last["code"]) == (WHOLE, 0)
    assert len(record(project.run)["attempts"]) == 2, (
        "the ranks were started again within one attempt"
    )
    assert record(project.run)["checkpoints"][-1]["numbers"]["exact"] is False
    assert (whole.run.report().exact, project.run.report().exact) == (True, False)
    samples = [
        {step: point["train/samples"] for step, point in curve(one.run).items()}
        for one in (whole, project)
    ]
    assert samples[0] == samples[1]
    assert close(whole, project)


def test_one_process_of_two_lacks_memory(whole: Project, tmp_path: Path) -> None:
    """Then all compute in parts, as many on each."""
    project = made(tmp_path)
    project.write("memory-1", "2")
    done = project.attempt(processes=2)
    assert done.code == 0, done.err
    assert record(project.run)["attempts"][-1]["parts"] == 2
    assert close(whole, project)


@pytest.mark.parametrize(
    "more",
    [(), ("train.reduction=exact",), ("train.sharding=fsdp",)],
    ids=["fast", "exact", "fsdp"],
)
def test_all_reductions_add_the_parts(
    whole: Project, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Gradients of parts add up to that of the micro-batch, whatever sums over the processes."""
    project = made(tmp_path)
    for rank in range(2):
        project.write(f"memory-{rank}", "2")
    done = project.attempt(*more, processes=2)
    assert done.code == 0, done.err
    assert close(whole, project)


def test_the_next_attempt_knows(tmp_path: Path) -> None:
    """On such a machine it computes in as many parts from the beginning; the run stays marked where
    all fits again."""
    project = made(tmp_path)
    project.write("memory-0", "2")
    project.trap("SIGKILL", call=11 * 2, committed=5)
    assert project.attempt().code == 75
    done = project.attempt()
    assert done.code == 0, done.err
    assert "does not fit" not in done.err
    assert record(project.run)["attempts"][-1]["parts"] == 2


def test_not_even_one_sample_is_an_error(tmp_path: Path) -> None:
    """Exit 6 with one sentence: no machine like this one can go on."""
    project = made(tmp_path)
    project.write("memory-0", "0")
    done = project.attempt()
    assert done.code == 6
    assert "Not even one sample fits into memory" in done.err


def test_batch_statistics_are_told(tmp_path: Path) -> None:
    """With batch normalisation parts change the mathematics, which the warning says."""
    project = made(tmp_path)
    project.write("memory-0", "2")
    done = project.attempt("model.args={norm: true}", "train.steps=2")
    assert done.code == 0, done.err
    assert "its batch statistics" in done.err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you"
            " tried to allocate 1"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_lacking_memory_is_recognised(error: Exception) -> None:
    """In all the words in which it is said."""
    with pytest.raises(OutOfMemory) as caught, enough_memory(8, 2):
        raise error
    assert caught.value.parts == 4


def test_what_was_asked_for_is_said_in_whole_sentences() -> None:
    """CUDA's own text goes on for a paragraph."""
    asked = "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 139.80"
    asked += " GiB of which 138.56 GiB is free."
    more = " Including non-PyTorch memory, this process and more have 1.23 GiB memory in use."
    with pytest.raises(OutOfMemory) as caught, enough_memory(8, 2):
        raise torch.OutOfMemoryError(asked + more + " allowed; of the allocated memory")
    assert caught.value.message.endswith(f"does not fit into memory: {asked}")


def test_other_errors_stay_what_they_are() -> None:
    """A shape that does not match is no lack of memory."""
    with pytest.raises(RuntimeError, match="mat1 and mat2"), enough_memory(8, 2):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
