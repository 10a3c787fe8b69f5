"""xrun: one YAML recipe, spot GPUs, and a run that survives every preemption."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors
    from .handle import Run, list_runs, open_run, start
    from .launcher.job import launch
    from .launcher.local import Cloud
    from .recipe.load import load_recipe
    from .recipe.schema import Recipe
    from .run.checkpoint import Checkpoint
    from .run.plan import Plan, make_plan
    from .store.protocol import Store
    from .tracker.protocol import Tracker
    from .training.exported import load_model
    from .training.rank import train

__all__ = [
    "Checkpoint",
    "Cloud",
    "Plan",
    "Recipe",
    "Run",
    "Store",
    "Tracker",
    "errors",
    "launch",
    "list_runs",
    "load_model",
    "load_recipe",
    "make_plan",
    "open_run",
    "start",
    "train",
]

_HOMES = {
    "Checkpoint": "run.checkpoint",
    "Cloud": "launcher.local",
    "Plan": "run.plan",
    "Recipe": "recipe.schema",
    "Run": "handle",
    "Store": "store.protocol",
    "Tracker": "tracker.protocol",
    "launch": "launcher.job",
    "list_runs": "handle",
    "load_model": "training.exported",
    "load_recipe": "recipe.load",
    "make_plan": "run.plan",
    "open_run": "handle",
    "start": "handle",
    "train": "training.rank",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import xrun` costs nothing."""
    if name == "errors":
        return import_module(".errors", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'xrun' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
