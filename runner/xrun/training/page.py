"""The folder `xrun/` beside the weights: `run/page.py` says what is in it and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from ..files import json_text
from ..run import page
from ..run.locked import Lock
from ..run.plan import Plan
from ..run.points import Point
from ..run.receipt import Receipt
from ..run.sources import sources
from .curves import curves


def write_page(
    model: Path,
    plan: Plan,
    lock: Lock,
    points: Sequence[Point],
    weights: Mapping[str, str],
    sha256: str,
    receipt: Receipt,
    sample_flops: float = 0.0,
) -> None:
    """Write it into the model's folder; `weights` are the files' SHA-256 by their names, `receipt`
    what the run has cost until now, `sample_flops` what its model computes for a sample."""
    folder = model / page.FOLDER
    folder.mkdir(exist_ok=True)
    processes = int(lock.machine.get("processes", plan.processes))
    state = str(plan.place) if plan.address.durable else ""
    facts = page.Facts(
        plan.run,
        plan.digest,
        plan.rule,
        processes,
        sha256,
        dict(weights),
        state,
        dict(plan.sources),
        sample_flops,
    )
    given = plan.load_recipe().given()
    (folder / page.RECIPE).write_text(yaml.safe_dump(given, sort_keys=False, allow_unicode=True))
    (folder / page.LOCK).write_text(json_text(lock.to_json(), indent=1) + "\n")
    (folder / page.RUN).write_text(json_text(asdict(facts), indent=1) + "\n")
    (folder / page.RECEIPT).write_text(json_text(receipt.to_json(), indent=1) + "\n")
    (folder / page.POINTS).write_bytes(page.lines(list(points)))
    if picture := curves(points):
        (folder / page.CURVES).write_text(picture)
    if plan.recipe.get("publish_code"):
        _write_code(folder, plan)


def _write_code(folder: Path, plan: Plan) -> None:
    """The files of the project's own that the model and the dataset consist of."""
    project = Path(plan.project)
    for kind, key in (("models", "model"), ("datasets", "dataset")):
        found = sources(kind, plan.recipe[key]["name"], project)  # type: ignore[arg-type]  # a Kind
        for place in (each for each in found if (project / each).is_file()):
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found[place])
