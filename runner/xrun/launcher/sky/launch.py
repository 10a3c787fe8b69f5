"""`Launch`: everything about one launch in one value, which is printed, asked about, and submitted
as it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...bar import bar
from ...recipe.notes import unheard
from ...recipe.schema import Candidate, Recipe
from ...run.cost import Cost
from ...run.plan import Plan, check_deadline
from ..bundle import Cargo, pack
from ..offers import Offers
from ..project import refuse_what_stays
from ..rehearsal.costing import Lacks, known_cost
from ..requirements import lock
from ..speeds import known_throughput
from .catalogs import check_lists, offers_elsewhere, price_lists
from .client import enabled_clouds, name_of
from .controller import find_controller
from .offers import find_offers
from .plugin import other_version, plugin_version
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


Costing = Callable[[Plan, Cargo], Cost | Lacks]
"""Says what a step of what is packed takes."""


def prepare(
    plan: Plan,
    environ: Mapping[str, str] = os.environ,
    *,
    costing: Costing = known_cost,
    any_memory: bool = False,
    elsewhere: bool = False,
) -> Launch:
    """Fix the libraries' versions, ask for prices, and settle what would be launched. Nothing is
    written but what `costing` keeps. `any_memory`: also where the step does not fit; `elsewhere`:
    with the prices of clouds that are not enabled.

    Raises:
        RecipeError: something that the recipe needs would not travel, a library that it names
            cannot be had on a machine, or its deadline has passed.
        CloudUnavailable: the package index does not answer.
        LaunchError: no cloud is enabled, none offers what the recipe asks for with enough memory,
            none can host the job controller, or what should go along is too large.
    """
    refuse_what_stays(plan)
    plan = lock(replace(plan, launched=first_launch(plan)), environ)
    recipe, version = plan.load_recipe(), plugin_version()
    plugin = version is not None
    check_deadline(recipe, Path(plan.recipe_path), plan.overrides, plan.launched)
    enabled_clouds()  # where there is none, nothing has to be measured
    found = costing(plan, pack(plan, []))
    cost = found if isinstance(found, Cost) else None
    throughput = known_throughput(plan, cost)
    with bar("Asking what machines cost"):
        offers = find_offers(plan, throughput, any_memory=any_memory, any_nodes=plugin)
    offers = replace(offers, cost=cost, lacks="" if cost else str(found))
    if elsewhere:
        enabled = [name_of(cloud) for cloud in enabled_clouds()]
        lists = price_lists(enabled)
        offers = replace(offers, elsewhere=offers_elsewhere(recipe, throughput, lists))
    candidate = recipe.hardware.any_of[offers.best.candidate]
    cargo = pack(plan, offers.prices, setup_of(recipe, candidate))
    rule = recovery(plan, offers, throughput) if plugin else OF_SKYPILOT
    told = (
        [without_plugin(recipe.hardware), *unheard(recipe)]
        if version is None
        else [*with_plugin(plan, offers), *other_version(version)]
    )
    task = task_config(plan, offers, cargo.folder, rule, environ)
    notes, controller = (*offers.notes, *told), find_controller(task["resources"])
    offers = replace(offers, notes=notes, controller=controller)
    return Launch(plan, offers, cargo, task)


def priced_elsewhere(plan: Plan, costing: Costing) -> Offers:
    """What a plan would cost on clouds of which none is enabled.

    Raises:
        NoClouds: no price list can be had; nothing was measured then.
        XrunError: as `prepare`, before it asks for offers.
    """
    refuse_what_stays(plan)
    with bar("Asking what machines cost"):
        check_lists(lists := price_lists(()))
    plan = lock(plan)
    recipe = plan.load_recipe()
    found = costing(plan, pack(plan, []))
    cost = found if isinstance(found, Cost) else None
    offers = offers_elsewhere(recipe, known_throughput(plan, cost), lists)
    lacks = "" if cost else str(found)
    return Offers((), ordered=False, order="", cost=cost, lacks=lacks, elsewhere=offers)


def setup_of(recipe: Recipe, candidate: Candidate) -> str:
    """What a kind of machine runs before the attempt: the recipe's commands, then its own."""
    return "\n".join(part for part in (recipe.setup, candidate.setup) if part)
