"""Plan -> job: find the run that a recipe means, and start it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ComponentError, LaunchError, XrunError
from ..run.folder import RunFolder, commit_in, runs_in
from ..run.identity import in_full
from ..run.locked import Lock
from ..run.plan import Plan, differences, older_rules, under_rule
from ..run.record import RunRecord
from ..run.stores import open_store
from .git import git_answer
from .local import Cloud
from .locking import locked

_LENGTHS = ("steps", "epochs")
_LIKE_ADAM = ("adam", "adamw", "radam")
"""Optimizers of torch that keep the same tensors for each parameter."""
_NEARLY = 0.85
"""How alike two ids are of which one is mistyped: one letter of four is missing, or three of
twenty."""


def choose_run(
    plan: Plan,
    *,
    given: bool = False,
    new: bool = False,
    again: bool = False,
    fork: str = "",
    asked: bool = True,
) -> Plan:
    """The plan with the run that the person means.

    `given`: the id was given with --run. A run that exists goes on; a recipe that has other runs
    with trained steps but not this one is not started silently, because a changed recipe usually
    means a typing error or a wish to start from what is there; nor is an id that is nearly one that
    exists. `new` says that it is meant, from step 0 (`forked_from`), and `again` asks for another
    run of the same recipe, or another fork. A program is not `asked`: it means what it calls.

    Raises:
        CheckpointError: the run exists and was trained with other mathematics, or for more steps.
        LaunchError: the recipe has other runs, or the id is nearly another's, and nobody said what
            to do.
    """
    if fork:
        return _forked(plan, fork, again)
    if again:
        taken = RunFolder(plan.folder).path.exists()
        return dataclasses.replace(plan, run=_unused(plan)) if taken else plan
    if (known := known_run(plan, given=given)) is not None:
        _refuse_fewer(known)
        return _from_step_0(known) if new and known.fork else known
    if given and not new:
        _refuse_mistyped(plan)
    meant = given or new or not asked
    others = [] if meant else [each for each in runs_of(plan) if _may_have_trained(each)]
    if others:
        _refuse_silent_start(plan, others)
    return plan


def forked_from(plan: Plan) -> str:
    """The run with whose weights this plan's run was to begin when it was last started, where it is
    now to begin without them; "" else."""
    folder = RunFolder(plan.folder)
    return "" if plan.fork or not folder.plan_file.exists() else folder.plan().fork


def runs_of(plan: Plan) -> list[Plan]:
    """The plans of all runs here of a recipe of this name, the newest first."""
    return [other for other in _plans_in(plan.home) if other.name == plan.name]


def left_behind(plan: Plan) -> Plan | None:
    """The newest run here of this very recipe that has trained and is not finished."""
    for other in runs_of(plan):
        folder = RunFolder(other.folder)
        if other.digest != plan.digest or not folder.witness.exists():
            continue
        with contextlib.suppress(XrunError):
            if not folder.record().is_done(other):
                return other
    return None


def known_run(plan: Plan, *, given: bool = False) -> Plan | None:
    """The plan of the run that this recipe has here already, by the newest rule or an older one;
    None if it is new here. `given`: it can only be the one of this id.

    Raises:
        CheckpointError: the run was trained with other mathematics.
    """
    for meant in [plan] if given else [plan, *older_rules(plan)]:
        if (found := _known_here(meant)) is not None:
            return found
    return None


def launch(plan: Plan, cloud: Cloud) -> int:
    """Train a plan on a cloud or, with `LocalCloud`, on this machine; returns the exit code. The
    plan keeps the project's git commit and the URL that it was fetched from.

    Raises:
        XrunError: it cannot be started from here. What fails in training is an exit code.
    """
    code, command = code_version(Path(plan.project)), uuid.uuid4().hex[:12]
    code |= {"url": plan.shared.url} if plan.shared else {}
    return cloud.run(locked(dataclasses.replace(plan, code=code, command=command)))


def code_version(project: Path) -> dict[str, object]:
    """The project's git commit and whether files differ from it, what runs and Python make aside;
    empty where there is no git."""
    commit = git_answer(project, "rev-parse", "HEAD")
    sources = (".", *(f":(exclude,glob)**/{name}/**" for name in ("runs", "__pycache__")))
    dirty = bool(git_answer(project, "status", "--porcelain", "--", *sources))
    return {"commit": commit, "dirty": dirty} if commit else {}


def by_the_rule_of(plan: Plan, rule: int) -> Plan:
    """The plan under the rule that a run was begun by, with the run's id.

    Raises:
        CheckpointError: that rule has no name for the recipe.
    """
    made = under_rule(plan, rule)
    if made is None:
        raise CheckpointError(
            f"The id of the run {plan.run} follows rule {rule}, by which xrun cannot tell whether"
            " the recipe is still the one that the run began with.",
            "Start another run with --again, or take its weights along with --fork; or use the"
            " version of xrun that began it.",
        )
    return dataclasses.replace(made, run=plan.run)


def as_begun(plan: Plan, record: RunRecord) -> Plan:
    """The plan of the run that has this record: by its rule, from the commits and versions that it
    was begun with, and from when its deadline counts.

    Raises:
        CheckpointError: see `refuse_another`.
    """
    made = by_the_rule_of(plan, record.rule)
    refuse_another(made, record)
    lock = Lock(hub=record.lock.hub, packages=record.lock.packages)
    return dataclasses.replace(made, lock=lock.to_json(), launched=record.launched)


def refuse_another(plan: Plan, record: RunRecord, where: str = "") -> None:
    """A run goes on with what it was begun with, as its record says that; `where` its state is.

    Raises:
        CheckpointError: the plan's mathematics are others; with the keys and files that differ.
    """
    if record.digest in ("", plan.digest):
        return
    known = in_full(as_of_now(record.recipe), record.sources) if record.recipe else {}
    now = dict(plan.computed)
    if not record.sources:  # an older record
        known, now = ({**each, "sources": {}} if each else {} for each in (known, now))
    changed = differences(known, now) if known else []
    what = f"The recipe differs from what {where or f'the run {plan.run}'} was trained with"
    raise CheckpointError(
        f"{what}: {'; '.join(changed) or 'the files of its components'}.",
        "To go on with the run, leave that as it was (`xrun resume` takes the recipe from its"
        " record); for another one use --new, or --fork, which takes its weights along.",
    )


def as_of_now(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded recipe with the keys that were added since at their defaults; as it is, if it is
    none of this version's."""
    from ..recipe.schema import Recipe

    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValueError:
        return recipe


def _known_here(plan: Plan) -> Plan | None:
    """The plan by the rule of the run of this id, if there is one here; its plan.json may have been
    deleted."""
    folder = RunFolder(plan.folder)
    if folder.plan_file.exists():
        return _same(plan, folder.plan())
    if plan.address.durable or not folder.state.exists():
        return None
    try:
        head = open_store(plan, "reader", create=False).head()
        record = RunRecord.of(head)
    except XrunError:  # what cannot be read now is the attempt's news
        return plan
    return as_begun(plan, record) if head else None


def _same(plan: Plan, known: Plan) -> Plan:
    plan = by_the_rule_of(plan, known.rule)
    if known.digest != plan.digest:
        raise CheckpointError(
            f"The recipe differs from what the run {plan.run} was trained with: "
            + "; ".join(differences(known.computed, plan.computed))
            + ".",
            f"Start a new run with --new and without --run, or take its weights along with --fork"
            f" {plan.run}.",
        )
    _same_place(plan, known)
    kept = known.libraries.of(plan.libraries.wanted).to_json()
    return dataclasses.replace(
        plan,
        fork=known.fork,
        fork_store=known.fork_store,
        requirements=kept,
        lock=known.lock,
        launched=known.launched,
    )


def _refuse_fewer(plan: Plan) -> None:
    """A run that has trained more steps than a command asks for would pass for one of so few.

    Raises:
        CheckpointError: it has.
    """
    folder = RunFolder(plan.folder)
    before = folder.plan().recipe["train"] if folder.plan_file.exists() else None
    if before is None or all(before.get(key) == plan.recipe["train"][key] for key in _LENGTHS):
        return
    try:
        record = folder.record()
    except XrunError:  # the attempt's news
        return
    last, trained = plan.last_step(record.steps_per_epoch), record.newest_step
    if 0 < last < trained:
        raise CheckpointError(
            f"The run {plan.run} has trained {trained} steps, and this command asks for {last}.",
            f"Nothing was changed. Ask for at least {trained}, or start another run with --again.",
        )


def _same_place(plan: Plan, known: Plan) -> None:
    """A run's state is where it has always been: elsewhere there is none, and it would begin anew.

    Raises:
        CheckpointError: the recipe names another place, and something was committed.
    """
    folder = RunFolder(plan.folder)
    begun = (folder.witness, folder.state, folder.path / "launch.json")
    moved = plan.address.kind != known.address.kind if plan.address.durable else known.store
    named = plan.address.name and known.address.name and plan.address != known.address
    if (moved or named) and any(path.exists() for path in begun):
        raise CheckpointError(
            f"checkpoint.store: the state of the run {plan.run} is in {known.where}, and this"
            f" command says {plan.where}.",
            "Leave the store as it was, or start another run with --again.",
        )


def _plans_in(home: str) -> list[Plan]:
    """The plans of all runs, the newest first; a damaged one of some other run is no obstacle."""
    plans = []
    for folder in runs_in(Path(home)):
        with contextlib.suppress(LaunchError):
            plans.append(folder.plan())
    return plans


def _may_have_trained(plan: Plan) -> bool:
    """Whether a run may have come to a committed step: one that has not leaves nothing that a
    changed recipe could mean. On clouds it counts once it was launched."""
    folder = RunFolder(plan.folder)
    if folder.owner_pid() or (plan.on_clouds and (folder.path / "launch.json").exists()):
        return True
    if plan.on_clouds or plan.address.durable:  # no store far away is asked
        known = commit_in(folder.witness)
        return known is not None and known[0] > 0
    try:
        return folder.record().newest_step > 0
    except XrunError:
        return True


def _refuse_mistyped(plan: Plan) -> None:
    """A letter that is missing in a run's id would begin another run at step 0.

    Raises:
        LaunchError: a run here has nearly this id.
    """
    others = (each.run for each in runs_in(Path(plan.home)))
    meant = [run for run in others if _uncounted(run) != _uncounted(plan.run)]
    if near := difflib.get_close_matches(plan.run, meant, 1, _NEARLY):
        raise LaunchError(
            f"--run {plan.run}: there is no such run in {plan.home}. Did you mean {near[0]}?",
            f"Nothing was started. Go on with that by --run {near[0]}; or add --new, which begins a"
            f" run with the id {plan.run} at step 0.",
        )


def _uncounted(run: str) -> list[str]:
    """An id without what somebody counts by: seed-2 and seed-3, lr-a and lr-b have the same. A
    digest's digits count nothing."""
    return [
        part if re.fullmatch(r"[0-9a-f]{8}", part) else re.sub(r"^[a-z]$|\d+$", "#", part)
        for part in run.split("-")
    ]


def _refuse_silent_start(plan: Plan, others: list[Plan]) -> None:
    changed = [differences(o.computed, (under_rule(plan, o.rule) or plan).computed) for o in others]
    nearest = min(range(len(others)), key=lambda number: len(changed[number]))
    run, more = others[nearest].run, len(others) > 1
    raise LaunchError(
        f"The recipe {plan.name} has {len(others)} other run{'s' if more else ''} here,"
        f" {'the nearest is' if more else 'which is'} {run}. What is different: "
        + ("; ".join(changed[nearest]) or "nothing but the id")
        + ".",
        f"Start a new run with --new, or, with the weights of {run}, with --fork {run}.",
    )


def _from_step_0(plan: Plan) -> Plan:
    """The plan of a fork that was asked for as a run that begins at step 0.

    Raises:
        CheckpointError: it has begun with the other run's weights.
    """
    if _may_have_trained(plan):
        raise CheckpointError(
            f"The run {plan.run} of this recipe is a fork: it has begun with the weights of"
            f" {plan.fork}, so --new cannot begin it at step 0.",
            "Start one at step 0 with --again, or leave --new out to go on with the fork.",
        )
    return dataclasses.replace(plan, fork="", fork_store="")


def _forked(plan: Plan, fork: str, again: bool) -> Plan:
    """The run that starts from this one: the one that does so already, unless another one is asked
    for, else a new one."""
    folder = RunFolder(Path(plan.home) / fork)
    source = folder.plan()
    for known in [] if again else _plans_in(plan.home):
        made = under_rule(plan, known.rule) if known.fork == fork else None
        if made and known.digest == made.digest:
            return dataclasses.replace(
                made, run=known.run, fork=fork, fork_store=known.fork_store or source.store
            )
    _refuse_vain_fork(plan, folder)
    free = plan.run != fork and not RunFolder(plan.folder).path.exists()
    run = plan.run if free else _unused(plan)
    return dataclasses.replace(plan, run=run, fork=fork, fork_store=source.store)


def _refuse_vain_fork(plan: Plan, source: RunFolder) -> None:
    """Before anything is made of it, as far as it can be told from here.

    Raises:
        CheckpointError: there is nothing to take along, or it is of another kind.
        ComponentError: nothing would be trained.
    """
    try:
        record = source.record()
    except XrunError:  # the attempt's news
        return
    run, trained, last = source.run, record.newest_step, plan.last_step(0)
    if record.newest is None:
        raise CheckpointError(
            f"--fork {run}: that run has no checkpoint.",
            "Nothing was made. Start the recipe with --new: it begins at step 0.",
        )
    if 0 < last <= trained:
        raise ComponentError(
            f"--fork {run}: that run is at step {trained}, and this recipe ends at step"
            f" {last}, so nothing would be trained. A fork goes on counting.",
            f"Give train.steps more than {trained}. Nothing was made.",
        )
    if other := _other_tensors(source.plan().recipe, plan.recipe):
        raise CheckpointError(
            f"--fork {run}: a fork takes over the whole state, and that of {run} is of another"
            f" kind: {'; '.join(other)}.",
            "Nothing was made. Leave that as it was, or begin at step 0 with --new; with -s"
            f" model.init_from={source.model} also with the weights that {run} has when it is"
            " finished.",
        )


def _other_tensors(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys by which a state has certainly other tensors, as `key: old -> new`."""

    def kinds(recipe: Mapping[str, Any]) -> dict[str, str]:
        return {
            "model.adapter": "one" if recipe["model"].get("adapter") else "none",
            "train.ema": "on" if recipe["train"].get("ema") else "off",
            "train.optimizer.name": str(recipe["train"]["optimizer"]["name"]).lower(),
        }

    old, new = kinds(before), kinds(now)
    if {old["train.optimizer.name"], new["train.optimizer.name"]} <= {*_LIKE_ADAM}:
        new["train.optimizer.name"] = old["train.optimizer.name"]
    return differences(old, new)


def _unused(plan: Plan) -> str:
    """The first of run-2, run-3, ... that nobody has used here."""
    return _first_unused(plan, plan.run, 2)


def next_unused(plan: Plan) -> str:
    """For a plan whose run is used elsewhere: the next id of that kind, run-4 after run-3."""
    counted = re.fullmatch(r"(.+)-([2-9]|[1-9]\d{1,4})", plan.run)
    return _first_unused(plan, counted[1], int(counted[2]) + 1) if counted else _unused(plan)


def _first_unused(plan: Plan, run: str, number: int) -> str:
    while (Path(plan.home) / f"{run}-{number}").exists():
        number += 1
    return f"{run}-{number}"
