"""The first thing that happens on a job's machine: the plan that travelled, with the paths of this
machine, in the run's folder.

python -m xrun.supervisor.arrive CARGO && python -m xrun.supervisor.entrypoint
~/xrun/runs/RUN/plan.json
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from ..run.folder import RunFolder
from ..run.plan import Plan


def arrive(cargo: Path) -> Path:
    """Write the plan of a cargo where its attempt looks for it; returns the path."""
    plan = Plan.from_json((cargo / "plan.json").read_text())
    home, project, recipe = (
        str(Path(path).expanduser()) for path in (plan.home, plan.project, plan.recipe_path)
    )
    plan = _placed(dataclasses.replace(plan, home=home, project=project, recipe_path=recipe))
    return RunFolder(plan.folder).write_plan(plan)


def _placed(plan: Plan) -> Plan:
    """The plan with its store's full address: a launch has looked it up, a task that somebody
    launched by hand has not."""
    if not plan.address.durable or plan.address.name:
        return plan
    from huggingface_hub import HfApi

    return plan.placed(HfApi(endpoint=os.environ.get("HF_ENDPOINT")).whoami()["name"])


if __name__ == "__main__":
    arrive(Path(sys.argv[1]).expanduser())
