"""Every kind of tensor that a module may keep: it is trained, saved, resumed, exported and loaded
back, or refused before the first step with its name. Whole lives of a rank, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.running import Project, weights
from xrun import load_model
from xrun.errors import ComponentError, TrainError, XrunError
from xrun.machine.stop import StopFlag
from xrun.run.folder import RunFolder
from xrun.run.record import AttemptRecord, RunRecord
from xrun.run.stores import open_store
from xrun.training.rank import built

pytestmark = pytest.mark.once

HEAD = """
import copy
import torch
from torch import nn
from torch.nn.utils import parametrizations
"""
PLAIN = """
class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        {init}

    def forward(self, x):
        return {forward}
    {more}

def build(width: int = 8):
    return Kept()
"""


def model(init: str = "pass", forward: str = "self.line(x)", more: str = "") -> str:
    return HEAD + PLAIN.format(init=init, forward=forward, more=more)


KEPT = {
    "weight norm": model("parametrizations.weight_norm(self.line)"),
    "spectral norm": model("parametrizations.spectral_norm(self.line)"),
    "orthogonal": model("parametrizations.orthogonal(self.line)"),
    "weight norm of old": model("nn.utils.spectral_norm(self.line)"),
    "lazy norm": model("self.norm = nn.LazyBatchNorm1d()", "self.line(self.norm(x))"),
    "tied": model("self.other = nn.Linear(4, 3); self.other.weight = self.line.weight",
                  "self.line(x) + self.other(x)"),
    "one module under two names": model("self.other = self.line", "self.line(x) + self.other(x)"),
    "slices of one tensor": model(
        "whole = torch.randn(6); self.a, self.b = nn.Parameter(whole[:3]), nn.Parameter(whole[3:])",
        "self.line(x) + self.a * self.b"),
    "a slice that overlaps": model(
        "whole = torch.randn(5); self.a, self.b = nn.Parameter(whole[:3]), nn.Parameter(whole[2:])",
        "self.line(x) + self.a * self.b"),
    "a buffer that is a view": model(
        "self.register_buffer('view', self.line.weight.detach()[0])",
        "self.line(x) + self.view.sum()"),
    "turned": model("self.line.weight = nn.Parameter(torch.randn(4, 3).t())"),
    "integers": model("self.a = nn.Parameter(torch.arange(3), requires_grad=False)",
                      "self.line(x) + self.a"),
    "truth values": model("self.register_buffer('a', torch.tensor([True, False, True]))",
                          "self.line(x) * self.a"),
    "complex": model("self.a = nn.Parameter(torch.randn(3, dtype=torch.complex64))",
                     "self.line(x) + (self.a * 1j).real"),
    "double complex": model("self.a = nn.Parameter(torch.randn(3, dtype=torch.complex128))",
                            "self.line(x) + self.a.abs().float()"),
    "a scalar": model("self.a = nn.Parameter(torch.tensor(1.5))", "self.line(x) * self.a"),
    "extra state": model(
        "self.n = torch.zeros(1)", "self.line(x)",
        "\n    def get_extra_state(self):\n        return self.n"
        "\n\n    def set_extra_state(self, n):\n        self.n = n\n"),
    "a state_dict with other names": model(more="""
    def state_dict(self, *args, **more):
        return {f"own.{name}": t for name, t in super().state_dict(*args, **more).items()}
"""),
    "bytes of 16 bits": model("self.register_buffer('a', torch.ones(3, dtype=torch.uint16))",
                              "self.line(x) * self.a.float()"),
}  # fmt: skip

REFUSED = {
    "sparse": (
        model("self.register_buffer('a', torch.eye(3).to_sparse())"), "model.a is stored as"),
    "of another type": (
        model("self.register_buffer('a', torch.ones(3).to(torch.float8_e8m0fnu))"),
        "model.a has the type torch.float8_e8m0fnu"),
    "without values": (model("self.register_buffer('a', torch.zeros(3, device='meta'))"),
                       "model.a is on the device meta"),
    "conjugated": (
        model("self.register_buffer('a', torch.ones(3, dtype=torch.complex128).conj())"),
        "model.a is a conjugated view"),
    "one number many times": (
        model("self.a = nn.Parameter(torch.randn(1).expand(3))", "self.line(x) + self.a"),
        "models/line.py: several elements of the parameter a share one place"),
    "state that is no tensor": (
        model(more="\n    def get_extra_state(self):\n        return {'n': 1}\n"
              "\n    def set_extra_state(self, n):\n        pass\n"),
        "model._extra_state: a module keeps state that is not a tensor"),
    "a shape that no sample gives": (
        model("self.unused = nn.LazyLinear(3)"), "unused (LazyLinear) has no shape"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What a rank sets in torch is set for its process."""
    mode, drawn = torch.get_deterministic_debug_mode(), torch.get_rng_state()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(mode)
    settings.fill_uninitialized_memory = fill
    torch.set_rng_state(drawn)


def life(project: Project, *overrides: str) -> dict[str, Tensor]:
    """One attempt, its one rank in this process; the final state."""
    plan = project.plan(*overrides)
    folder = RunFolder(plan.folder)
    folder.write_plan(plan)
    attempt = f"a{len(list(folder.path.glob('logs/*')))}"
    folder.logs(attempt).mkdir(parents=True)
    store = open_store(plan, attempt)
    head = store.head()
    record = RunRecord.of(head).begun(plan, AttemptRecord(attempt))
    store.commit(record.to_json(), head)
    with built(plan, attempt, StopFlag(), store) as training:
        training.run()
        return {n: t.clone() for n, t in training.state.model.state_dict().items()}


def made(root: Path, source: str) -> Project:
    root.mkdir()
    project = Project(root)
    project.write("models/line.py", source)
    return project


AVERAGED = ("weight norm", "lazy norm", "tied", "a buffer that is a view", "double complex")
"""Those that are copied for a moving average as well."""


@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, ()) for kind in KEPT), *((kind, ("train.ema=0.5",)) for kind in AVERAGED)],
    ids=[*KEPT, *(f"{kind}, averaged" for kind in AVERAGED)],
)
def test_what_a_module_keeps_goes_on(tmp_path: Path, kind: str, more: tuple[str, ...]) -> None:
    """A run that begins again at step 3 ends with the bits of one that was never disturbed, and the
    exported model has exactly them."""
    whole, broken = (made(tmp_path / name, KEPT[kind]) for name in ("whole", "broken"))
    end = life(whole, "train.steps=6", *more)
    life(broken, "train.steps=3", *more)
    again = life(broken, "train.steps=6", *more)
    assert end.keys() == again.keys()
    assert all(torch.equal(end[name], again[name]) for name in end)
    assert weights(whole.run) == weights(broken.run)
    loaded: dict[str, Any] = load_model(broken.run.model).state_dict()
    assert loaded.keys() == end.keys()
    if not more:
        assert all(torch.equal(end[name], loaded[name]) for name in end)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_kept_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    """Before the first step, by a sentence of the component's or of the training's."""
    source, says = REFUSED[kind]
    project = made(tmp_path / "p", source)
    with pytest.raises(XrunError) as no:
        life(project, "train.steps=2")
    assert isinstance(no.value, ComponentError | TrainError)
    assert says in str(no.value)
    assert not [point for point in project.run.points() if "train/loss" in point]
