"""`Plan`: a recipe resolved against the facts around it, as one JSON file that both halves read.

Making a plan touches nothing. What changes the mathematics goes into the digest, and the run's id
follows from it, so the same command again finds its run and a changed recipe does not continue
somebody else's weights.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import component, environment
from ..errors import ComponentError, LaunchError, NoRunId, Problem, RecipeError
from ..files import parsed, read_small, typed
from ..recipe.interval import Every
from ..recipe.rungs import evaluated_every, rung_step
from ..store.address import Address
from .identity import Identity, identity, in_full
from .locked import Lock
from .origin import Origin
from .requirements import Requirements

if TYPE_CHECKING:
    from ..recipe.schema import Recipe

FORMAT = 1


@dataclass(frozen=True)
class Wandb:
    """`tracking.wandb` of a recipe."""

    project: str
    entity: str = ""
    tags: tuple[str, ...] = ()
    online: bool = True

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Wandb:
        """Read it from a plan's recipe."""
        tags, mode = told.get("tags") or (), told.get("mode", "online")
        return cls(told["project"], told.get("entity") or "", tuple(tags), mode == "online")


@dataclass(frozen=True)
class Limits:
    """`budget` of a recipe, over all attempts; None where there is no limit."""

    usd: float | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Alerts:
    """`alerts` of a recipe: the names of the variables that hold addresses, and which events."""

    to: tuple[str, ...] = ()
    on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything an attempt needs to know, without secrets.

    `command` is another one each time that somebody types it.
    `mathematics` is what `digest` is made of, by the rule of this number: a recipe's part that a
    run cannot change, with a hash per component file. `home` holds the runs' folders; `processes`
    train on this node; `fork` is the run whose newest checkpoint starts this one. `store` is the
    address of the state where that is not the run's folder: `hub` until a launch has asked whose
    token it is, then `hub://owner/name` or `hub-bucket://owner/name`; a bucket with the prefix of
    all its runs; `fork_store` the same for the forked run. `publish` is the repository of the
    finished model, likewise `hub` until then; "" where it goes wherever the state is. `other_data`:
    somebody has said that the data may be others than those that the run was trained on.
    `requirements`: the recipe's libraries, and their versions once a launch has fixed them. `lock`:
    what else a launch has fixed. `launched`: when the run was first launched on a cloud, in seconds
    since 1970; 0 before.
    `rehearsal`: the last step of a rehearsal, which is a run in miniature; 0 for one that counts.
    `whole_batch`: of a rehearsal, the run's own global batch in samples; else 0.
    `origin`: the repository that the recipe was fetched from, by its URL; empty for one that lay
    here.
    `sweep`: the id of the sweep that the run is a trial of; "" for one by itself. `pause`: it stops
    with its state committed once the first of so many parts of its steps is done, at the next
    evaluation; 0 where it goes to its end. Neither changes what is computed.
    """

    run: str
    digest: str
    mathematics: Mapping[str, Any]
    recipe: Mapping[str, Any]
    recipe_path: str
    project: str
    home: str
    owner: str
    processes: int = 1
    overrides: tuple[str, ...] = ()
    fork: str = ""
    store: str = ""
    fork_store: str = ""
    publish: str = ""
    version: str = ""
    format: int = FORMAT
    rule: int = 1
    other_data: bool = False
    code: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    requirements: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: int = 0
    whole_batch: int = 0
    lock: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    launched: float = 0.0
    sweep: str = ""
    pause: float = 0

    def load_recipe(self) -> Recipe:
        """The recipe as it was resolved, typed. Building its schema takes 30 ms, which a process
        that only starts others does without."""
        return self._typed

    @cached_property
    def _typed(self) -> Recipe:
        from ..recipe.schema import Recipe

        return Recipe.model_validate(self.recipe)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe["name"])

    @property
    def env(self) -> dict[str, str]:
        """What the recipe adds to the environment of the training processes."""
        return dict(self.recipe["env"])

    @property
    def is_exact(self) -> bool:
        """Whether the number of processes leaves the result the same (`train.reduction: exact`)."""
        return bool(self.recipe["train"]["reduction"] == "exact")

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the model."""
        return self.recipe["train"].get("sharding") == "fsdp"

    @property
    def is_deterministic(self) -> bool:
        """Whether the same machines compute the same bits again."""
        return bool(self.recipe["train"]["deterministic"])

    @property
    def global_batch(self) -> int:
        """Samples per step."""
        return int(self.recipe["train"]["global_batch"])

    @property
    def sources(self) -> Mapping[str, str]:
        """The digest of each component's file, by its path; none in plans of an older rule."""
        return dict(self.mathematics.get("sources", {}))

    @property
    def on_clouds(self) -> bool:
        """Whether the recipe asks for machines of a cloud."""
        return bool(self.recipe["hardware"]["any_of"])

    @property
    def wandb(self) -> Wandb | None:
        """Where in Weights & Biases the run is told of; None if it is not."""
        told = self.recipe["tracking"]["wandb"]
        return None if told is None else Wandb.from_json(told)

    @property
    def tensorboard(self) -> Path | None:
        """Where the run's event files are; None if there are none."""
        told = self.recipe["tracking"].get("tensorboard")
        if told is None:
            return None
        where = told.get("folder")
        own = self.folder / "tensorboard"
        return self._base / Path(where).expanduser() / self.run if where else own

    @property
    def shared(self) -> Origin | None:
        """Where the recipe was fetched from; None for one that lay here."""
        return Origin.from_json(self.origin)

    @property
    def _base(self) -> Path:
        """Where relative paths of what the run leaves begin."""
        return Path((self.shared and self.shared.here) or self.project)

    @property
    def alerts(self) -> Alerts:
        """Who is told of what; nobody where the recipe says nothing, and of no rehearsal."""
        told = (not self.rehearsal and self.recipe.get("alerts")) or {}
        return Alerts(tuple(told.get("to", ())), tuple(told.get("on", ())))

    @property
    def limits(self) -> Limits:
        """What the run may cost."""
        return Limits(**self.recipe["budget"])

    @property
    def libraries(self) -> Requirements:
        """What it needs beside the pins."""
        return Requirements.from_json(self.requirements)

    @property
    def locked(self) -> Lock:
        """What the launch has fixed."""
        return Lock.from_json(self.lock)

    @property
    def address(self) -> Address:
        """Where the state is."""
        return Address.parse(self.store or "local")

    @property
    def place(self) -> Address:
        """Where the state of this very run is."""
        return self.address.place_of(self.run)

    @property
    def where(self) -> str:
        """Where the state is, for people."""
        return str(self.place) if self.store else str(self.folder / "state")

    @property
    def repository(self) -> Address:
        """Where `publish` says that the finished model goes."""
        return Address.parse(self.publish)

    @property
    def model_address(self) -> Address | None:
        """Where others find the finished model; None if it stays in the run's folder."""
        if self.publish:
            return self.repository
        return self.place if self.address.durable else None

    def last_step(self, steps_per_epoch: int | None) -> int:
        """The step at which the run is finished."""
        train = self.recipe["train"]
        if self.rehearsal:
            return self.rehearsal
        return int(train["steps"] or train["epochs"] * (steps_per_epoch or 0))

    def pause_step(self, steps_per_epoch: int | None) -> int | None:
        """The step after which it pauses; None where it does not, or nobody knows yet."""
        train, last = self.recipe["train"], self.last_step(steps_per_epoch)
        if not (self.pause and last) or self.rehearsal:
            return None
        written = train["evaluate"].get("every")
        every = Every.parse(written) if written else None
        between = evaluated_every(every, bool(train["epochs"]), steps_per_epoch)
        step = rung_step(last, between, self.pause)
        return step if step < last else None

    @property
    def computed(self) -> Mapping[str, Any]:
        """The mathematics with defaults written out."""
        return in_full(self.recipe, self.sources)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.home) / self.run

    def to_json(self) -> str:
        """One JSON object, readable."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    def placed(self, owner: str) -> Plan:
        """The plan of this owner's run: its store's address is the one for everybody."""
        store = str(self.address.of_run(owner, self.run))
        return replace(self, owner=self.recipe["checkpoint"].get("team") or owner, store=store)

    def published(self, owner: str) -> Plan:
        """The plan of a run whose model this owner publishes."""
        return replace(self, publish=str(self.repository.of_run(owner, self.run)))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan; keys that a newer xrun has added are ignored. Raises ValueError."""
        known = typed(cls, parsed(text))
        try:
            plan = cls(**{**known, "overrides": tuple(known.get("overrides", ()))})
        except TypeError:
            raise ValueError("keys of a plan are missing") from None
        _check_shape(plan.recipe)
        Requirements.from_json(plan.requirements)
        Lock.from_json(plan.lock)
        Origin.from_json(plan.origin)
        return plan

    @classmethod
    def read(cls, path: Path, hint: str = "Launch the run again.") -> Plan:
        """The plan in a file.

        Raises:
            LaunchError: there is none, or it is damaged.
        """
        try:
            return cls.from_json(read_small(path).decode())
        except FileNotFoundError as error:
            raise LaunchError(f"There is no plan {path}.", hint) from error
        except OSError as error:
            raise LaunchError(f"{path} cannot be read: {error.strerror}.", hint) from error
        except ValueError as error:
            raise LaunchError(f"{path} is damaged: {error}.", hint) from error


_SHAPE: dict[str, tuple[type, ...]] = {
    "name": (str,), "task": (str,), "model": (dict,), "dataset": (dict,), "env": (dict,),
    "hardware": (dict,), "hardware.any_of": (list, tuple), "tracking": (dict,),
    "tracking.wandb": (dict, type(None)), "tracking.tensorboard": (dict, type(None)),
    "checkpoint": (dict,), "budget": (dict,), "alerts": (dict, type(None)),
    "budget.usd": (int, float, type(None)), "budget.hours": (int, float, type(None)),
    "train": (dict,), "train.steps": (int, type(None)), "train.epochs": (int, type(None)),
    "train.global_batch": (int,), "train.reduction": (str,), "train.deterministic": (bool,),
}  # fmt: skip
"""What is read of a plan's recipe without the schema, which takes its time to be imported."""


def _check_shape(recipe: Mapping[str, Any]) -> None:
    for key, kinds in _SHAPE.items():
        part, _, name = key.rpartition(".")
        section = recipe[part] if part else recipe
        if name in section and not isinstance(section[name], kinds):
            raise ValueError(f"`recipe.{key}` is of another type than a recipe's")
        if name not in section and type(None) not in kinds:
            raise ValueError(f"`recipe.{key}` is missing")


def make_plan(
    recipe: Recipe,
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: str = "",
    fork: str = "",
    processes: int | None = None,
    origin: Origin | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Plan:
    """Resolve a recipe: who it is, where its state goes, how many processes train. `origin`: where
    a recipe was fetched from, whose runs do not live beside it.

    Raises:
        LaunchError: a run id is malformed, or the recipe asks for something that a local run cannot
            do.
        RecipeError: the recipe, which may have been made without a file, breaks a rule, or
            `processes` cannot share the micro-batches evenly.
    """
    check_run_id(run)
    check_run_id(fork)
    check_rules(recipe, path)
    check_tracking(recipe, path, overrides)
    check_processes(recipe, processes or 1)
    project = component.project_root(path)
    made = identity(recipe, project)
    assert made is not None, "the newest rule has a name for everything"
    return Plan(
        run=run or run_id(recipe.name, made),
        digest=made.digest,
        mathematics=made.mathematics,
        rule=made.rule,
        recipe=recipe.model_dump(mode="json"),
        recipe_path=str(path.resolve()),
        project=str(project),
        home=str(home_of(recipe, Path(origin.here) if origin else project, environ)),
        owner=recipe.checkpoint.team or environment.user_name(),
        processes=processes or (recipe.hardware.local.processes if recipe.hardware.local else 1),
        overrides=tuple(overrides),
        fork=fork,
        store=str(recipe.checkpoint.store) if recipe.checkpoint.durable else "",
        publish=str(recipe.publish or ""),
        version=_version(),
        requirements=_requirements(recipe, project, path),
        origin=origin.to_json() if origin else {},
    )


def _requirements(recipe: Recipe, project: Path, path: Path) -> dict[str, Any]:
    """The libraries that the recipe names, without versions yet. Raises RecipeError."""
    if not recipe.requirements:
        return {}
    from ..recipe.requirements import wanted

    return Requirements(wanted(recipe.requirements, project, str(path))).to_json()


def check_rules(recipe: Recipe, path: Path) -> None:
    """What loading has checked in a recipe from a file, for one that was made by hand.

    Raises:
        RecipeError: it breaks a rule.
    """
    from ..recipe.rules import broken

    if problems := [replace(problem, path=str(path)) for _, problem in broken(recipe)]:
        raise RecipeError(problems)


def check_processes(recipe: Recipe, processes: int) -> None:
    """What the recipe's own number is checked for, for the one that was given on the command line.

    Raises:
        RecipeError: they cannot share the micro-batches evenly.
    """
    slots = recipe.train.micro_batches
    if slots % processes:
        what = f"{processes} processes cannot share the {slots} micro-batches of a step evenly"
        hint = "Use a number that divides them, or set train.micro_batch."
        raise RecipeError([Problem("--processes", 0, 0, "", what, hint=hint)])


def check_run_id(run: str) -> None:
    """A run's id names a folder, a branch and a W&B run, so it is short and plain; "" stands for
    none.

    Raises:
        NoRunId: it is not.
    """
    if run and not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", run):
        raise NoRunId(
            f"{run!r} is not a valid run id.",
            "A run id is lower-case letters, digits and '-', at most 40 characters.",
        )


def check_tracking(recipe: Recipe, path: Path, overrides: Sequence[str] = ()) -> None:
    """A recipe that asks for a tracker that is not there is refused, not ignored. It is no rule of
    the schema: a recipe of a run that exists is read all the same.

    Raises:
        RecipeError: it asks for Trackio.
    """
    if recipe.tracking.trackio is None:
        return
    from ..recipe.load import place_of

    what = "xrun sends nothing to Trackio, so its points would not be there"
    hint = "Remove it, or use `tracking.wandb` or `tracking.tensorboard`."
    key = "tracking.trackio"
    raise RecipeError([place_of(key, path, overrides).problem(key, what, hint=hint)])


def check_deadline(
    recipe: Recipe, path: Path, overrides: Sequence[str], launched: float, now: float | None = None
) -> None:
    """A deadline that has passed is refused before money is spent, `launched` being the run's first
    launch. It is no rule of the schema: time passes for a run that exists.

    Raises:
        RecipeError: it has passed.
    """
    deadline = recipe.hardware.deadline
    now = time.time() if now is None else now
    if deadline is None or deadline.after(launched) > now:
        return
    from ..recipe.load import place_of

    when = f"{datetime.fromtimestamp(deadline.after(launched), UTC):%Y-%m-%d %H:%M} UTC"
    hint = "Give a later one, or remove it: then the run waits for spot machines."
    place = place_of("hardware.deadline", path, overrides)
    raise RecipeError(
        [place.problem("hardware.deadline", f"{when} has passed", str(deadline), hint)]
    )


def check_folder(recipe: Recipe, path: Path, overrides: Sequence[str] = ()) -> None:
    """A folder for the runs of this machine can be made and written; nothing stays there.

    Raises:
        RecipeError: it cannot.
    """
    if recipe.checkpoint.store.kind != "folder" or recipe.hardware.any_of:
        return
    from ..recipe.load import place_of

    home = home_of(recipe, component.project_root(path))
    there = next(each for each in (home, *home.parents) if os.path.lexists(each))
    try:
        tempfile.TemporaryDirectory(dir=there, prefix=".xrun-").cleanup()
    except OSError as error:
        key, made = "checkpoint.store", "be written" if there == home else "be made"
        what = f"{home} cannot {made}: {there}: {error.strerror}"
        hint = "Name a folder that you may write to, or leave `local`."
        place = place_of(key, path, overrides)
        problem = place.problem(key, what, str(recipe.checkpoint.store), hint)
        raise RecipeError([problem]) from error


def run_id(name: str, made: Identity) -> str:
    """The id of the run that a recipe of this name means."""
    return f"{name}-{made.digest[:8]}"


def under_rule(plan: Plan, rule: int) -> Plan | None:
    """The plan with the digest that another rule makes, and with its id where that follows from the
    recipe.

    None where the rule has no name for the recipe, or is one that only a newer xrun knows.
    """
    if rule == plan.rule:
        return plan
    recipe = plan.load_recipe()
    try:
        made = identity(recipe, Path(plan.project), rule)
    except ComponentError:
        return None
    if made is None:
        return None
    own = run_id(recipe.name, Identity(plan.rule, plan.digest, plan.mathematics))
    run = run_id(recipe.name, made) if plan.run == own else plan.run
    return replace(plan, run=run, digest=made.digest, mathematics=made.mathematics, rule=rule)


def older_rules(plan: Plan) -> list[Plan]:
    """The plan under every rule before its own that has another name for its recipe, the newest
    first."""
    plans = (under_rule(plan, rule) for rule in range(plan.rule - 1, 0, -1))
    named = {older.digest: older for older in plans if older is not None}
    return [older for digest, older in named.items() if digest != plan.digest]


def home_of(recipe: Recipe, project: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds the runs' folders: what the recipe says, else $XRUN_HOME, else `runs/`
    of the project."""
    store = recipe.checkpoint.store
    if store.kind != "folder":
        return default_home(project, environ)
    return (project / Path(store.name).expanduser()).resolve()


def default_home(project: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs live when the recipe does not say."""
    home = environment.HOME.of(environ)
    return Path(home).expanduser().resolve() if home else project / "runs"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed between the mathematics of two plans, as `key: old -> new`, and of the files of
    components as `models/x.py was edited`."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        _change(name, old, new)
        for name in sorted({*old, *new})
        if old.get(name, ...) != new.get(name, ...)
    ]


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    part, _, file = name.partition(".")
    if part == "sources" and file:
        what = "removed" if name not in new else "edited" if name in old else "added"
        return f"{file} was {what}"
    return f"{name}: {_show(old, name)} -> {_show(new, name)}"


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted key."""
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _show(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "(absent)"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xrun")
    except PackageNotFoundError:
        return "unknown"
