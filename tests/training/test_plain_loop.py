"""What trains in a plain torch loop trains here with the same losses: odd models, batches and
outputs, each by a real rank and by a loop of a few lines on the same samples."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from support.running import RECIPE, Project, curve, weights
from xrun.component import load_build
from xrun.data.loader import Fetch
from xrun.data.randomness import INIT, LOOP, seed_generators
from xrun.data.sampler import Sampler

STEPS, GLOBAL, MICRO = 6, 8, 4

MODELS = '''\
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm


class Own(nn.Module):
    """A body and a head with something odd between."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.prepare()

    def prepare(self):
        pass

    def between(self, h):
        return h

    def forward(self, x):
        return self.head(self.between(torch.relu(self.body(x))))


class Frozen(Own):
    def prepare(self):
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.norm.eval(), self.drop.eval()

    def between(self, h):
        return self.drop(self.norm(h))


class OwnTrain(Own):
    def prepare(self):
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()

    def between(self, h):
        return self.norm(h)


class SparseFunctional(Own):
    def prepare(self):
        self.table = nn.Parameter(torch.randn(5, 8))

    def between(self, h):
        rows = (h.detach().sum(1).abs() * 100).long() % 5
        return h + F.embedding(rows, self.table, sparse=True)


class SparseModule(Own):
    def prepare(self):
        self.table = nn.EmbeddingBag(5, 8, sparse=True, mode="sum")

    def between(self, h):
        rows = (h.detach().sum(1).abs() * 100).long() % 5
        return h + self.table(rows[:, None])


class Complex(Own):
    def prepare(self):
        self.phase = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def between(self, h):
        return torch.fft.irfft(torch.fft.rfft(h) * self.phase, n=8)


class MixedTypes(Own):
    def prepare(self):
        self.scale = nn.Parameter(torch.ones(8, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(8, dtype=torch.bfloat16))

    def between(self, h):
        return (h * self.scale).float() + self.shift.float()


class Clamped(Own):
    def prepare(self):
        self.scale = nn.Parameter(torch.tensor(0.01))

    def between(self, h):
        with torch.no_grad():
            self.scale.clamp_(0, 0.005)
            self.head.weight.data.clamp_(-0.3, 0.3)
        return h * self.scale * 200


class SometimesUsed(Own):
    def prepare(self):
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.pooler = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def between(self, h):
        chosen = int((h.detach().sum() * 100).abs()) % 4
        return h if chosen == 3 else h + self.experts[chosen](h)


class Late(Own):
    def prepare(self):
        self.register_buffer("late", None)
        self.register_buffer("mean", torch.zeros(1))

    def between(self, h):
        if self.late is None:
            self.late = torch.ones(8)
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.zeros(8))
        self.made += 1
        seen = h.detach().mean(0)
        self.mean = seen if self.mean.numel() == 1 else 0.9 * self.mean + 0.1 * seen
        return h * self.late - self.mean + self.made * 0.01


class Hooked(Own):
    def prepare(self):
        self.body.register_forward_hook(lambda module, inputs, output: output * 1.5)
        self.head.weight.register_hook(lambda grad: grad * 0.5)


class Tied(Own):
    def prepare(self):
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.again = self.head

    def between(self, h):
        return self.two(self.one(h))


class Recurrent(Own):
    def prepare(self):
        self.lstm = nn.LSTM(2, 8, batch_first=True)
        self.kept = None

    def between(self, h):
        self.kept = self.lstm(h.reshape(-1, 4, 2))[0][:, -1]
        return self.kept


class OwnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class StraightThrough(Own):
    def between(self, h):
        return OwnFunction.apply(h * 8) / 8


class InnerGradient(Own):
    """A penalty on the gradient of its own output."""

    def between(self, h):
        with torch.enable_grad():
            probe = h.detach().requires_grad_()
            energy = self.head(probe).pow(2).sum()
            (grad,) = torch.autograd.grad(energy, probe, create_graph=self.training)
        return h - 0.01 * grad


class Views(Own):
    """Parameters that are views of one flat tensor, as flattened models have them."""

    def prepare(self):
        flat = torch.randn(64 + 8) * 0.1
        self.inner = nn.Linear(8, 8)
        self.inner.weight = nn.Parameter(flat[:64].view(8, 8))
        self.inner.bias = nn.Parameter(flat[64:])

    def between(self, h):
        return self.inner(h)


class Empty(Own):
    def prepare(self):
        self.none, self.scalar = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.tensor(1.0))
        self.whole = nn.Parameter(torch.arange(3), requires_grad=False)
        self.gone = None

    def between(self, h):
        return h * self.scalar + self.none.sum()


class Memory(Own):
    """Fast weights without gradient that a forward pass changes."""

    def prepare(self):
        self.slow = nn.Linear(8, 8)
        self.slow.requires_grad_(False)
        self.step = nn.Parameter(torch.zeros(()), requires_grad=False)

    def between(self, h):
        with torch.no_grad():
            self.step += 1
            self.slow.weight.lerp_(torch.eye(8), 0.1)
        return self.slow(h)


def build(kind: str):
    body, head = nn.Linear(4, 8), nn.Linear(8, 3)
    if kind == "weight norm":
        return nn.Sequential(weight_norm(body), parametrizations.weight_norm(head))
    if kind == "spectral norm":
        return nn.Sequential(spectral_norm(body), parametrizations.spectral_norm(head))
    if kind == "orthogonal":
        return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 3))
    if kind == "pruned":
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        prune.random_unstructured(net[0], "weight", 0.5)
        return net
    if kind == "scripted":
        return torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    if kind == "compiled":
        return torch.compile(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), backend="eager")
    return {k.__name__: k for k in Own.__subclasses__()}[kind]()
'''
ALONE = """\
from xrun.components.datasets.points import Points


def build():
    return {"train": Points("train", 100)}
"""
"""Without a split `val`, whose forward passes would change what some of these models keep."""
KINDS = [
    *("Frozen", "OwnTrain", "SparseFunctional", "SparseModule", "Complex", "MixedTypes"),
    *("Clamped", "SometimesUsed", "Late", "Hooked", "Tied", "Recurrent", "StraightThrough"),
    *("InnerGradient", "Views", "Empty", "Memory", "weight norm", "spectral norm", "orthogonal"),
    *("pruned", "scripted", "compiled"),
]
OWN_MEMORY = ("Late", "Memory", "spectral norm")
"""What they keep depends on the micro-batches that a process has seen, as under torch's own DDP."""
NO_DDP = ("SparseFunctional", "SparseModule", "scripted", "compiled")
"""What torch's DDP itself does not take or sums wrongly, or what takes long twice."""
SPARSE = {"SparseFunctional", "SparseModule"}


def optimizer_of(kind: str) -> tuple[str, dict[str, Any]]:
    """Those that take sparse gradients have no momentum."""
    return ("SGD", {"lr": 0.05}) if kind in SPARSE else ("AdamW", {"lr": 0.05, "weight_decay": 0.1})


def plain(project: Project, kind: str) -> tuple[list[float], Any]:
    """A plain torch loop's losses, and the weights after it."""
    split = load_build("datasets", "alone", project.root)()["train"]
    seed_generators(0, INIT, 0)
    model = load_build("models", "odd", project.root)(kind=kind)
    if kind == "OwnTrain":
        model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1]},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    name, options = optimizer_of(kind)
    optimizer = getattr(torch.optim, name)([g for g in groups if g["params"]], **options)
    fetch, sampler = Fetch(split, 0), Sampler(len(split), GLOBAL, MICRO, 0)
    losses = [one_step(model, optimizer, fetch, sampler, step) for step in range(STEPS)]
    return losses, model.state_dict()


def one_step(model: Any, optimizer: Any, fetch: Fetch, sampler: Sampler, step: int) -> float:
    """The loss of a step."""
    optimizer.zero_grad()
    total = 0.0
    for piece in sampler.step(step, 0, 1):
        x, y = fetch[piece][1]
        seed_generators(0, LOOP, step, piece.slot)
        loss = functional.cross_entropy(model(x), y, reduction="sum") / GLOBAL
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("plain"), RECIPE)
    project.write("models/odd.py", MODELS)
    project.write("datasets/alone.py", ALONE)
    return project


def overrides(kind: str) -> list[str]:
    name, options = optimizer_of(kind)
    told = ", ".join(f"{key}: {value}" for key, value in options.items())
    return [
        "dataset.name=alone",
        f"model={{name: odd, args: {{kind: {kind}}}}}",
        f"train.steps={STEPS}",
        f"train.global_batch={GLOBAL}",
        f"train.micro_batch={MICRO}",
        f"train.optimizer={{name: {name}, {told}}}",
        "checkpoint.every=3 steps",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*jit:DeprecationWarning")
def test_it_has_the_losses_of_a_plain_loop(project: Project, kind: str) -> None:
    """Step by step, on one process and on two; the final weights too."""
    losses, state = plain(project, kind)
    for processes in (1,) if kind in OWN_MEMORY + NO_DDP else (1, 2):
        done = project.attempt(*overrides(kind), processes=processes, run=run_of(kind, processes))
        assert done.code == 0, done.err
        own = [point["train/loss"] for point in curve(project.run).values()]
        assert own == pytest.approx(losses, rel=1e-3, abs=1e-5)
        found = load_file(project.run.model / "model.safetensors")
        for name, tensor in found.items():
            known = state[name]
            known = (
                torch.view_as_real(known)
                if known.is_complex() and not tensor.is_complex()
                else known
            )
            assert torch.allclose(tensor, known, rtol=1e-2, atol=1e-3), name


def run_of(kind: str, which: object) -> str:
    """A run of its own."""
    return f"tiny-{hashlib.sha256(f'{kind}{which}'.encode()).hexdigest()[:8]}"


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_after_a_stop(project: Project, kind: str) -> None:
    """With a moving average and a micro-batch that is found: the bits of a run in one go."""
    own = [*overrides(kind), "train.ema=0.9", "train.micro_batch=auto"]
    runs = {}
    for name, steps in (("whole", [STEPS]), ("halves", [STEPS // 2, STEPS])):
        for last in steps:
            done = project.attempt(*own, f"train.steps={last}", run=run_of(kind, name))
            assert done.code == 0, done.err
        runs[name] = curve(project.run), weights(project.run)
    assert runs["whole"] == runs["halves"]
