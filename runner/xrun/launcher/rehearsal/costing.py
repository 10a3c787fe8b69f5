"""What a recipe's step takes, measured by a process of the libraries that its machines will have,
once for all that goes into it. Nothing is installed for it: a rehearsal does that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from ... import environment
from ...bar import bar
from ...errors import StoreError
from ...files import needed, read_json, write_json
from ...run.cost import Cost
from ...run.folder import RunFolder
from ...run.plan import Plan
from ..bundle import Cargo
from . import remembered
from .interpreter import installed
from .rehearse import Place, lay_out, libraries_of, surroundings

_SECONDS = 600.0


@dataclass(frozen=True)
class Lacks:
    """Why nobody knows, in a sentence, and what to do about it."""

    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.what.rstrip('.')}. {self.hint}".strip()


def known_cost(plan: Plan, cargo: Cargo) -> Cost | Lacks:
    """What was measured before of this very plan as it is packed."""
    return _known(_digest(plan, cargo)) or Lacks(
        "Nobody has measured what a step takes", "`xrun plan` does."
    )


def measured_cost(plan: Plan, cargo: Cargo, say: Callable[[str], None]) -> Cost | Lacks:
    """The same, measured now where it is not known."""
    digest = _digest(plan, cargo)
    if known := _known(digest):
        return known
    if sys.platform != "linux":
        return Lacks("What a step takes is measured on Linux only")
    with tempfile.TemporaryDirectory(prefix="xrun-plan-") as folder:
        root = Path(folder).resolve()
        python = installed(libraries_of(cargo), root / "environment")
        if python is None:
            hint = "`xrun rehearse RECIPE` installs them."
            return Lacks("The libraries of the recipe's machines are not installed here", hint)
        say("measuring what a step takes, by shapes alone; once for this recipe")
        with bar("Measuring what a step takes"):
            found = _measured(plan, lay_out(cargo, Place(root, python)))
    if isinstance(found, Cost):
        try:
            _keep(digest, found)
        except StoreError as error:  # it is measured again the next time
            say(f"not remembered: {error}")
    return found


def _measured(plan: Plan, place: Place) -> Cost | Lacks:
    project = place.project
    small = replace(
        plan,
        recipe_path=str(project / "recipes" / Path(plan.recipe_path).name),
        project=str(project),
        home=str(place.root / "runs"),
        fork="",
        store="",
        fork_store="",
        publish="",
        rehearsal=1,
    )
    run = RunFolder(small.folder)
    run.path.mkdir(parents=True)
    run.write_plan(small)
    command = [str(place.python), *environment.PYTHON[1:], "-m", "xrun.training.costed"]
    try:
        done = subprocess.run(
            [*command, str(run.plan_file)],
            cwd=project,
            env=surroundings(place, os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Lacks(f"Measuring what a step takes was not over after {_SECONDS:.0f} s")
    return read_cost(read_json(run.cost, dict), done.stderr)


def read_cost(told: dict[str, Any] | None, said: str) -> Cost | Lacks:
    """What the process has written; `said` is what it printed."""
    if told is None:
        last = [line for line in said.splitlines() if line.strip()][-1:] or ["it said nothing"]
        return Lacks(f"Measuring what a step takes failed: {last[0].strip()}")
    if "cost" not in told:
        hint = str(told.get("hint", ""))
        return Lacks(f"What a step takes cannot be measured: {told.get('lacks', '')}", hint)
    return Cost.from_json(told["cost"])


def _digest(plan: Plan, cargo: Cargo) -> str:
    """The digest of all that the cost of a step follows from: what a rehearsal depends on, and the
    model, which a rehearsal makes smaller, as the recipe has it."""
    told = [remembered.digest_of(plan, cargo, libraries_of(cargo)), plan.recipe["model"]]
    return blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def folder() -> Path:
    """Where they are kept."""
    return environment.cache_folder() / "costs"


def _known(digest: str) -> Cost | None:
    told = read_json(folder() / f"{digest}.json", dict)
    try:
        return Cost.from_json(told) if told else None
    except ValueError:  # of another xrun
        return None


def _keep(digest: str, cost: Cost) -> None:
    with needed(folder()):
        folder().mkdir(parents=True, exist_ok=True)
        write_json(folder() / f"{digest}.json", cost.to_json())
