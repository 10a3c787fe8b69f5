"""Plan -> job: find the run that a recipe means, and start it."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from pathlib import Path

from .cloud import Cloud
from .errors import CheckpointError, LaunchError
from .plan import Plan, differences
from .run_folder import RunFolder, runs_in


def choose_run(plan: Plan, *, given: bool = False, new: bool = False, fork: str = "") -> Plan:
    """The plan with the run that the person means.

    `given`: the id was given with --run. A run that exists goes on; a recipe that has other runs but not this one is not started
    silently, because a changed recipe usually means a typing error or a wish to start from what is there.

    Raises:
        CheckpointError: the run exists and was trained with other mathematics.
        LaunchError: the recipe has other runs and nobody said what to do.
    """
    own = RunFolder(plan.folder)
    if fork:
        return _forked(plan, fork)
    if new:
        return dataclasses.replace(plan, run=_unused(plan)) if own.path.exists() else plan
    if (own.path / "plan.json").exists():
        return _same(plan, own.plan())
    others = [other for other in _plans_in(plan.home) if other.recipe["name"] == plan.recipe["name"]]
    if others and not given:
        _refuse_silent_start(plan, others)
    return plan


def launch(plan: Plan, cloud: Cloud) -> int:
    """Run a plan on a cloud, with the version of the project's code kept in it; returns the exit code."""
    return cloud.run(dataclasses.replace(plan, code=code_version(Path(plan.project))))


def code_version(project: Path) -> dict[str, object]:
    """The project's git commit and whether files differ from it; empty where there is no git."""
    commit = _git(project, "rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git(project, "status", "--porcelain"))} if commit else {}


def _git(project: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _same(plan: Plan, known: Plan) -> Plan:
    if known.digest != plan.digest:
        raise CheckpointError(
            f"The recipe differs from what the run {plan.run} was trained with: "
            + "; ".join(differences(known.mathematics, plan.mathematics)) + ".",
            f"Start a new run with --new, or take its weights along with --fork {plan.run}.",
        )  # fmt: skip
    return dataclasses.replace(plan, fork=known.fork)


def _plans_in(home: str) -> list[Plan]:
    """The plans of all runs, the newest first; a damaged one of some other run is no obstacle."""
    plans = []
    for folder in runs_in(Path(home)):
        with contextlib.suppress(LaunchError):
            plans.append(folder.plan())
    return plans


def _refuse_silent_start(plan: Plan, others: list[Plan]) -> None:
    known = others[0]
    raise LaunchError(
        f"The recipe {plan.recipe['name']} has {len(others)} other run{'s' if len(others) > 1 else ''} here, "
        f"the newest is {known.run}. What is different: "
        + ("; ".join(differences(known.mathematics, plan.mathematics)) or "nothing but the id") + ".",
        f"Start a new run with --new, or go on from its weights with --fork {known.run}.",
    )  # fmt: skip


def _forked(plan: Plan, fork: str) -> Plan:
    source = RunFolder(Path(plan.home) / fork)
    source.plan()
    for known in _plans_in(plan.home):
        if known.fork == fork and known.digest == plan.digest:
            return dataclasses.replace(plan, run=known.run, fork=fork)
    run = plan.run if plan.run != fork and not RunFolder(plan.folder).path.exists() else _unused(plan)
    return dataclasses.replace(plan, run=run, fork=fork)


def _unused(plan: Plan) -> str:
    """The first of run-2, run-3, ... that nobody has used."""
    number = 2
    while (Path(plan.home) / f"{plan.run}-{number}").exists():
        number += 1
    return f"{plan.run}-{number}"
