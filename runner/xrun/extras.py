"""xrun's own extras, by the names under which their libraries are imported, and what to do about a
module that is not there."""

from __future__ import annotations

_MODULES = {
    "train": "accelerate datasets huggingface_hub numpy PIL safetensors sklearn torch transformers"
    " wandb",
    "cloud": "sky uv",
}
EXTRAS = {module: extra for extra, modules in _MODULES.items() for module in modules.split()}


def how_to_install(module: str) -> str:
    """What to type where a module cannot be imported.

    No name of a package is guessed: one of that name may be a stranger's.
    """
    name = module.partition(".")[0]
    if extra := EXTRAS.get(name):
        return f"It comes with xrun's own extra: type `pip install 'xrun[{extra}]'`."
    return (
        f"Add the library that has `{name}` to `requirements:` of the recipe (its name on PyPI may"
        " differ)."
    )
