"""A run's metrics on one of its splits, afterwards, by the evaluation that training has.

`python -m xrun.training.measured PLAN WISH RESULT` (`launcher/measure.py` starts it) builds what an
attempt builds, without a lease and on one process, puts a checkpoint or the exported model in, and
writes the numbers into the file RESULT. Of the run's state nothing changes.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..bar import bar
from ..checkpoint.state import TrainState
from ..components import use_project
from ..data.stream import is_stream
from ..errors import CheckpointError, ComponentError, TrainError, XrunError
from ..files import parsed, write_json
from ..machine.heartbeat import Heartbeat
from ..recipe.schema import Recipe
from ..run.checkpoint import Checkpoint
from ..run.folder import RunFolder
from ..run.logs import aside
from ..run.plan import Plan
from ..run.record import RunRecord
from ..run.stores import open_store
from ..terminal import only_text
from . import exported
from .accelerator import build_accelerator, configure_torch, prepare
from .build import Model, Setting, build_evaluation, build_objective, build_trained
from .data_facts import Data
from .instances import splits_of
from .made_from import begin_revisions
from .start import Start
from .world import World

BEST = "best"


def measure(plan: Plan, split: str, step: int | str | None, *, of_model: bool) -> dict[str, Any]:
    """The metrics of a checkpoint (its `step`, `best`, or None for the newest), or of the exported
    model, on a split.

    Raises:
        XrunError: there is no such split or checkpoint, or it cannot be loaded.
    """
    store = open_store(plan, "reader", create=False)
    head = RunFolder(plan.folder).head_in(store)
    record = RunRecord.of(head)
    if head is None or record.newest is None:
        raise CheckpointError(f"The run {plan.run} has committed nothing that could be measured.")
    checkpoint = record.newest if of_model else chosen(record.checkpoints, step, plan.run)
    use_project(Path(plan.project))
    recipe = on_one_process(plan.load_recipe())
    # By as many threads sums come out as they did.
    os.environ["OMP_NUM_THREADS"] = str(checkpoint.environment.get("threads") or "")
    configure_torch(recipe.train)
    revisions = begin_revisions(plan, record.lock)
    splits = splits_of(plan)
    measured = split_named(splits, split, recipe.dataset.name)
    paths = [] if of_model else [store.fetch(file) for file in checkpoint.files.values()]
    setting = Setting(
        plan,
        recipe,
        store,
        World(),
        Start(head, checkpoint, paths),
        build_accelerator(recipe.train, World()),
        {**splits, "val": measured},
        Data({}, {}),
        Heartbeat(),
        revisions,
    )
    with setting.components.proving(recipe.task):
        model = load_exported(setting) if of_model else build_trained(setting)
        metrics = build_evaluation(setting, model, None, 0, parts=1).run(lambda: False)
    finished = record.finished
    exported = finished.exported_step or finished.step if of_model and finished else None
    return {
        "run": plan.run,
        "step": checkpoint.step if exported is None else exported,
        "of": "model" if of_model else "checkpoint",
        "split": split,
        "samples": len(measured),
        "metrics": metrics or {},
    }


def chosen(checkpoints: Sequence[Checkpoint], step: int | str | None, run: str) -> Checkpoint:
    """The kept checkpoint that is meant.

    Raises:
        CheckpointError: it is not kept; with those that are.
    """
    wanted = checkpoints[-1].best_step if step == BEST else step
    if step == BEST and wanted is None:
        raise CheckpointError(
            f"The run {run} has no best checkpoint: nothing was evaluated.",
            "Leave --step out for the newest, or set train.evaluate.every.",
        )
    for checkpoint in checkpoints:
        if checkpoint.step == (checkpoints[-1].step if wanted is None else wanted):
            return checkpoint
    kept = ", ".join(str(each.step) for each in checkpoints)
    raise CheckpointError(
        f"The run {run} keeps no checkpoint of step {wanted}; there are {kept}.",
        "checkpoint.keep and checkpoint.keep_every say which are kept.",
    )


def split_named(splits: Mapping[str, Any], name: str, dataset: str) -> Any:
    """The split of this name.

    Raises:
        ComponentError: there is none, or it cannot be measured.
    """
    there = [each for each, split in splits.items() if split is not None]
    if name not in there:
        raise ComponentError(
            f"datasets/{dataset}.py: there is no split {name!r}; build() gives {', '.join(there)}.",
            f"Name one that is there: `--split {'val' if 'val' in there else there[-1]}`.",
        )
    if is_stream(splits[name]) or not len(splits[name]):
        what = "is streamed" if is_stream(splits[name]) else "is empty"
        raise ComponentError(
            f"datasets/{dataset}.py: the split {name!r} {what}; evaluation needs one with a length"
            " and indices."
        )
    return splits[name]


def on_one_process(recipe: Recipe) -> Recipe:
    """The recipe whose model is whole: pieces need other processes."""
    told = recipe.model_dump(mode="json")
    return Recipe.model_validate({**told, "train": {**told["train"], "sharding": "none"}})


def load_exported(setting: Setting) -> Model:
    """The finished model as people load it, ready to be called."""
    start, train = setting.start, setting.train
    model = exported.load(setting.plan)
    objective = build_objective(setting, model)
    called = prepare(objective, train, setting.accelerator, setting.world)
    size = start.checkpoint.micro_batch if start.checkpoint else 0
    nothing = torch.optim.SGD([torch.zeros(())])  # of a loaded model nothing may be trainable
    state = TrainState(model, nothing, micro_batch=size or 1)
    return Model(objective, called, state)


def main(path: str, wish: str, result: str) -> int:
    """Measure and write the result; returns the exit code, and says what is wrong."""
    file = Path(path)
    plan = replace(Plan.read(file), home=str(file.parent.parent))
    told = parsed(wish)
    only_text()
    try:
        with bar(f"Evaluating {plan.run} on {told['split']}"):
            found = measure(plan, told["split"], told["step"], of_model=told["of_model"])
        if not found["metrics"]:
            raise TrainError(
                f"Every label of the split {found['split']!r} is -100: nothing was measured."
            )
    except XrunError as error:
        if error.__cause__ is not None:
            print(aside(traceback.format_exc()), file=sys.stderr)
        print(f"xrun: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    write_json(Path(result), found)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
