"""The model of a sharded run that goes on, without first weights, which its checkpoint replaces.

Every process builds it hollow (see `mapped`), so nothing is drawn or written for its parameters;
`sharding.shard` gives each process empty memory for its own rows. What a checkpoint does not bring
back (plain attributes, buffers that are not saved, what is trained, shapes and types) must be what
the run was begun with: its attempts' records have a digest of that, made of a model with values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set

from torch import nn

from .contract import in_short
from .mapped import Build, hollow, into, plain, put_in, rest_of, tensors_of
from .world import World


def as_built(model: nn.Module) -> str:
    """A digest of all of a model but the values of what its state_dict has."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    digest = hashlib.sha256(rest_of(model).encode())
    for name, p in tensors_of(model):
        digest.update(f"{name} {p.dtype} {tuple(p.shape)} {p.requires_grad}".encode())
        if id(p) not in saved:
            digest.update(plain(p).encode())
    return digest.hexdigest()


def build_hollow(
    build: Build, known: str, saved: Set[str], world: World
) -> tuple[nn.Module | None, str]:
    """The model without values for what a checkpoint of these names has `saved`, on every process;
    or None, and why: one of them has come to another model than the `known` one, or to an error.

    All processes call it.
    """
    model, why = None, ""
    try:
        with into(hollow):
            model = build(True)
        why = _apart(model, known, saved)
    except Exception as error:  # in full it may come, and raises again if it does not
        why = in_short(error)
    why = next(filter(None, world.everybody(why)), "")
    return (None if why else model), why


def _apart(model: nn.Module, known: str, saved: Set[str]) -> str:
    """Why a checkpoint could not make it what it was; its tensors without values lie as
    `fully_shard` wants them afterwards."""
    if as_built(model) != known:
        return "what it has besides its weights is not what the run began with"
    there = {
        id(tensor)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if f"model.{name}" in saved
    }
    empty = [(name, tensor) for name, tensor in tensors_of(model) if tensor.is_meta]
    if name := next((name for name, tensor in empty if id(tensor) not in there), None):
        return f"the checkpoint does not hold {name}"
    put_in(
        model,
        {
            id(p): nn.Parameter(p.detach().contiguous(), p.requires_grad)
            for _, p in empty
            if isinstance(p, nn.Parameter) and not p.is_contiguous()
        },
    )
    return ""
