"""What only a GPU can show: real attempts on CUDA, each rank a process of its own. Skipped without
a GPU; `make gpu` runs them.

A rank takes the GPU wherever there is one, so these are runs like any other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.paths import ROOT, SOURCES
from support.running import PER_STEP, READS, RECIPE, Done, Project, curve, record, steps_of, weights
from xrun.checkpoint.snapshot import Snapshot, _pin, on_device
from xrun.checkpoint.tensor_file import bytes_of
from xrun.machine.driver import ask_driver
from xrun.recipe.load import load_recipe
from xrun.training.accelerator import configure_torch
from xrun.training.conditions import build_here, environment_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.once,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

COMPILES = bool(importlib.util.find_spec("triton") and (shutil.which("cc") or shutil.which("gcc")))
FEATURES = {
    "fp32": [],
    "bf16": ["train.precision=bf16", "train.clip_grad_norm=0.1"],
    "fp16": ["train.precision=fp16", "train.clip_grad_norm=0.1"],
    "ema, pinned by workers": ["train.ema=0.9", "train.num_workers=2"],
    "exact": ["train.reduction=exact"],
    "compile": ["train.compile=true"],
}
HUNGRY = """
import torch
from torch import nn

GIB = 2**30


class Hungry(nn.Sequential):
    def forward(self, x):
        if self.training and x.is_cuda:
            torch.empty(len(x), GIB // 4, dtype=torch.uint8, device=x.device)
        return super().forward(x)


def build():
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(0.7 * GIB / total)
        # What cuBLAS takes for both threads of a step would else be cut out of the model's GIB / 2.
        line = torch.ones(8, 8, device="cuda", requires_grad=True)
        (line @ line).sum().backward()
    return Hungry(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
"""
MAPS = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1))
"""
PICTURES = """
import torch


class Pictures(torch.utils.data.Dataset):
    def __init__(self, n):
        self.images = torch.randn(n, 2, 5, 4, generator=torch.Generator().manual_seed(n))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        labels = (self.images[i] > 0.3).sum(0)
        labels[i % 5] = -100
        return self.images[i], labels


def build():
    return {"train": Pictures(40), "val": Pictures(9)}
"""
ROOTED = """
import torch
from pathlib import Path
from torch import nn


class Rooted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x, y):
        self.calls += self.training
        loss = nn.functional.cross_entropy(self.net(x), y)
        if self.training and self.calls > 30:
            loss = loss + (self.net.weight * 0).square().sum().sqrt()
        return loss


def build():
    return Rooted()
"""


def environ(**more: str) -> dict[str, str]:
    """Where this Python has its libraries, wherever they come from, and the GPU that it sees."""
    own = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    libraries = {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    return {"PYTHONPATH": os.pathsep.join([SOURCES, *sys.path]), **libraries, **own, **more}


def run(project: Project, *overrides: str) -> Done:
    """The command, which tries again by itself after a kill."""
    settings = [part for each in overrides for part in ("-s", each)]
    return project.xrun("recipes/tiny.yaml", "--yes", *settings, environ=environ())


def bits(project: Project) -> Any:
    return curve(project.run), weights(project.run)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, feature: str
) -> None:
    """On CUDA, with deterministic kernels (CUBLAS_WORKSPACE_CONFIG among them), autocast, the
    scaler of fp16, compiled kernels: killed at step 8 and resumed from step 5."""
    if feature == "compile" and not COMPILES:
        pytest.skip("needs Triton and a C compiler")
    overrides = [*FEATURES[feature], "train.steps=12"]
    one, other = Project(tmp_path / "one"), Project(tmp_path / "other")
    done = run(one, *overrides)
    assert done.code == 0, done.err
    per_step = 2 if "workers" in feature else PER_STEP
    other.trap("SIGKILL", call=7 * per_step + 1, committed=5)
    done = run(other, *overrides)
    assert done.code == 0, done.err
    first, *more = record(other.run)["attempts"]
    # A loader's worker that is gone is replaced within its attempt.
    resumed = [first] if "workers" in feature else more
    assert [each["resumed_step"] for each in resumed] == [5]
    assert bits(other) == bits(one)
    told = record(one.run)["checkpoints"][-1]["environment"]
    assert told["device"] == torch.cuda.get_device_name()
    assert told["cuda"] == torch.version.cuda


def test_what_does_not_fit_is_computed_in_parts(tmp_path: Path) -> None:
    """CUDA's own out-of-memory error: a micro-batch of 4 wants 1 GiB of 0.7, half of it fits."""
    project = Project(tmp_path, RECIPE.replace("micro_batch: 2", "micro_batch: 4"))
    project.write("models/line.py", HUNGRY)
    done = run(project)
    assert done.code == 0, done.err
    assert "A micro-batch of 4 in 1 parts does not fit into memory" in done.err
    assert record(project.run)["attempts"][-1]["parts"] == 2, done.err
    assert max(curve(project.run)) == 20


def test_maps_of_classes_are_trained(tmp_path: Path) -> None:
    """With deterministic kernels, of which torch has none for the loss of such maps as they are;
    and a metric is counted."""
    pytest.importorskip("torchmetrics")
    project = Project(tmp_path)
    project.write("models/maps.py", MAPS)
    project.write("datasets/pictures.py", PICTURES)
    parts = ("task=segmentation", "model={name: maps}", "dataset={name: pictures}")
    done = run(project, *parts, "train.evaluate={every: 10 steps, metrics: [miou]}")
    assert done.code == 0, done.err
    assert max(curve(project.run)) == 20


@pytest.mark.parametrize("clip", ["null", "0.1"])
def test_a_gradient_that_is_not_finite_is_not_stepped_on(tmp_path: Path, clip: str) -> None:
    """The loss is a number and its gradient is none: the fused optimizer leaves the weights as they
    were, the run ends with 6, and the newest checkpoint is finite."""
    project = Project(tmp_path)
    project.write("models/rooted.py", ROOTED)
    setting = f"train.clip_grad_norm={clip}"
    done = run(project, "task=model", "model={name: rooted}", setting)
    assert done.code == 6, done.err
    assert "the gradient of net.weight is not finite" in done.err
    newest = record(project.run)["checkpoints"][-1]
    assert newest["step"] == steps_of(project.run)[-1] < 8
    assert max(curve(project.run)) == 7


@pytest.mark.parametrize("feature", ["fp32", "bf16", "exact"])
def test_a_step_waits_for_the_device_once(tmp_path: Path, feature: str) -> None:
    """Loss, norm and verdict come together: one copy to the host that is waited for, under torch's
    profiler; a save, which waits in a thread of its own, is not among these steps."""
    project = Project(tmp_path)
    project.write("models/line.py", READS.replace("CALLS", str(PER_STEP)))
    overrides = ["task=model", "train.clip_grad_norm=0.1", "checkpoint.every=1000 steps"]
    done = run(project, *FEATURES[feature], *overrides, "train.steps=12")
    assert done.code == 0, done.err
    seen = json.loads((tmp_path / "models" / "reads.json").read_text())
    assert seen["Memcpy DtoH (Device -> Pageable)"] == 1, seen
    assert seen["cudaStreamSynchronize"] + seen.get("cudaEventSynchronize", 0) <= 1, seen


@pytest.mark.parametrize("tf32", [False, True])
def test_fp32_is_fp32_unless_tf32_is_allowed(tmp_path: Path, tf32: bool) -> None:
    """Products and convolutions, against fp64: 24 significant bits, or 11."""
    recipe = Project(tmp_path).recipe
    configure_torch(load_recipe(recipe, [f"train.tf32={str(tf32).lower()}"]).train)
    try:
        for product, shape in ((torch.matmul, (256, 256)), (nn.functional.conv1d, (256, 256, 4))):
            a, b = (torch.randn(shape, device="cuda") for _ in range(2))
            exact = product(a.double(), b.double())
            error = float((product(a, b) - exact).abs().max() / exact.abs().max())
            assert (error > 1e-5) == tf32, (product, error)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.set_deterministic_debug_mode("default")


def test_a_snapshot_is_pinned_and_right() -> None:
    """The copy lies in locked memory, which the GPU writes to while it computes, also after it
    changed its size; any layout is right."""
    snapshot = Snapshot()
    for size in (1000, 3000):
        sources = {
            "t": torch.randn(size, 7, device="cuda").t(),
            "half": torch.randn(size, device="cuda").bfloat16(),
            "scalar": torch.tensor(3.5, device="cuda"),
        }
        snapshot.copy({"file": sources}, set(sources))
        torch.cuda.synchronize()
        room = snapshot.rooms["file"]
        assert room.is_pinned()
        expected = b"".join(bytes(bytes_of(each.cpu().contiguous())) for each in sources.values())
        assert room.numpy().tobytes() == expected


def test_a_copy_on_the_gpu_is_made_where_there_is_room() -> None:
    """A step may change the weights at once; where training has taken nearly all of the memory no
    such copy is made, nor of what lies elsewhere."""
    parts = {"a": torch.randn(1000, 7, device="cuda").t(), "b": torch.ones(3, device="cuda")}
    before = {name: part.cpu() for name, part in parts.items()}
    staged = on_device(parts)
    for part in parts.values():
        part.zero_()
    assert staged.keys() == before.keys()
    assert all(part.cpu().equal(before[name]) for name, part in staged.items())
    assert on_device({**parts, "c": torch.ones(3)}) == {}
    most = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.95), dtype=torch.uint8, device="cuda")
    assert on_device(parts) == {}
    del most
    torch.cuda.empty_cache()
    assert on_device(parts) == {}, "training has taken as much before and may do so again"
    torch.cuda.reset_peak_memory_stats()
    assert on_device(parts).keys() == parts.keys()


def test_memory_is_locked_for_as_long_as_it_lives() -> None:
    """What is mapped where a copy was is ordinary memory: it is locked anew, and moves to the
    GPU."""
    source = {"file": {"t": torch.randn(1 << 24, device="cuda")}}
    for _ in range(10):
        Snapshot().copy(source, {"t"})
        torch.cuda.synchronize()
        plain = [torch.ones(1 << size) for size in range(20, 26)]
        assert all(bool((each.cuda() == 1).all()) for each in plain)


def test_memory_that_cannot_be_locked_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The next kernel is not blamed for it."""
    room = np.zeros(1 << 20, np.uint8)
    for _ in range(2):
        _pin(room)
    assert "could not be locked (part or all of the requested memory range" in caplog.text
    assert torch.ones(8, device="cuda").sum().item() == 8


@pytest.mark.parametrize(("more", "code"), [(0, 0), (1, 75)])
def test_the_gpus_that_were_rented_are_there(tmp_path: Path, more: int, code: int) -> None:
    """As many as torch sees are fine, one more is refused with the driver and the build."""
    seen = torch.cuda.device_count()
    if not more and seen > 1:
        pytest.skip("several GPUs train together, which is another promise")
    project = Project(tmp_path)
    plan = project.plan("train.steps=2")
    plan.folder.mkdir(parents=True)
    path = plan.folder / "plan.json"
    path.write_text(plan.to_json())
    cloud = environ(SKYPILOT_NODE_IPS="127.0.0.1", SKYPILOT_NUM_GPUS_PER_NODE=str(seen + more))
    done = subprocess.run(
        [sys.executable, "-m", "xrun.supervisor.entrypoint", str(path)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **cloud},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    if code:
        reason = record(project.run)["attempts"][-1]["reason"]
        assert f"torch sees {seen} of the {seen + 1} accelerators" in reason
        assert f"{torch.__version__}, CUDA {torch.version.cuda}; {ask_driver()}" in reason


def test_this_build_serves_this_gpu() -> None:
    """And the machine's answer to which build it needs agrees with what its torch was built for."""
    build = build_here()
    assert build.lacks(torch.cuda.device_count()) == ""
    script = ROOT / "runner" / "xrun" / "launcher" / "arrival" / "torch_build.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split(), "no build for this machine"
    major = str(torch.version.cuda).partition(".")[0]
    assert any(name.startswith(f"cu{major}") for name in done.stdout.split())


def test_nccl_is_a_condition_of_several_processes() -> None:
    """Of one it is none."""
    device = torch.device("cuda")
    number = ".".join(map(str, torch.cuda.nccl.version()))
    assert environment_of(device, 2)["nccl"].startswith(number)
    assert "nccl" not in environment_of(device, 1)
