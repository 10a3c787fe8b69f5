"""An exported model, loaded as people load it: by the `from_pretrained` of the library that wrote
the folder, else by safetensors into what the component builds.

A rehearsal starts it: `python -m xrun.training.exported PLAN`.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from .. import component
from ..errors import ComponentError, XrunError
from ..files import read_json
from ..recipe.schema import Recipe
from ..run.folder import RunFolder
from ..run.logs import aside
from ..run.plan import Plan
from .adapter_folder import ADAPTER, load_alone
from .contract import in_short
from .export import WEIGHTS
from .instances import build_model, call_build
from .lazy import lazy_modules
from .miniature import Miniature
from .warm_start import joined


def load_model(folder: str | os.PathLike[str], project: str | os.PathLike[str] = "") -> nn.Module:
    """The model in a folder that xrun has exported (`runs/NAME/model`, or a copy of it), in
    evaluation mode.

    `project` is the folder whose `models/` has its component; default: that of the run which the
    folder lies in, else the one that this process stands in. What a library wrote
    (`save_pretrained` of transformers, peft or diffusers) needs none. An adapter of a project's own
    module is put onto what its component builds, from the run's seed.

    Raises:
        ComponentError: there is no such model, or it cannot be loaded whole.
    """
    place = Path(folder).resolve()
    try:
        return _load(place, Path(project).resolve() if project else _project(place)).eval()
    except XrunError:
        raise
    except Exception as error:
        raise ComponentError(f"{place}: the model cannot be loaded: {in_short(error)}.") from error


def load(plan: Plan) -> nn.Module:
    """The model in the run's folder.

    Raises:
        ComponentError: what was exported cannot be loaded, or not all of it.
    """
    folder, recipe = RunFolder(plan.folder).model, plan.load_recipe()
    config = read_json(folder / "config.json", dict) or {}
    try:
        if (folder / ADAPTER).exists():
            return _with_adapter(folder, plan)
        if config.get("model_type") == "xrun":
            return _with_weights(build_model(recipe, Path(plan.project)), folder / WEIGHTS)
        return _from_pretrained(folder, config, recipe, plan)
    except XrunError:
        raise
    except Exception as error:
        raise ComponentError(
            f"models/{recipe.model.name}.py: the exported model cannot be loaded:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}.",
            "It is saved by its own `save_pretrained` where it has one, else as its state_dict.",
        ) from error


def _load(folder: Path, project: Path) -> nn.Module:
    config = read_json(folder / "config.json", dict) or {}
    if (folder / ADAPTER).exists():
        return load_alone(folder, project)
    if config.get("model_type") == "xrun":
        name = str(config["component"])
        build = component.load_build("models", name, project)
        model = call_build(f"models/{name}.py", build, config["args"])
        return _with_weights(model, folder / WEIGHTS)
    cls = _known_class(config)
    if cls is None:
        raise ComponentError(
            f"{folder} has no model that xrun, transformers, peft or diffusers has written.",
            "A finished run has its model in the folder `model`.",
        )
    return cls.from_pretrained(folder)


def _project(folder: Path) -> Path:
    """The project of the run that a folder lies in, else the one that this process stands in."""
    run = RunFolder(folder.parent)
    if run.plan_file.exists() and (project := Path(run.plan().project)).is_dir():
        return project
    return component.project_root(Path.cwd() / "recipes" / "any.yaml")


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    """The model with the weights of a file, every one of them; tied ones are there once, under the
    first of their names, which the file knows."""
    own = model.state_dict()
    with safe_open(path, "pt") as file:
        values: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        others = file.metadata() or {}
    values |= {name: values[kept] for name, kept in others.items() if kept in values}
    fitting = {n: joined(t, own[n]) if n in own else t for n, t in values.items()}
    if fitting.keys() != own.keys() or lazy_modules(model):
        model.load_state_dict(fitting)
        return model
    for name, tensor in own.items():  # in place, as from a checkpoint: it may name them as it likes
        if fitting[name].shape == tensor.shape:
            tensor.copy_(fitting[name])
        elif name not in others:  # else it is a view of another one, which has all its numbers
            wrong = (
                f"{name} is {list(fitting[name].shape)} in {path.name}, {list(tensor.shape)} here"
            )
            raise ComponentError(f"{wrong}: the component or its arguments have changed since.")
    return model


def _with_adapter(folder: Path, plan: Plan) -> nn.Module:
    """What the component builds with the exported adapter in it, read by peft."""
    recipe = Miniature(plan).recipe() if plan.rehearsal else plan.load_recipe()
    model: Any = build_model(recipe, Path(plan.project))
    if recipe.model.adapter is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, folder)
    found = model.load_adapter(str(folder), "exported")
    if lost := sorted([*found.missing_keys, *found.unexpected_keys]):
        raise ComponentError(
            f"models/{recipe.model.name}.py: peft finds no {', '.join(lost[:3])} in the exported"
            " adapter, or has no place for it."
        )
    return model


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
    if recipe.model.name == "hub":
        import transformers

        return getattr(transformers, str(recipe.model.args.get("auto_class", "AutoModel")))
    return _known_class(config) or type(build_model(recipe, Path(plan.project)))


def _known_class(config: dict[str, Any]) -> Any:
    """The class that a config names, of diffusers or transformers; None where it names none of
    theirs."""
    if name := config.get("_class_name"):
        import diffusers

        return getattr(diffusers, str(name), None)
    names = config.get("architectures") or []
    if not names:
        return None
    import transformers

    return next(filter(None, (getattr(transformers, name, None) for name in names)), None)


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
