"""Which speeds were measured: by earlier attempts of a run, by others of this project, by those in
reach of the account or bucket that the state goes to, and by the runs whose model pages the recipe
names.

An attempt's entry in a run's record says on which machines it ran (`accelerators`, `nodes`), and
its checkpoints how fast; a model's page has its receipt and its points. What a step of the same
kind has taken is measured; what a similar one has taken on the same machines becomes an estimate.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import XrunError
from ..libraries import HUB, require
from ..recipe.accelerators import Accelerators
from ..recipe.schema import Recipe
from ..run.checkpoint import Checkpoint
from ..run.cost import Cost
from ..run.folder import RunFolder, runs_in
from ..run.listing import AT_ONCE, addresses_beside, run_at
from ..run.page import FOLDER, RUN
from ..run.plan import Plan
from ..run.record import AttemptRecord, RunRecord
from ..store.address import Address
from .original import page_of
from .throughput import COMPARED_SPREAD, Machines, Speed, Throughput, counted

FAR_SECONDS = 2.0
"""So long a quote waits for what others far away have measured."""
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(@.+)?", re.ASCII)


@dataclass(frozen=True)
class Seen:
    """Steps per second of a recipe on machines; `source` says where that was measured,
    `sample_flops` what its model computes for a sample, None where nobody has counted it."""

    recipe: Recipe
    machines: Machines
    steps_per_second: float
    source: str
    sample_flops: float | None = None


def known_throughput(
    plan: Plan,
    cost: Cost | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    seconds: float = FAR_SECONDS,
) -> Throughput:
    """What is known of the plan's speed; `cost` is what a step takes, where that is known. Stores
    far away have so many seconds to answer; what they do not say by then is left out."""
    recipe = plan.load_recipe()
    others = [*_of_project(plan), *_far_away(plan, environ, seconds)]
    same = (each for each in others if _step(each.recipe) == _step(recipe))
    measured: dict[Machines, Speed] = {}
    for each in [*_of_record(plan, _own(plan)), *same]:
        measured.setdefault(each.machines, _as_measured(each))
    known = Throughput(_steps_left(plan, cost), measured, cost, recipe.train)
    for each in others:
        if each.machines not in measured and (speed := _scaled(each, recipe, known.flops())):
            measured[each.machines] = speed
    return known


def hours_left(folder: RunFolder) -> float | None:
    """Hours until the run is finished, at the speed of its newest attempt; None where nobody has
    measured it."""
    plan = folder.plan()
    newest = next(_of_record(plan, _record(folder)), None)
    steps = _steps_left(plan)
    return steps / newest.steps_per_second / 3600 if newest and steps is not None else None


def _as_measured(seen: Seen) -> Speed:
    return Speed(seen.steps_per_second, f"measured in {seen.source}", measured=True)


def _scaled(seen: Seen, recipe: Recipe, flops: float | None) -> Speed | None:
    """The speed of a recipe whose steps compute another amount on the same machines; None where
    nobody can tell how much another. `flops` is what a step of it takes."""
    if _shape(seen.recipe) != _shape(recipe):
        return None
    batches = seen.recipe.train.global_batch, recipe.train.global_batch
    theirs = seen.sample_flops * batches[0] if seen.sample_flops else None
    if theirs and flops:
        factor, by = theirs / flops, f"{counted(theirs)} a step there and {counted(flops)} here"
    elif _model(seen.recipe) == _model(recipe):
        factor = batches[0] / batches[1]
        by = f"{batches[0]} samples a step there and {batches[1]} here"
    else:
        return None
    source = f"estimate from what was measured in {seen.source} with another recipe, by {by}"
    return Speed(seen.steps_per_second * factor, source, measured=False, spread=COMPARED_SPREAD)


def _step(recipe: Recipe) -> tuple[Any, ...]:
    """What decides how long a step takes: equal for two recipes, it takes as long."""
    train, data = recipe.train, recipe.dataset
    cuts = train.global_batch, train.micro_batch, train.sharding, train.reduction
    sums = train.gather, train.accumulate
    how = train.deterministic, train.compile, train.activation_checkpointing, train.ema
    return _shape(recipe), _model(recipe), data.args, cuts, sums, how, train.optimizer.name


def _shape(recipe: Recipe) -> tuple[Any, ...]:
    """What two recipes have in common whose speeds can be compared."""
    train = recipe.train
    return recipe.model.name, recipe.dataset.name, recipe.task, train.precision, train.tf32


def _model(recipe: Recipe) -> Any:
    """The model, whatever weights it begins with."""
    return recipe.model.model_copy(update={"init_from": None})


def _of_record(plan: Plan, record: RunRecord, where: str = "") -> Iterator[Seen]:
    """What each attempt of a run has measured, the newest first."""
    for number, attempt in reversed(list(enumerate(record.attempts, 1))):
        rate = _rate(attempt, record.checkpoints)
        if rate > 0 and attempt.cloud is not None:
            machines = Machines(_accelerators(attempt.accelerators), attempt.nodes)
            source = f"attempt {number} of {plan.run}{where}"
            yield Seen(plan.load_recipe(), machines, rate, source, attempt.sample_flops)


def _accelerators(text: str | None) -> Accelerators | None:
    return Accelerators.parse(text) if text else None


def _rate(attempt: AttemptRecord, checkpoints: Sequence[Checkpoint]) -> float:
    """Steps per second between an attempt's kept checkpoints, else over its life with its start; 0
    where it has none."""
    own = [(each.step, each.time) for each in checkpoints if each.attempt == attempt.id]
    if len(own) < 2:
        end_of = (attempt.committed or 0, attempt.last_known)
        own = [(attempt.first_step, attempt.started), end_of]
    (first, began), (last, end) = own[0], own[-1]
    return (last - first) / (end - began) if end > began else 0.0


def _of_project(plan: Plan) -> Iterator[Seen]:
    """The other runs of this project whose state is on this machine."""
    for folder in runs_in(Path(plan.home)):
        with contextlib.suppress(XrunError, ValueError):  # of a newer xrun, or damaged
            other = folder.plan()
            if folder.run == plan.run or other.address.durable:
                continue
            if _shape(other.load_recipe()) == _shape(plan.load_recipe()):
                yield from _of_record(other, _record(folder))


Answer = tuple[list[Seen], list["Question"]]
Question = Callable[[], Answer]
"""Asks a store far away: what it has seen, and what is to be asked because of that."""


def _far_away(plan: Plan, environ: Mapping[str, str], seconds: float) -> list[Seen]:
    """The same of runs that are elsewhere."""
    here = (each for each in runs_in(Path(plan.home)) if each.run != plan.run)
    known = [address for each in here if (address := _durable(each, plan))]
    pages = list(_pages(plan))
    if not (known or pages or plan.address.durable):
        return []
    if plan.address.on_hub or any(str(each).startswith("hub") for each in (*known, *pages)):
        with contextlib.suppress(XrunError):
            require(HUB)
            from ..store.hub import store  # noqa: F401  # its library's import is nobody's silence

    def run(address: Address) -> Answer:
        opened = run_at(address, environ)
        if opened is None or opened.run == plan.run:
            return [], []
        there = opened.plan(Path(plan.home), Path(plan.project))
        return list(_of_record(there, opened.record, f" ({address})")), []

    def neighbours() -> Answer:
        beside = addresses_beside(plan, environ)
        return [], [_ask(run, each) for each in beside if each not in (*known, plan.place)]

    def page(where: str) -> Answer:
        return list(_of_page(where, environ)), []

    asked = [_ask(run, each) for each in known] + [_ask(page, each) for each in pages]
    return answered([*asked, neighbours], seconds)


def _ask(question: Callable[[Any], Answer], about: Any) -> Question:
    return lambda: question(about)


def answered(questions: Iterable[Question], seconds: float) -> list[Seen]:
    """What is seen by then, `AT_ONCE` being asked at a time."""
    waiting: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def ask() -> None:
        while question := waiting.get():
            try:
                answers.put(question())
            except Exception:  # what cannot be read now has nothing to say about speed
                answers.put(([], []))

    unanswered = 0
    for each in questions:
        waiting.put(each)
        unanswered += 1
    for _ in range(AT_ONCE):
        # Nobody waits for one that is still asking when the command is done.
        threading.Thread(target=ask, daemon=True).start()
    found: list[Seen] = []
    until = time.monotonic() + seconds
    with contextlib.suppress(queue.Empty):
        while unanswered:
            seen, more = answers.get(timeout=max(0.0, until - time.monotonic()))
            found += seen
            for each in more:
                waiting.put(each)
            unanswered += len(more) - 1
    for _ in range(AT_ONCE):
        waiting.put(None)
    return found


def _durable(folder: RunFolder, plan: Plan) -> Address | None:
    """Where the state of a run of this project is, if that is far away and its speed is comparable
    to the plan's."""
    with contextlib.suppress(XrunError, ValueError):
        other = folder.plan()
        if other.address.durable and _shape(other.load_recipe()) == _shape(plan.load_recipe()):
            return other.place
    return None


def _pages(plan: Plan) -> Iterator[str]:
    """The models that the recipe names, and the one beside which it lies: their folders and
    addresses."""
    model, own = plan.load_recipe().model, Path(plan.recipe_path).parent
    if own.name == FOLDER and (own / RUN).is_file():
        yield str(own.parent)
    named = [model.init_from, model.args.get("name") if model.name == "hub" else None]
    for text in (each for each in named if isinstance(each, str)):
        local = Path(plan.project) / Path(text).expanduser()
        if local.exists():
            yield str(local if local.is_dir() else local.parent)
        elif match := _REPOSITORY.fullmatch(text):
            yield f"hub://{match[1]}"


def _of_page(where: str, environ: Mapping[str, str]) -> Iterator[Seen]:
    """What the whole run of a model's page has measured, if all of it ran on one kind of rented
    machines: the receipt has no steps of single attempts."""
    page = page_of(where, environ)
    if page is None:
        return
    receipt, steps = page.receipt, [point["step"] for point in page.points()]
    kinds = {(line.machine, line.nodes) for line in receipt.lines}
    rented = all(line.price != "own" and line.cloud and line.setup_known for line in receipt.lines)
    seconds = 3600 * (receipt.hours - receipt.setup_hours)
    if len(kinds) != 1 or not rented or not steps or seconds <= 0:
        return
    ((machine, nodes),) = kinds
    recipe = Recipe.model_validate(yaml.safe_load(page.recipe.read_text(encoding="utf-8")))
    rate = (max(steps) - min(steps) + receipt.lost_steps) / seconds
    source = f"the receipt of {page.facts.run} ({where})"
    flops = page.facts.sample_flops or None
    yield Seen(recipe, Machines(_accelerators(machine), nodes), rate, source, flops)


def _steps_left(plan: Plan, cost: Cost | None = None) -> int | None:
    """Steps of the run less the newest committed one, its own or that of the run that it is a fork
    of; None where the number of steps follows from
    data nobody has counted yet."""
    train, record = plan.load_recipe().train, _own(plan)
    per_epoch = None if train.steps else _steps_per_epoch(record) or _counted_elsewhere(plan)
    if per_epoch is None and cost and cost.train_samples:
        per_epoch = -(-cost.train_samples // train.global_batch)
    total = plan.last_step(per_epoch)
    if plan.fork and record.newest is None:
        record = _record(RunFolder(Path(plan.home) / plan.fork))
    return max(0, total - max(0, record.committed_step)) if total else None


def _steps_per_epoch(record: RunRecord) -> int | None:
    """What an attempt of a run has counted."""
    counts = (each.steps_per_epoch for each in record.attempts if each.steps_per_epoch)
    return next(counts, None)


def _counted_elsewhere(plan: Plan) -> int | None:
    """The same for another run with the same data in the same batches."""
    own = _epoch(plan.load_recipe())
    for folder in runs_in(Path(plan.home)):
        with contextlib.suppress(XrunError):
            same = _epoch(folder.plan().load_recipe()) == own
            if same and (found := _steps_per_epoch(_record(folder))):
                return found
    return None


def _epoch(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.dataset, recipe.train.global_batch


def _own(plan: Plan) -> RunRecord:
    return _record(RunFolder(plan.folder))


def _record(folder: RunFolder) -> RunRecord:
    """What is committed of a run; a store that cannot be read now has nothing to say about
    speed."""
    try:
        return folder.record() if folder.plan_file.exists() else RunRecord()
    except XrunError:
        return RunRecord()
