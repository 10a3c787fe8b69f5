"""A sweep's page at Weights & Biases: its trials as parallel coordinates, and which of the
parameters matter.

`python -m xrun.tracker.wandb.view SWEEP` (the JSON of `processes.SweepView`) saves that view of the
project once, under a name that follows from the sweep's id, and prints its address. A view that is
there is left as it is: somebody may have changed it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

from ... import streams
from ...terminal import only_text


def address(told: dict[str, Any]) -> str:
    """The address of the sweep's view, which is there afterwards."""
    import wandb
    import wandb_workspaces.workspaces as ws

    entity = told["entity"] or wandb.Api().default_entity
    view = ws.Workspace(
        entity=entity,
        project=told["project"],
        name=told["sweep"],
        sections=[ws.Section(name=told["sweep"], panels=_panels(told), is_open=True)],
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("group") == told["sweep"]]),
    )
    digest = hashlib.sha256(told["sweep"].encode()).hexdigest()
    view._internal_name = f"nw-{digest[:11]}-v"  # as its own `url` asks for
    try:
        ws.Workspace.from_url(view.url)
    except ValueError:  # there is none of this name
        view.save()
    return str(view.url)


def _panels(told: dict[str, Any]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    axes = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(f"recipe.{key}"), display_name=key, log=log)
        for key, log in told["parameters"].items()
    ]
    metric = f"val/{told['metric']}"
    axes.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(metric)))
    wide, below = wr.Layout(x=0, y=0, w=24, h=12), wr.Layout(x=0, y=12, w=24, h=8)
    return [
        wr.ParallelCoordinatesPlot(columns=axes, layout=wide),
        wr.ParameterImportancePlot(with_respect_to=metric, layout=below),
    ]


def main_and_exit(arguments: list[str]) -> None:
    """Save the view and print where it is, or why it is not there in one line; the exit code is 0
    or 1."""
    streams.deaf()
    only_text()
    try:
        said, code = address(json.loads(arguments[0])), 0
    except Exception as error:  # the library's
        said, code = f"{type(error).__name__}: {error}".splitlines()[0], 1
    print(said, flush=True)
    os._exit(code)


if __name__ == "__main__":
    main_and_exit(sys.argv[1:])
