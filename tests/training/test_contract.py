"""Mistakes in components end the first step, or the first evaluation, with one sentence; troubles
of the machine do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch.distributed as dist

from support.running import DATASET, MODEL, Project, curve, record, steps_of
from xrun.errors import ComponentError, TrainError
from xrun.training.contract import Components, in_short
from xrun.training.failure import is_of_the_machine

COMPUTED = "models/line.py: the forward or backward pass failed:"
READ = "datasets/points.py: reading a batch failed:"
WRONG_MODEL = """
import torch
from torch import nn


class Odd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("backward is not written yet")


class Wrong(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind, self.calls = nn.Linear(5 if kind == "shapes" else 4, 3), kind, 0

    def forward(self, x):
        self.calls += 1
        if self.kind == "evaluation" and not self.training:
            return self.net(x)[:, 0].undefined
        if self.kind == "leaves":
            raise SystemExit(0)
        if self.kind == "device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.kind == "later" and self.calls > 12:
            raise ValueError("only later")
        return Odd.apply(self.net(x)) if self.kind == "backward" else self.net(x)


def build(kind: str = ""):
    if kind == "build":
        raise KeyError("layers")
    return Wrong(kind)
"""
WRONG_DATASET = """
import torch


class Rows(torch.utils.data.Dataset):
    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 100

    def __getitem__(self, i):
        if self.kind == "items":
            return torch.zeros(4)[i, 0], 1
        if self.kind == "network":
            raise ConnectionResetError("the bucket hung up")
        if self.kind == "missing":
            open("data/rows.bin")
        return torch.zeros(2 + i % 3 if self.kind == "ragged" else 4), i % 3


def build(kind: str = ""):
    if kind == "nothing":
        return None
    return {"test" if kind == "no train" else "train": Rows(kind)}
"""


FLAT = """\
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
"""
ROWS = """\
import datasets


def build(kind):
    rows = [{"input": [[float(i % 7), 0.5], [i / 9, 2.0]], "labels": i % 3} for i in range(40)]
    split = datasets.Dataset.from_list(rows)
    split = split.to_iterable_dataset(num_shards=4) if kind == "iterable" else split
    return {"train": split.with_format(kind) if kind in ("torch", "numpy") else split}
"""
LATE = """\
import torch
from torch import nn


class Late(nn.Linear):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(3))
        return super().forward(x) * self.scale


def build():
    return Late(4, 3)
"""
SPARSE = """\
import torch
from torch import nn


class Table(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.table = nn.Embedding(2, 3, sparse=True)

    def forward(self, x):
        return super().forward(x) + self.table((x[:, 0] > 0).long())


def build():
    return Table()
"""


def made(root: Path) -> Project:
    project = Project(root)
    project.write("models/line.py", WRONG_MODEL)
    project.write("datasets/points.py", WRONG_DATASET)
    return project


def log_of(project: Project) -> str:
    (path,) = project.run.path.glob("logs/*/rank0.log")
    return path.read_text()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "model.args={kind: build}",
            "models/line.py: build() failed: KeyError: 'layers' (line 36).",
        ),
        ("model.args={kind: shapes}", f"{COMPUTED} RuntimeError: mat1 and mat2 shapes cannot"),
        (
            "model.args={kind: shapes}",
            "5x3) (line 31). The batch was [float32 (2, 4), int64 (2,)].",
        ),
        ("model.args={kind: backward}", f"{COMPUTED} ValueError: backward is not written yet"),
        ("model.args={kind: leaves}", f"{COMPUTED} SystemExit: 0 ("),
        ("dataset.args={kind: items}", f"{READ} IndexError: too many indices"),
        ("dataset.args={kind: missing}", f"{READ} FileNotFoundError: [Errno 2] No such file"),
        ("dataset.args={kind: missing}", "A relative path begins at the recipe's project, "),
        ("dataset.args={kind: ragged}", f"{READ} RuntimeError: stack expects each tensor to"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_ends_the_first_step(
    tmp_path: Path, setting: str, said: str, workers: int
) -> None:
    """Exit 2 in the first attempt, with the file, what it raised and the contract in one line; the
    traceback stands in the log alone."""
    project = made(tmp_path)
    done = project.attempt(setting, f"train.num_workers={workers}")
    assert done.code == 2, done.err
    assert len([line for line in done.err.splitlines() if said in line]) == 1
    assert "Traceback (most recent call last)" not in done.err
    (told,) = [line for line in done.err.splitlines() if line.startswith("Full traceback: ")]
    text = Path(told.removeprefix("Full traceback: ")).read_text()
    assert "Traceback (most recent call last)" in text
    (attempt,) = record(project.run)["attempts"]
    assert attempt["code"] == 2
    assert "once the file is mended, type the same command again" in done.err, "and no --new"


@pytest.mark.parametrize("kind", ["nothing", "no train"])
def test_splits_without_train_are_said(tmp_path: Path, kind: str) -> None:
    """There is no traceback where the sentence says it all."""
    project = made(tmp_path)
    done = project.attempt(f"dataset.args={{kind: {kind}}}")
    assert done.code == 2
    assert "datasets/points.py: build() must return a dict with the split 'train'" in done.err
    assert "Traceback" not in done.err + log_of(project)


def test_a_mistake_in_the_first_evaluation_ends_it_too(tmp_path: Path) -> None:
    """Although steps are behind it."""
    project = Project(tmp_path)
    project.write("models/line.py", WRONG_MODEL)
    done = project.attempt("model.args={kind: evaluation}", "train.evaluate.every=10 steps")
    assert done.code == 2, done.err
    assert "models/line.py: the forward or backward pass failed: AttributeError" in done.err


@pytest.mark.parametrize(
    "setting",
    ["model.args={kind: device}", "dataset.args={kind: network}"],
)
def test_what_another_machine_or_time_may_change_is_no_mistake(
    tmp_path: Path, setting: str
) -> None:
    """A device's errors and the network's stay what they are."""
    project = made(tmp_path)
    done = project.attempt(setting)
    assert done.code == 75, done.err
    assert record(project.run)["attempts"][-1]["code"] == 75


def test_what_fails_after_the_first_step_is_tried_once_more(tmp_path: Path) -> None:
    """It is no mistake by itself; at the same step again it is."""
    project = made(tmp_path)
    done = project.attempt("model.args={kind: later}")
    assert done.code == 2, done.err
    line = 1 + WRONG_MODEL.splitlines().index('            raise ValueError("only later")')
    assert f"ValueError: only later (models/line.py:{line})" in done.err
    assert "It failed twice after step 3." in done.err
    assert f"--fork {project.run.run}" in done.err or "No step is committed" in done.err


def test_a_run_that_went_on_is_not_new(tmp_path: Path) -> None:
    """The first step of an attempt that resumes is no first step of the run."""
    project = Project(tmp_path)
    project.trap("SIGKILL", call=11 * 4, committed=5)
    assert project.attempt().code == 75
    project.trap("raise", call=1, stays=True)
    done = project.attempt()
    assert done.code == 2, done.err
    resumed = steps_of(project.run)[-1]
    assert resumed >= 5
    assert f"It failed twice after step {resumed}." in done.err
    assert f"add --fork {project.run.run}, which goes on at step {resumed}" in done.err


def test_the_contract_of_components_may_be_kept_in_many_ways(tmp_path: Path) -> None:
    """`train()` that returns nothing, and splits in a mapping that is no dict."""
    project = Project(tmp_path)
    silent = "class Silent(nn.Sequential):\n    def train(self, mode=True):\n"
    silent += "        super().train(mode)\n\n\n"
    model = MODEL.replace("def build", silent + "def build").replace(
        "nn.Sequential(\n", "Silent(\n"
    )
    project.write("models/line.py", model)
    splits = DATASET.replace(
        'return {"train":', 'from collections import UserDict\n    return UserDict({"train":'
    )
    project.write("datasets/points.py", splits.rstrip().removesuffix("}") + "})\n")
    done = project.attempt("train.steps=2")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (TypeError("forward() got 3"), False),
        (KeyError("labels"), False),
        (FileNotFoundError("rows.bin"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (httpx.ConnectError("no route"), True),
        (MemoryError(), True),
        (dist.DistNetworkError("peer is gone"), True),
        (RuntimeError("NCCL error: unhandled system error"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("cumsum_cuda does not have a deterministic implementation"), True),
        (TrainError("one of xrun's own"), True),
    ],
)
def test_who_is_to_blame(error: Exception, machine: bool) -> None:
    """By the kind of the error, also where it comes from another one."""
    assert is_of_the_machine(error) is machine
    outer = ValueError("cannot read the row")
    outer.__cause__ = error
    network = isinstance(error, OSError | httpx.HTTPError) and machine
    assert is_of_the_machine(outer) is network


def test_an_error_is_one_line() -> None:
    """Also a worker's, which brings a whole traceback along."""
    assert in_short(ValueError("first.\n\nsecond")) == "ValueError: first"
    assert in_short(KeyError()) == "KeyError"
    worker = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback ...\n  File 1\n"
    assert in_short(ValueError(worker + "ValueError: sample 20\n")) == "ValueError: sample 20"


def test_errors_of_no_component_pass() -> None:
    """What comes through neither the loader nor the model is nobody's mistake here."""
    components = Components("models/m.py", "datasets/d.py")
    with pytest.raises(ZeroDivisionError), components.proving("model"):
        _ = 1 / 0
    with pytest.raises(ComponentError, match=r"models/m\.py: .*got float"):
        raise components.bad_output("model", "got float")


@pytest.mark.parametrize("kind", ["map", "iterable", "torch"])
def test_hugging_face_rows_train_as_they_are(tmp_path: Path, kind: str) -> None:
    """Rows of lists, without a format, are the tensors that a format makes of them."""
    losses = {}
    for each in (kind, "numpy"):
        project = Project(tmp_path / each)
        project.write("models/line.py", FLAT)
        project.write("datasets/points.py", ROWS)
        done = project.attempt("train.steps=4", f"dataset.args={{kind: {each}}}")
        assert done.code == 0, done.err
        losses[each] = [point["train/loss"] for point in curve(project.run).values()]
    if kind != "iterable":  # whose samples come in another order
        assert losses[kind] == losses["numpy"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_parameter_of_the_first_forward_pass_is_refused(tmp_path: Path, processes: int) -> None:
    """Before a step is made, by its name: nothing would train it."""
    project = Project(tmp_path)
    project.write("models/line.py", LATE)
    done = project.attempt(processes=processes)
    assert done.code == 2
    assert "models/line.py: the forward pass makes the parameter scale" in done.err
    assert "train/loss" not in str(list(project.run.points()))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("{name: adamw, lr: 0.01}", "Adam does not support sparse gradients"),
        ("{name: sparseadam, lr: 0.01}", "SparseAdam does not support dense gradients"),
    ],
)
def test_an_optimizer_that_cannot_step_is_a_sentence(
    tmp_path: Path, optimizer: str, said: str
) -> None:
    """After the first gradients, with the way out, and no traceback."""
    project = Project(tmp_path)
    project.write("models/line.py", SPARSE)
    done = project.attempt(f"train.optimizer={optimizer}")
    assert done.code == 6
    assert "The first step of the optimizer failed: RuntimeError: " in done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_hugging_face_streams_train(tmp_path: Path) -> None:
    """A stream of Hugging Face's, with shards, formatted as tensors, is what it says it is."""
    project = Project(tmp_path)
    project.write(
        "datasets/points.py",
        """
import datasets


def build():
    rows = [{"input": [float(i), 0.0, 1.0, 2.0], "labels": i % 3} for i in range(40)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4)
    return {"train": stream.with_format("torch")}
""",
    )
    done = project.attempt("train.steps=7")
    assert done.code == 0, done.err
    samples = {point["train/samples"] for point in project.run.points()}
    assert len(samples) == 7


def test_the_room_needs_no_network_library() -> None:
    """Errors of libraries that nobody has imported are known by their names."""
    code = "import sys, xrun.training.contract; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
