"""The first thing that happens on a job's machine: the plan that travelled, with the paths of this machine, in the run's folder.

python -m xrun.arrive CARGO && python -m xrun.entrypoint ~/xrun/runs/RUN/plan.json
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from .plan import Plan
from .run_folder import RunFolder, write_plan


def arrive(cargo: Path) -> Path:
    """Write the plan of a cargo where its attempt looks for it; returns the path."""
    plan = Plan.from_json((cargo / "plan.json").read_text())
    home, project, recipe = (str(Path(path).expanduser()) for path in (plan.home, plan.project, plan.recipe_path))
    plan = dataclasses.replace(plan, home=home, project=project, recipe_path=recipe)
    return write_plan(RunFolder(plan.folder), plan)


if __name__ == "__main__":
    arrive(Path(sys.argv[1]).expanduser())
