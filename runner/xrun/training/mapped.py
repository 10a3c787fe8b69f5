"""The first weights of a sharded model, which no process ever holds in memory of its own.

On each node one process builds the model, and what `build` registers as parameters lies in a file
that all of them map. The others build it hollow, without values for its parameters, and take them
from that file; `fully_shard` then copies each process's rows out of it. The file has no name, so
that nothing is left of it, however a process ends.

What is no parameter or buffer (a tensor or a number as a plain attribute) is compared: where a
hollow build has come to something else, because it has drawn fewer random numbers or asked a
parameter for its value, that process builds the model in full, in a file of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from ..errors import ProcessesApart, TrainError, XrunError
from ..files import mapped
from .contract import in_short
from .world import World

_SEGMENT = 64 << 20
"""The file grows by so many bytes."""
_ALIGNED = 64
_DEEP = 4
"""Containers in one another in which a module keeps what is compared."""

Place = Callable[[Tensor], Tensor]
"""Where a parameter's numbers are put while a model is built."""
_place: Place | None = None


class CannotBeHollowError(Exception):
    """A model needs the values of its parameters while it is built."""


def placed(tensor: Tensor) -> Tensor:
    """A parameter's numbers where those of the model lie that is being built."""
    return tensor if _place is None else _place(tensor)


@contextlib.contextmanager
def placing() -> Iterator[None]:
    """While this lasts, what modules register as parameters is put where they are to lie.

    Entered by whoever calls `build`, inside of what changes their type, so that it comes after it.
    """
    if _place is None:
        yield
        return

    def put(_: nn.Module, __: str, p: Any) -> Any:  # torch says None, and takes another
        if is_lazy(p) or p.is_meta:
            return None  # as it is, and so is what is registered a second time
        if type(p) is not nn.Parameter:
            if _place is hollow:
                raise CannotBeHollowError(f"a parameter is a {type(p).__name__}")
            return None
        if _place is hollow:
            return nn.Parameter(hollow(p.detach()), p.requires_grad)
        p.data = placed(p.data)
        return None

    hook = register_module_parameter_registration_hook(put)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def into(place: Place) -> Iterator[None]:
    """Models that are built while this lasts have their parameters there."""
    global _place
    _place = place
    try:
        yield
    finally:
        _place = None


def hollow(tensor: Tensor) -> Tensor:
    """Its shape and type without its numbers."""
    return tensor.to("meta")


@dataclass(frozen=True)
class Lies:
    """Where a tensor lies in the file, what it is, and whether it is trained."""

    begin: int
    kind: torch.dtype
    shape: tuple[int, ...]
    trained: bool


@dataclass(frozen=True)
class Told:
    """What the process that has built the model tells the others of its node: which file it has
    open, what lies where, and a digest of everything else in the model."""

    process: int
    file: int
    lies: Mapping[str, Lies]
    rest: str


class WeightsFile:
    """A file without a name in this folder, in which tensors are put one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  as long as this lives
        self._segments: list[tuple[int, Tensor]] = []
        self._used = self._end = 0

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: object) -> None:
        """What was put there stays for as long as somebody has it."""
        self._file.close()

    def put(self, tensor: Tensor) -> Tensor:
        """A copy of it there, unless it lies there already.

        Raises:
            TrainError: the disk is full.
        """
        if not tensor.nbytes or (tensor.is_contiguous() and self._begin(tensor) is not None):
            return tensor
        begin = -(-self._used // _ALIGNED) * _ALIGNED
        if not self._segments or begin + tensor.nbytes > self._segments[-1][1].nbytes:
            self._grow(tensor.nbytes)
            begin = 0
        self._used = begin + tensor.nbytes
        # By way of numpy: a slice of a tensor is a part of it to everybody who asks, such as
        # safetensors, which then refuses to write it.
        room = torch.from_numpy(self._segments[-1][1].numpy()[begin : self._used])
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def _grow(self, least: int) -> None:
        size = -(-max(least, _SEGMENT) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            pages = mapped(self._file, self._end, size)
        except OSError as error:
            raise TrainError(
                f"{self._folder}: there is no room for the weights of the model"
                f" ({error.strerror}), which lie in a file there while they are whole: before each"
                " process has its part of them, and when the model is made of their parts.",
                "Make room there.",
            ) from error
        self._segments.append((self._end, torch.from_numpy(np.frombuffer(pages, np.uint8))))
        self._end, self._used = self._end + size, 0

    def _begin(self, tensor: Tensor) -> int | None:
        """Where it lies, if it does."""
        for begin, segment in self._segments:
            where = tensor.data_ptr() - segment.data_ptr()
            if 0 <= where < segment.nbytes:
                return begin + where
        return None

    def tell(self, model: nn.Module) -> Told:
        """Of a model that was built, all of which is put here."""
        lies = {}
        for name, tensor in tensors_of(model):
            if isinstance(tensor, nn.Parameter):
                if type(tensor) is nn.Parameter:
                    tensor.data = self.put(tensor.data)
                where = tensor.data
            else:
                where = self.put(tensor)
            begin = self._begin(where) or 0
            lies[name] = Lies(begin, tensor.dtype, tuple(tensor.shape), tensor.requires_grad)
        return Told(os.getpid(), self._file.fileno(), lies, rest_of(model))


def fill(model: nn.Module, told: Told) -> None:
    """Give a hollow model the parameters and buffers of one that another process of this node has
    built.

    Raises:
        CannotBeHollowError: it has become another model.
    """
    own = dict(tensors_of(model))
    if own.keys() != told.lies.keys() or rest_of(model) != told.rest:
        raise CannotBeHollowError("it depends on random numbers or on its parameters' values")
    with Path(f"/proc/{told.process}/fd/{told.file}").open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        pages = np.frombuffer(mmap.mmap(file.fileno(), size) if size else b"", np.uint8)
    room = torch.from_numpy(pages) if size else torch.empty(0, dtype=torch.uint8)
    made: dict[int, Tensor] = {}
    for name, tensor in own.items():
        lies = told.lies[name]
        if (tensor.dtype, tuple(tensor.shape), tensor.requires_grad) != (
            lies.kind,
            lies.shape,
            lies.trained,
        ):
            raise CannotBeHollowError(f"{name} has become another one")
        there = room[lies.begin : lies.begin + tensor.nbytes].view(lies.kind).view(lies.shape)
        if isinstance(tensor, nn.Parameter):
            made[id(tensor)] = nn.Parameter(there, lies.trained)
        elif tensor.is_meta:
            made[id(tensor)] = there.clone()
        else:
            tensor.copy_(there)
    put_in(model, made)


def put_in(model: nn.Module, made: Mapping[int, Tensor]) -> None:
    """Put these into the places of the parameters and buffers that have such an identity."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and id(old) in made:
                    tensors[name] = made[id(old)]  # type: ignore[assignment]  # a parameter's is one


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters and buffers, tied ones once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def rest_of(model: nn.Module) -> str:
    """A digest of what its modules are and have besides parameters and buffers, as far as that is
    plain: numbers, texts, tensors, generators of random numbers, containers of them."""
    known = vars(nn.Module()).keys()
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in known}
        digest.update(f"{name} {type(module).__qualname__} {module.training}".encode())
        digest.update(plain(own).encode())
    return digest.hexdigest()


def plain(value: Any, deep: int = _DEEP) -> str:
    """What it is, with digests of the numbers in it; of what is not plain only the type."""
    if isinstance(value, Tensor):
        if value.is_meta or is_lazy(value):
            return f"{value.dtype} {tuple(value.shape)} without values"
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(data.data).hexdigest()}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, torch.Generator):
        return f"generator {plain(value.get_state())}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
        return f"{type(value).__qualname__} {plain(own, deep)}"
    if isinstance(value, Mapping | list | tuple) and deep:
        each = value.items() if isinstance(value, Mapping) else value
        return f"[{','.join(plain(inner, deep - 1) for inner in each)}]"
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)
    return type(value).__qualname__


Build = Callable[[bool], nn.Module]
"""Builds a model; True: hollow."""


def build_once(build: Build, folder: Path, world: World) -> tuple[nn.Module, str]:
    """The model, the same on every process, its parameters in a file of each node; and why some
    process has built it in full by itself, where one has.

    All processes call it. Raises what `build` raises.
    """
    with WeightsFile(folder) as file:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        model, why = (_as_first if first else _as_another)(build, file, world)
        # From here on every process of the node has mapped what it needs.
        reasons = world.everybody(why)
    return model, next(filter(None, reasons), "")


def _as_first(build: Build, file: WeightsFile, world: World) -> tuple[nn.Module, str]:
    """Build, and tell the others of this node."""
    try:
        model = built_in(file, lambda: build(False))
        told = file.tell(model)
    except Exception as error:
        _exchanged(_as_told(error), world)
        raise
    _exchanged(told, world)
    return model, ""


def _as_another(build: Build, file: WeightsFile, world: World) -> tuple[nn.Module, str]:
    """Build without values, and take them from what the first one of this node tells."""
    try:
        with into(hollow):
            model: nn.Module | str = build(True)
    except Exception as error:  # in full it may not come, and if it does, the first one tells it
        model = in_short(error)
    told = _exchanged(None, world)
    try:
        if isinstance(model, str):
            raise CannotBeHollowError(model)
        fill(model, told)
    except CannotBeHollowError as error:
        model = built_in(file, lambda: build(False))
        file.tell(model)
        return model, str(error)
    return model, ""


def _exchanged(own: Told | XrunError | None, world: World) -> Any:
    """What the first process of this node tells, once all have told; raises what another one has
    failed with."""
    node = os.environ.get("GROUP_RANK", "0")
    answers = world.everybody((node, own))
    if isinstance(own, XrunError):
        return None
    for _, answer in sorted(answers, key=lambda each: each[0] != node):
        if isinstance(answer, XrunError):
            raise answer
    return next(answer for its, answer in answers if its == node and answer is not None)


def _as_told(fault: Exception) -> XrunError:
    if isinstance(fault, XrunError):
        return fault
    return ProcessesApart(f"Another process could not build the model: {in_short(fault)}.")


def built_in(file: WeightsFile, build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` builds, its parameters in the file."""
    with into(file.put):
        return build()
