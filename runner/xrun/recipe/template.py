"""The commented recipe that `xrun init` writes: complete, small, and it trains as it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import Problem, RecipeError

TEMPLATE = """\
# For completion in your editor: xrun schema > {folder}/recipe.schema.json, and then
# yaml-language-server: $schema=recipe.schema.json
name: {name}

model:
  name: mlp                  # models/mlp.py of your project, or one that xrun brings along
  args: {{inputs: 64, hidden: 128, depth: 2, classes: 10}}   # the arguments of its build(...)
dataset:
  name: digits               # datasets/digits.py, likewise
task: classification         # or regression, segmentation, ..., model (its own loss)

hardware: local              # this machine; `local: {{processes: 4}}` uses four GPUs

train:
  epochs: 10                 # or `steps:`
  global_batch: 64           # samples per optimizer step; the same on every machine
  micro_batch: 16            # samples per forward pass; gradients are accumulated
  precision: fp32            # or bf16
  optimizer: {{name: adamw, lr: 0.002, weight_decay: 0.01}}
  schedule: {{name: cosine, warmup_steps: 50}}
  evaluate: {{every: 1 epochs, metric: accuracy}}

checkpoint:
  store: local
  every: 100 steps           # or a time like 10m
"""


def write_template(path: Path) -> None:
    """Write the recipe, named after its file; a file that is there already stays as it is
    (RecipeError)."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:28].rstrip("-")
    name = name if re.match("[a-z]", name) else f"my-{name}"[:28].rstrip("-")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(name=name, folder=os.fspath(path.parent)))
    except OSError as error:
        reason = (
            "there is a file already"
            if isinstance(error, FileExistsError)
            else f"it cannot be written: {error.strerror}"
        )
        raise RecipeError(
            [Problem(os.fspath(path), 0, 0, "", reason, hint="Choose another name.")]
        ) from None
