"""`Frozen`: weights that a checkpoint does not hold, since every attempt builds them again from
their source: the base under an adapter, the modules that a recipe names as frozen.

A checkpoint has one digest of them instead, of their bytes by name, made before a process takes its
part of them. So it is the same for any number of processes, and other weights are refused. What
something moves all the same, a teacher that follows its student, is state from then on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..store.durable import hash_of
from . import tensor_file
from .saving import sample_of

Seen = tuple[int, Tensor]


def lines_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each of these tensors its name, type, shape and the XXH3-128 of its bytes."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return dict(zip(tensors, threads.map(_line, tensors.items()), strict=True))


def _line(item: tuple[str, Tensor]) -> str:
    name, tensor = item
    # As a plain tensor: subclasses of some libraries take more along when they are moved.
    plain = tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().cpu().contiguous()
    data = tensor_file.bytes_of(torch.view_as_real(plain) if plain.is_complex() else plain)
    return f"{name} {tensor.dtype} {list(tensor.shape)} {hash_of([data])}"


class Frozen:
    """The parameters of a model whose names in its state_dict `lines` has, as they are now. The
    lines were made before the parameters were spread over processes or moved to a device."""

    def __init__(self, model: nn.Module, lines: Mapping[str, str]) -> None:
        self.digest = digest_of(lines)
        self._lines = lines
        self._tensors = {
            name: tensor
            for name, tensor in model.state_dict(keep_vars=True).items()
            if name in lines
        }
        self._seen = {name: _look(tensor) for name, tensor in self._tensors.items()}
        self._moved: set[str] = set()

    @property
    def names(self) -> set[str]:
        """Their names in a checkpoint."""
        return {f"model.{name}" for name in self._tensors}

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors themselves."""
        return list(self._tensors.values())

    def moved(self) -> set[str]:
        """Names in a checkpoint of those that something has changed since the beginning."""
        for name in self._tensors.keys() - self._moved:
            now, (version, sample) = _look(self._tensors[name]), self._seen[name]
            if now[0] != version or not torch.equal(now[1], sample):
                self._written(name, now)
        return self.known

    @property
    def known(self) -> set[str]:
        """Those of them that were found when somebody looked last."""
        return {f"model.{name}" for name in self._moved}

    def add(self, saved: Set[str]) -> None:
        """These are in the checkpoint that is loaded: they had moved when it was made."""
        self._moved |= {name for name in self._tensors if f"model.{name}" in saved}

    def as_built(self, names: Set[str], model: nn.Module) -> dict[str, Tensor]:
        """What they were in the beginning, of a model that was built again, by these names in a
        checkpoint.

        Raises:
            CheckpointError: one of them is another one there.
        """
        built = model.state_dict()
        for name in sorted(names):
            own = name.removeprefix("model.")
            if own not in built or _line((own, built[own])) != self._lines.get(own):
                raise CheckpointError(
                    f"{own} is frozen, so the checkpoint does not hold it, and what it was loaded"
                    " from has changed since.",
                    "Put the weights back at the recipe's model.args or model.init_from, or set"
                    " `train.export: last`.",
                )
        return {name: built[name.removeprefix("model.")] for name in names}

    def _written(self, name: str, now: Seen) -> None:
        """Something has written to a tensor, which may have been what it was (peft puts the
        parameters that its `target_parameters` names back after each call)."""
        tensor = self._tensors[name]
        if not hasattr(tensor, "to_local") and _line((name, tensor)) == self._lines[name]:
            self._seen[name] = now
        else:
            self._moved.add(name)


def digest_of(lines: Mapping[str, str]) -> str:
    """One digest of them all, in whatever order they are."""
    return hash_of(["\n".join(sorted(lines.values())).encode()])


def _look(tensor: Tensor) -> Seen:
    """A tensor's version, and some of its elements: a write to `.data` changes no version."""
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own._version, sample_of(own)
