"""`xrun export-model`: the model of a run that has finished, once more, by a process of its own."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from .. import environment
from ..errors import LaunchError
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..run.record import RunRecord
from .local import alone, check_libraries, only_one


def export_model(folder: RunFolder, which: str = "") -> int:
    """Export a run's model from its last commit, into its folder here and to its store, if that
    publishes models; returns the exit code. `which` is `best` or `last`, as `train.export` of the
    recipe where it is "".

    Raises:
        LaunchError: the run has not finished, or runs now.
        XrunError: what is committed cannot be read now.
    """
    plan = replace(folder.plan(), home=str(folder.path.parent))
    check_libraries(plan)
    with only_one(folder):
        _check_finished(plan, folder.record())
        if which:
            train = {**plan.recipe["train"], "export": which}
            plan = replace(plan, recipe={**plan.recipe, "train": train})
        return subprocess.run(
            [*environment.PYTHON, "-m", "xrun.training.export_again"],
            env={**alone(os.environ), **plan.env},
            cwd=plan.project if os.path.isdir(plan.project) else None,
            input=plan.to_json(),
            text=True,
            check=False,
        ).returncode


def _check_finished(plan: Plan, record: RunRecord) -> None:
    """Its last step is committed."""
    last = plan.last_step(record.steps_per_epoch)
    if record.committed_step < (last or 1):
        raise LaunchError(
            f"The run {plan.run} has not finished: step {max(record.committed_step, 0)}"
            f"{f' of {last}' if last else ''} is committed.",
            "Its model is made once it has. The same recipe goes on with it.",
        )
