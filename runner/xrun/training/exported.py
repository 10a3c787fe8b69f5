"""A finished run's model, loaded as people load it: by transformers' `from_pretrained` where it
wrote the folder, else by safetensors into what the component builds.

A rehearsal starts it: `python -m xrun.training.exported PLAN`.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from torch import nn

from ..errors import ComponentError, XrunError
from ..files import read_json
from ..recipe.schema import Recipe
from ..run.folder import RunFolder
from ..run.logs import aside
from ..run.plan import Plan
from .export import WEIGHTS
from .instances import build_model
from .warm_start import ADAPTER_WEIGHTS


def load(plan: Plan) -> nn.Module:
    """The model in the run's folder.

    Raises:
        ComponentError: what was exported cannot be loaded, or not all of it.
    """
    folder, recipe = RunFolder(plan.folder).model, plan.load_recipe()
    config = read_json(folder / "config.json", dict) or {}
    try:
        if (folder / ADAPTER_WEIGHTS).exists():
            return _adapted(folder, recipe, plan)
        if config.get("model_type") == "xrun":
            model = build_model(recipe, Path(plan.project))
            load_model(model, folder / WEIGHTS)
            return model
        return _from_pretrained(folder, config, recipe, plan)
    except XrunError:
        raise
    except Exception as error:
        raise ComponentError(
            f"models/{recipe.model.name}.py: the exported model cannot be loaded:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}.",
            "It is saved by its own `save_pretrained` where it has one, else as its state_dict.",
        ) from error


def _adapted(folder: Path, recipe: Recipe, plan: Plan) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(build_model(recipe, Path(plan.project)), folder)


def _from_pretrained(folder: Path, config: dict[str, Any], recipe: Recipe, plan: Plan) -> nn.Module:
    """By the class that people will use, which must find every weight in the folder."""
    cls = _class(config, recipe, plan)
    if "transformers_version" not in config:  # it has a way of its own
        return cls.from_pretrained(folder)
    model, found = cls.from_pretrained(folder, output_loading_info=True)
    if lost := sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])]):
        raise ComponentError(
            f"models/{recipe.model.name}.py: {cls.__name__}.from_pretrained finds no"
            f" {', '.join(lost[:3])} in what was exported, and would begin there with new weights.",
            "Give the model's `save_pretrained` all of its weights, under the names that it loads.",
        )
    return model


def _class(config: dict[str, Any], recipe: Recipe, plan: Plan) -> Any:
    import transformers

    if recipe.model.name == "hub":
        return getattr(transformers, str(recipe.model.args.get("auto_class", "AutoModel")))
    for name in config.get("architectures") or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return type(build_model(recipe, Path(plan.project)))


def main(path: str) -> int:
    """Load the model of a plan's run; returns the exit code, and says what is wrong."""
    try:
        load(Plan.read(Path(path)))
    except XrunError as error:
        print(aside(traceback.format_exc()), file=sys.stderr)
        print(f"xrun: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
