"""`Footprint`: how many bytes of tensors live, and lived at most, while it is entered; on tensors
without memory (`FakeTensorMode`) as on real ones.

torch's own `MemTracker` counts the same (tests/training/test_costed.py holds them together), but
refuses a model that calls one of its modules twice.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it under this name
from torch.utils._pytree import tree_leaves


class Footprint(TorchDispatchMode):
    """Counts each storage once, from the operation that makes it until nobody holds it. `there`:
    tensors that live already. `calls` counts operations that make or change something."""

    def __init__(self, there: Iterable[Any] = ()) -> None:
        super().__init__()
        self.now = self.most = self.calls = 0
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
        """Forget what lived at most before."""
        self.most, self.calls = self.now, 0

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
        return made
