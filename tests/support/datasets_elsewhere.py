"""What a new process, or a new machine, makes of a plan's dataset."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from xrun.run.plan import Plan

from .running import forkserver


def elsewhere(plan: Plan, folder: Path, environ: dict[str, str]) -> tuple[list[Any], list[str]]:
    """The column `y` of the split `train` as a process makes it that has this environment, and what
    it has said; `folder` is for what it writes."""
    told = folder / "told.json"
    told.unlink(missing_ok=True)
    process = forkserver().Process(target=_make, args=(plan.to_json(), environ, str(told)))
    process.start()
    process.join(120)
    column, said = json.loads(told.read_text())
    return column, said


def _make(plan_json: str, environ: dict[str, str], told: str) -> None:
    os.environ.update(environ)
    plan = Plan.from_json(plan_json)
    os.chdir(plan.project)
    from xrun.components import use_project
    from xrun.training.instances import splits_of
    from xrun.training.prepared import prepared

    said = _Said()
    logging.getLogger("xrun").setLevel(logging.INFO)
    logging.getLogger("xrun").addHandler(said)
    use_project(Path(plan.project))
    if (kept := prepared(plan, "a1")) is not None:
        kept.fetch()
    column = list(splits_of(plan)["train"]["y"])
    if kept is not None:
        kept.send()
    Path(told).write_text(json.dumps([column, said.lines]))


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
