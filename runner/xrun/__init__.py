"""xrun: one YAML recipe, spot GPUs, and a run that survives every preemption."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors
    from .attempt import train
    from .checkpoint import Checkpoint
    from .cloud import Cloud
    from .job import launch
    from .plan import Plan, make_plan
    from .recipe import Recipe
    from .recipe_file import load_recipe
    from .store import Store
    from .tracker import Tracker

__all__ = [
    "Checkpoint", "Cloud", "Plan", "Recipe", "Store", "Tracker", "errors", "launch", "load_recipe", "make_plan", "train",
]  # fmt: skip

_HOMES = {
    "Checkpoint": "checkpoint", "Cloud": "cloud", "Plan": "plan", "Recipe": "recipe", "Store": "store", "Tracker": "tracker",
    "launch": "job", "load_recipe": "recipe_file", "make_plan": "plan", "train": "attempt",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import xrun` costs nothing."""
    if name == "errors":
        return import_module(".errors", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'xrun' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
