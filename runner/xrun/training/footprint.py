"""`Footprint`: how many bytes of tensors live, and lived at most, while it is entered, and FLOPs;
on tensors without memory (`FakeTensorMode`) as on real ones.

torch's own `MemTracker` and `FlopCounterMode` count the same (tests/training/test_costed.py holds
them together). The first refuses a model that calls one of its modules twice; the second, while it
watches, keeps alive what activation checkpointing computes again. Its formulas are used here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it under this name
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    shapes = (each.shape for each in (grad, query, key, value))
    return int(sdpa_backward_flop_count(*shapes))


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""torch's, and of the attention of processors, which it does not count."""


class Footprint(TorchDispatchMode):
    """Counts each storage once, from the operation that makes it until nobody holds it. `there`:
    tensors that live already. `calls` counts operations that make or change something, `flops`
    what products, convolutions and attention compute."""

    def __init__(self, there: Iterable[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.now = self.most = self.calls = self.flops = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self.add(there)

    def add(self, tensors: Iterable[Any]) -> bool:
        """Count these from now on; whether any was not known."""
        before = len(self._known)
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return len(self._known) > before

    def begin(self) -> None:
        """Forget what lived at most before, and what was counted."""
        self.most, self.calls, self.flops = self.now, 0, 0

    def _count(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the name is torch's
        """Computes what is asked for, and counts it."""
        made = func(*args, **(kwargs or {}))
        new = self.add(tree_leaves(made))
        self.calls += new or func._schema.is_mutable
        if formula := _FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        return made
