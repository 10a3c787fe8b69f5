"""The names of the secrets that a run needs, and where their values lie on this machine. Only a
launch asks for values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import LaunchError
from ..recipe.schema import Recipe


def secret_names(recipe: Recipe) -> list[str]:
    """What the recipe names, and what its store, model, tracker and alerts cannot do without."""
    wandb = recipe.tracking.wandb is not None and recipe.tracking.wandb.mode == "online"
    hub = recipe.checkpoint.store.on_hub or recipe.publish is not None
    needed = ["HF_TOKEN"] * hub + ["WANDB_API_KEY"] * wandb
    alerts = recipe.alerts.to if recipe.alerts else ()
    return list(dict.fromkeys([*recipe.secrets, *needed, *alerts]))


def secret_values(names: list[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The values: from the environment, or from where `hf auth login` and `wandb login` keep them.

    Raises:
        LaunchError: one is nowhere, said by its name.
    """
    places = {"HF_TOKEN": _hugging_face, "WANDB_API_KEY": _wandb}
    found = {
        name: environ.get(name) or (places[name](environ) if name in places else "")
        for name in names
    }
    if missing := [name for name, value in found.items() if not value]:
        logins = {"HF_TOKEN": "`hf auth login`", "WANDB_API_KEY": "`wandb login`"}
        ways = [
            f"export {name}=..." + (f" (or {logins[name]})" if name in logins else "")
            for name in missing
        ]
        raise LaunchError(
            f"The run needs {', '.join(missing)}, and this machine does not have it.",
            f"First: {'; '.join(ways)}.",
        )
    return found


def _hugging_face(environ: Mapping[str, str]) -> str:
    home = Path(
        environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    path = Path(environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    return path.read_text().strip() if path.is_file() else ""


def _wandb(environ: Mapping[str, str]) -> str:
    from ..tracker.wandb.api import api_key

    return api_key(environ)
