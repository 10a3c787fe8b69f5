"""The first thing that happens on a job's machine: the plan that travelled, with the paths of this
machine, in the run's folder.

python -m xrun.supervisor.arrive CARGO && python -m xrun.supervisor.entrypoint
~/xrun/runs/RUN/plan.json
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from xrun_sky.told import not_set_up

from ..errors import EX_TEMPFAIL, LaunchError, XrunError
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..terminal import only_text


def arrive(cargo: Path) -> Path:
    """Write the plan of a cargo where its attempt looks for it; returns the path."""
    plan = Plan.read(cargo / "plan.json")
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
    from ..store.hub.client import account, hub_api

    if (who := account(hub_api())) is not None:
        return plan.placed(who["name"])
    raise LaunchError(
        "The Hugging Face token of this job is not valid, so its store cannot be found.",
        "Launch it again with a token that is: https://huggingface.co/settings/tokens.",
    )


def main(cargo: str) -> int:
    """Arrive; returns the exit code. What is not xrun's to say ends with a traceback."""
    path = Path(cargo).expanduser()
    try:
        arrive(path)
    except XrunError as error:
        final = error.exit_code != EX_TEMPFAIL
        for line in (str(error), *(not_set_up(path, str(error), final=True) if final else ())):
            print(f"xrun: {line}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    only_text()
    sys.exit(main(sys.argv[1]))
