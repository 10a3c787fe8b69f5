"""The libraries that are not installed here although a command needs them, and what installs them.

`pip install xrun` brings what checking and planning need; the rest comes with an extra. Whether a
library is here is asked without importing it, and which extra brings it is what the installed xrun
says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec

from .errors import LaunchError

_PROVIDED_BY = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "sky": "skypilot",
    "wandb_workspaces": "wandb-workspaces",
}
"""The packages that are not named like the module that they hold."""


@dataclass(frozen=True)
class Need:
    """What needs which modules, and the extra of xrun that brings them."""

    what: str
    modules: tuple[str, ...]
    extra: str = "train"

    def missing(self) -> tuple[str, ...]:
        """Those of the modules that are not here."""
        return tuple(module for module in self.modules if not is_here(module))


TRAINING = Need("Training on this machine", ("torch", "accelerate", "safetensors", "numpy"))
LAUNCHING = Need("Running on clouds", ("sky",), "cloud")
HUB = Need("The Hugging Face Hub", ("huggingface_hub",))
BUCKET = Need("State in a bucket", ("obstore",), "bucket")
PEFT = Need("`model.adapter`", ("peft",))
QUANTIZED = Need("`model.frozen` in 4 or 8 bit", ("bitsandbytes",), "quantized")
METRICS = Need("`train.evaluate.metrics`", ("torchmetrics",))
WANDB = Need("Weights & Biases", ("wandb",))
BAYES = Need("`sweep.method: bayes`", ("optuna",), "sweep")
VIEWS = Need("A sweep's view in Weights & Biases", ("wandb", "wandb_workspaces"), "sweep")
ALERTS = Need("`alerts`", ("apprise",), "alerts")
TENSORBOARD = Need("`tracking.tensorboard`", ("tensorboard",), "tensorboard")


def is_here(module: str) -> bool:
    """Whether a top-level module could be imported; a mere folder of its name is none."""
    found = find_spec(module)
    return found is not None and found.origin is not None


def what_is_missing(*needs: Need) -> str:
    """One sentence about everything that is missing, and the command that installs it; "" where
    all is here."""
    lacking = [replace(need, modules=need.missing()) for need in needs if need.missing()]
    if not lacking:
        return ""
    told = ", ".join(f"{need.what} needs {_listed(need.modules)}" for need in lacking)
    several = sum(len(need.modules) for need in lacking) > 1
    absent = "which are not installed here" if several else "which is not installed here"
    return f"{told}, {absent}. Install with: {_command(lacking)}"


def require(*needs: Need) -> None:
    """Go on where all is here.

    Raises:
        LaunchError: something is missing; one line with the command that installs it.
    """
    if said := what_is_missing(*needs):
        raise LaunchError(said)


def extras_of(module: str) -> tuple[str, ...]:
    """The extras that bring a module to people; none where it is somebody else's, or where xrun
    runs from a folder that says nothing of itself."""
    from importlib.metadata import PackageNotFoundError, requires

    package = _PROVIDED_BY.get(module, module)
    try:
        lines = requires("xrun") or []
    except PackageNotFoundError:
        return ()
    ours = (
        r"([\w.-]+).*\bextra == ['\"](train|cloud|bucket|quantized|tensorboard|alerts|sweep)['\"]"
    )
    found = (re.match(ours, line) for line in lines)
    return tuple(each[2] for each in found if each and _same(each[1], package))


def how_to_install(module: str) -> str:
    """What to type where a module cannot be imported: xrun's own extra, or the recipe's
    `requirements`. No name of a package is guessed: one of that name may be a stranger's."""
    library = module.partition(".")[0]
    if library != module and is_here(library):
        return f"`{library}` is installed and has no `{module}`; another version may have it."
    if extras := extras_of(library):
        return f"Install with: pip install 'xrun[{extras[0]}]'"
    return (
        f"Add the library that has `{library}` to `requirements:` of the recipe (its name on PyPI"
        " may differ)."
    )


def _command(needs: Iterable[Need]) -> str:
    return f"pip install 'xrun[{','.join(dict.fromkeys(need.extra for need in needs))}]'"


def _same(one: str, other: str) -> bool:
    """Whether two names of packages mean one."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(one) == canonicalize_name(other)


def _listed(modules: tuple[str, ...]) -> str:
    *others, last = (_PROVIDED_BY.get(module, module) for module in modules)
    return f"{', '.join(others)} and {last}" if others else last
