"""`Launch`: everything about one launch in one value, which is printed, asked about, and submitted
as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...recipe.schema import Candidate, Recipe
from ...run.plan import Plan, check_deadline
from ..bundle import Cargo, pack
from ..offers import Offers
from ..project import refuse_what_stays
from ..requirements import lock
from ..throughput import known_throughput
from .controller import find_controller
from .offers import find_offers
from .plugin import has_plugin
from .recovery import OF_SKYPILOT, first_launch, recovery, with_plugin, without_plugin
from .task import launch_command, task_config, task_yaml


@dataclass(frozen=True)
class Launch:
    """A plan, the machines that would do at the prices of now, what travels with the job, and
    SkyPilot's task, in which secrets are names without values."""

    plan: Plan
    offers: Offers
    cargo: Cargo
    task: Mapping[str, Any]

    def write(self) -> Path:
        """Put the cargo and the task's YAML into the run's folder, where a launch finds them;
        returns the YAML's path."""
        self.cargo.write()
        path = self.plan.folder / "job.yaml"
        path.write_text(task_yaml(self.task))
        return path

    def text(self) -> str:
        """The task as YAML, and the command that launches it from where `write` has put it."""
        command = launch_command(self.task, str(self.plan.folder / "job.yaml"))
        return f"{task_yaml(self.task)}\n# {command}"


def prepare(plan: Plan, environ: Mapping[str, str] = os.environ) -> Launch:
    """Fix the libraries' versions, ask for prices, and settle what would be launched. Nothing is
    written.

    Raises:
        RecipeError: something that the recipe needs would not travel, a library that it names
            cannot be had on a machine, or its deadline has passed.
        CloudUnavailable: the package index does not answer.
        LaunchError: no cloud is enabled, none offers what the recipe asks for, none can host the
            job controller, or what should go along is too large.
    """
    refuse_what_stays(plan)
    plan = lock(replace(plan, launched=first_launch(plan)), environ)
    recipe, throughput, plugin = plan.load_recipe(), known_throughput(plan), has_plugin()
    check_deadline(recipe, Path(plan.recipe_path), plan.overrides, plan.launched)
    offers = find_offers(plan, throughput, any_nodes=plugin)
    candidate = recipe.hardware.any_of[offers.best.candidate]
    cargo = pack(plan, offers.prices, setup_of(recipe, candidate))
    rule = recovery(plan, offers, throughput) if plugin else OF_SKYPILOT
    told = with_plugin(plan, offers) if plugin else [without_plugin(recipe.hardware)]
    task = task_config(plan, offers, cargo.folder, rule, environ)
    notes, controller = (*offers.notes, *told), find_controller(task["resources"])
    offers = replace(offers, notes=notes, controller=controller)
    return Launch(plan, offers, cargo, task)


def setup_of(recipe: Recipe, candidate: Candidate) -> str:
    """What a kind of machine runs before the attempt: the recipe's commands, then its own."""
    return "\n".join(part for part in (recipe.setup, candidate.setup) if part)
