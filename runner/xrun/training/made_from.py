"""What this attempt is made from: the lock as it begins, and what it finds besides."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import json_text
from ..machine.driver import ask_driver
from ..run.locked import Lock
from ..run.plan import Plan
from ..run.sources import sources
from .hub_revisions import HubRevisions
from .packages import packages_here, python_here

log = logging.getLogger("xrun")


def begin_revisions(plan: Plan, known: Lock) -> HubRevisions:
    """What is asked of the Hub from here on, by whomever, is answered by the run's commits."""
    forked = replace(plan, store=plan.fork_store)
    own = frozenset({plan.address.name, forked.address.name} - {""})
    revisions = HubRevisions({**plan.locked.hub, **known.hub}, own)
    revisions.use()
    return revisions


def look_offline(plan: Plan, revisions: HubRevisions) -> None:
    """What the Hub's cache has given where nothing may be asked. Raises CheckpointError."""
    if not revisions.is_offline:
        return
    project, recipe = Path(plan.project), plan.recipe
    files = {
        **sources("models", recipe["model"]["name"], project),
        **sources("datasets", recipe["dataset"]["name"], project),
    }
    texts = (source.decode(errors="replace") for source in files.values())
    revisions.taken_offline("\n".join([json_text(recipe), *texts]))


def say_moved(revisions: HubRevisions, known: Lock) -> None:
    """Tell people once where a branch of the recipe's leads today."""
    for name, now in revisions.moved().items():
        if known.moved.get(name) != now:
            revisions.told[name] = now
            log.warning(
                "%s has moved on the Hub, from %s to %s. The run goes on with what it was made"
                " from.",
                name, known.hub[name][:12], now[:12],
            )  # fmt: skip


def found_here(plan: Plan, revisions: HubRevisions, environment: Mapping[str, Any]) -> Lock:
    """What this attempt is made from, as far as it is known by now; `environment` is what the bits
    depend on besides. The recipe's libraries count before anything has imported them."""
    driver = {"driver": _driver()} if environment.get("cuda") else {}
    return Lock(
        hub=revisions.now(),
        moved=dict(revisions.told),
        packages={**plan.libraries.fixed(), **packages_here()},
        python=python_here(),
        machine={**environment, **driver},
    )


@functools.cache
def _driver() -> str:
    return ask_driver().version
