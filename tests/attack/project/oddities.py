"""Odd modules that a plain torch loop trains, each from (n, width) to (n, width).

They are a user's code: nothing here knows of xrun. `BLOCKS` has them by name.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

BLOCKS: dict[str, Callable[[int], nn.Module]] = {}


def block(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Register it under its own name in lower case."""
    BLOCKS[make.__name__.lower()] = make
    return make


@block
def linear(width: int) -> nn.Module:
    return nn.Linear(width, width)


@block
def frozen_linear(width: int) -> nn.Module:
    return nn.Linear(width, width).requires_grad_(False)


@block
def batch_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width)


@block
def cumulative_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, momentum=None)


@block
def bare_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, affine=False)


@block
def untracked_norm(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, track_running_stats=False)


@block
def half_frozen_norm(width: int) -> nn.Module:
    """Its weights are frozen, its statistics move."""
    return nn.BatchNorm1d(width).requires_grad_(False)


@block
def eval_norm(width: int) -> nn.Module:
    """A frozen part with the statistics that it came with."""
    return (
        nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)).requires_grad_(False).eval()
    )


@block
class OwnTrain(nn.Module):
    """What detection models do: their norms never leave evaluation, whoever calls train()."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.train()

    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.line(x))


@block
def layer_norm(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.GroupNorm(2, width), nn.RMSNorm(width))


@block
def dropout(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Dropout(0.3), nn.AlphaDropout(0.1))


@block
class Noise(nn.Module):
    """Random numbers of all three generators, also in evaluation."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        drawn = 0.1 * random.random() + 0.1 * float(np.random.random())
        return x + drawn * torch.rand_like(x)


@block
class Counter(nn.Module):
    """It counts its calls, those in evaluation too, and grows with them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls.float())


@block
class Kinds(nn.Module):
    """Buffers of many types, each moved by the forward pass."""

    WHOLE = ("uint8", "int8", "int16", "int32", "int64")
    REAL = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("flag", torch.tensor([True, False, True]))
        for name in (*self.WHOLE, *self.REAL):
            self.register_buffer(name, torch.arange(3).to(getattr(torch, name)))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.flag.logical_not_()
            for name in self.WHOLE:
                getattr(self, name).add_(1)
            for name in self.REAL:
                getattr(self, name).mul_(1.0078125)
        whole = sum(getattr(self, name).float().sum() for name in self.WHOLE)
        real = sum(getattr(self, name).to(torch.complex64).real.sum() for name in self.REAL)
        return x + 0.001 * (whole + real + self.flag.float()[0])


@block
class Codes(nn.Module):
    """Whole numbers by which it gathers, as position ids."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(width - 1, -1, -1))
        self.register_buffer("mask", torch.arange(width) % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order] * self.mask


@block
class Reassigned(nn.Module):
    """A running mean that is a new tensor each time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("nothing", None)
        self.register_parameter("none", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().float().mean(0)
        return x - self.mean


@block
class Growing(nn.Module):
    """A memory of what came, whose shape grows to its limit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = torch.cat([self.seen, x.detach().float()[:2]])[-16:]
        return x - self.seen.mean(0) if len(self.seen) else x


@block
class Late(nn.Module):
    """A buffer that is there from the first call on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.late is None:
            self.late = x.detach().float().mean(0)
        if self.training:
            self.late = 0.9 * self.late + 0.1 * x.detach().float().mean(0)
        return x - self.late


@block
class Aliases(nn.Module):
    """Two buffers in one memory, and a constant that no state has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("one", torch.zeros(2, width))
        self.register_buffer("part", self.one[1])
        self.register_buffer("constant", torch.full((width,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.part.add_(0.1 * x.detach().float().mean(0))
        return x + 0.01 * self.one.sum(0) + self.constant


@block
class Shapes(nn.Module):
    """Parameters without a dimension, without an element, and not contiguous."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.turned = nn.Parameter(torch.randn(width, width).t() / width)
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.turned) + self.one + self.empty.sum()


@block
class Doubles(nn.Module):
    """Parameters of more and of less precision than the rest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.long = nn.Parameter(torch.randn(width, width, dtype=torch.float64) / width)
        self.short = nn.Parameter(torch.randn(width).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return (x.double() * self.long.sum(0)).float() + self.short.float()


@block
class Complex(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) * self.weight).abs()


@block
class Spectrum(nn.Module):
    """A complex matrix between two Fourier transforms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width // 2 + 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.fft.rfft(x.float()) * torch.view_as_complex(self.weight)
        return torch.fft.irfft(turned, n=x.shape[1])


@block
class Tied(nn.Module):
    """One weight under three names, and a bias under two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.again = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.relu(self.b(self.a(x))))


@block
def weight_normed(width: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(width, width))


@block
def spectral(width: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(width, width))


@block
def orthogonal(width: int) -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(width, width))


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).t()


@block
def symmetric(width: int) -> nn.Module:
    line = nn.Linear(width, width)
    parametrize.register_parametrization(line, "weight", _Symmetric())
    return line


@block
def pruned(width: int) -> nn.Module:
    return prune.l1_unstructured(nn.Linear(width, width), "weight", amount=0.3)


@block
def old_spectral(width: int) -> nn.Module:
    """torch's older way: the weight is an attribute that each call makes anew."""
    return nn.utils.spectral_norm(nn.Linear(width, width))


@block
class Lists(nn.Module):
    """Parameters in lists and dicts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.list = nn.ParameterList([torch.randn(width) for _ in range(3)])
        self.dict = nn.ParameterDict(
            {"a.b".replace(".", "_"): torch.randn(width), "c": torch.ones(1)}
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.list[0] + self.list[1] * self.dict["a_b"] + self.list[2] * self.dict["c"]


@block
class Sparse(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(width, width, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(x.argmax(1))


@block
class Bounded(nn.Module):
    """An embedding that shortens its own rows when it is asked (max_norm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(width, width, max_norm=1.0, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(x.argmax(1))


@block
class Clamped(nn.Module):
    """A temperature that the forward pass keeps in its bounds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.99))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.clamp_(0, 1)
        return x * self.scale


@block
class Unused(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@block
class Seldom(nn.Module):
    """Experts that take turns, so that each is without a gradient most of the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        turn = int(self.turn) // 5 % len(self.experts)
        if self.training:
            self.turn.add_(1)
        return self.experts[turn](x)


@block
class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(2, width, num_layers=2, dropout=0.2, batch_first=True)
        self.lstm = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x.reshape(len(x), -1, 2))
        return self.lstm(out)[0][:, -1]


@block
class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.stack([x, -x], 1))[:, 0]


@block
class Momentum(nn.Module):
    """A second encoder that follows the first in the forward pass (MoCo, BYOL)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fast, self.slow = nn.Linear(width, width), nn.Linear(width, width)
        self.slow.load_state_dict(self.fast.state_dict())
        self.slow.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                    slow.mul_(0.9).add_(fast, alpha=0.1)
        return self.fast(x) - 0.1 * self.slow(x)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1, 1)


@block
class Rounded(nn.Module):
    """A function with a gradient of its own, and a hook on a parameter's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, width)
        self.line.weight.register_hook(lambda gradient: 0.5 * gradient)

    def forward(self, x: Tensor) -> Tensor:
        return _Straight.apply(self.line(x))


@block
class Recomputed(nn.Module):
    """Its activations are computed again in the backward pass, dropout included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.2), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@block
def lazy(width: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(width), nn.LazyBatchNorm1d())


@block
class Whole(nn.Module):
    """A parameter of whole numbers that nobody trains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.arange(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * self.steps


@block
class Pictures(nn.Module):
    """Convolutions in torch's other layout of memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm, self.back = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        image = x.reshape(len(x), 2, -1, 2).to(memory_format=torch.channels_last)
        return self.back(torch.relu(self.norm(self.conv(image)))).reshape(x.shape)


@block
class Extra(nn.Module):
    """State of its own, as a tensor, by torch's way for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line, self.calls = nn.Linear(width, width), torch.zeros(2)

    def get_extra_state(self) -> Tensor:
        return self.calls

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = state

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.line(x) * (1 + 0.01 * float(self.calls[0]))


@block
class OwnState(nn.Module):
    """What it saves is a copy of what it has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, width)
        self.register_state_dict_post_hook(self._copied)

    @staticmethod
    def _copied(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
        state[f"{prefix}line.weight"] = state[f"{prefix}line.weight"].detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x)


@block
class Mute(nn.Module):
    """Its train() returns nothing, as hand-written ones often do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, width)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # that is what is odd
        super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x)


@block
class Unkeyed(nn.Module):
    """Numbers that follow from no seed: never drawn, and never the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x) + 0.01 * os.urandom(1)[0]
