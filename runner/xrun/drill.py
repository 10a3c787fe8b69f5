"""The proof that people run before they spend money: an undisturbed run and one under real
SIGKILLs, compared to the last bit.

Every life of the disturbed run is the command that a person would type, in a process group of its
own; a kill ends the whole group at once, as a machine that vanishes does. Moments are chosen by
seed in four places: while the command starts, while the attempt resumes, inside a save, and
anywhere in training.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from . import environment
from .bar import Bar, bar
from .errors import AttemptEnd, LaunchError, XrunError
from .libraries import TRAINING, require
from .recipe.load import load_recipe
from .recipe.schema import Recipe
from .run.folder import RunFolder, runs_in
from .run.points import reproducible
from .run.report import duration_words

START, RESUME, SAVE, TRAIN = "start-up", "resume", "save", "training"
_SHARES = {START: 2, RESUME: 2, SAVE: 3, TRAIN: 3}
_POLL_SECONDS, _LOOK_SECONDS = 0.001, 0.2
_SHORT_SECONDS = 0.02
"""A kill in a save or in training comes up to so long after its moment."""
TOLERANCE = 1e-5
"""Relative difference of losses that another number of processes may make (sums in another
order)."""

_CAUSES = """\
Mostly that is a random number from a generator of the component's own (random.Random,
numpy.random.default_rng, torch.Generator), something that the dataset or the model remembers
outside of its buffers (a counter, a cache, a file that is open), the time, or the order of a set or
of os.listdir. docs/concepts/exactness.md says what counts."""


@dataclass
class Result:
    """What the two runs had in common and what the kills cost."""

    recipe: str
    folder: str
    resized: bool
    kills: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    attempts: int = 0
    points: int = 0
    steps_recomputed: int = 0
    seconds_lost: float = 0.0
    undisturbed_seconds: float = 0.0
    disturbed_seconds: float = 0.0
    weights_sha256: tuple[str, str] = ("", "")
    largest_difference: float = 0.0
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs that must not."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "equal": self.equal}

    def text(self) -> str:
        """For people."""
        places = ", ".join(f"{count} in {place}" for place, count in sorted(self.kills.items()))
        same = (
            "the same final weights to the last bit"
            if len(set(self.weights_sha256)) == 1
            else "other final weights"
        )
        if self.resized and self.equal:
            same += f", losses within {self.largest_difference:.1e} relative"
        verdict = (
            f"{'EQUAL' if self.equal else 'DIFFERENT'}: {self.kills.total()} kills"
            f" ({places or 'none'}), {self.attempts} attempts, {self.points} points compared,"
            f" {same}."
        )
        cost = (
            f"Lost: {self.steps_recomputed} steps computed again, {self.seconds_lost:.1f} s of"
            f" training; {self.undisturbed_seconds:.0f} s undisturbed, {self.disturbed_seconds:.0f}"
            " s with the kills and restarts."
        )
        lines = [verdict, cost]
        if self.kills.total() < self.asked:
            lines.append(
                f"Only {self.kills.total()} of {self.asked} kills fitted into the run: it ended"
                " before."
            )
        where = [f"Both runs are in {self.folder}"] if self.folder else []
        causes = [] if self.equal else [_CAUSES]
        return "\n".join([*lines, *self.differences[:10], *causes, *where])


def drill(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    kills: int = 20,
    seed: int = 0,
    resize: bool = False,
    processes: int | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Run the drill; see the module.

    Raises:
        XrunError: the recipe is wrong, what trains is not installed, or the undisturbed run does
            not finish.
    """
    loaded = load_recipe(recipe, overrides)
    require(TRAINING)
    folder = Path(folder or tempfile.mkdtemp(prefix="xrun-drill-")).resolve()
    size = processes or (loaded.hardware.local.processes if loaded.hardware.local else 1)
    command = [
        *environment.PYTHON,
        "-m",
        "xrun",
        "run",
        str(recipe),
        "--local",
        "--yes",
        *_options(overrides),
    ]
    result = Result(str(recipe), str(folder), resize, asked=kills)
    say(f"Undisturbed: {shlex.join(command[3:])} --processes {size}")
    place, steps = folder / "undisturbed", loaded.train.steps or 0
    with _shown("The undisturbed run", steps) as shown, _Life(command, place, size, shown) as life:
        times = life.to_the_end()
    result.undisturbed_seconds = times["end"]
    left = duration_words(_left(times, kills + 1))
    say(f"{times['steps']:.0f} steps in {times['end']:.0f} s; with {kills} kills about {left}")
    began = time.monotonic()
    _disturb(loaded, command, folder / "disturbed", size, result, times, random.Random(seed), say)
    result.disturbed_seconds = time.monotonic() - began
    _compare(loaded, _only_run(folder / "undisturbed"), _only_run(folder / "disturbed"), result)
    return result


def _options(overrides: Sequence[str]) -> list[str]:
    """The person's overrides; the state stays in the drill's folder whatever the recipe says, and
    nobody else is told or given the model."""
    trackers = [f"tracking.{name}=null" for name in ("wandb", "tensorboard", "trackio")]
    own = ["checkpoint.store=local", "publish=null", "alerts=null", *trackers]
    return [part for override in [*overrides, *own] for part in ("-s", override)]


def _disturb(
    recipe: Recipe,
    command: list[str],
    home: Path,
    size: int,
    result: Result,
    times: dict[str, float],
    rng: random.Random,
    say: Callable[[str], None],
) -> None:
    """Kill life after life, then let the last one finish."""
    steps = int(times["steps"])
    places = rng.choices(list(_SHARES), list(_SHARES.values()), k=result.asked)
    targets = sorted(rng.uniform(0, 0.92 * steps) for _ in places)
    for number, (place, target) in enumerate(zip(places, targets, strict=True), 1):
        what = f"Life {number} of {result.asked + 1}, to be ended in {place}"
        with _shown(what, steps) as shown, _Life(command, home, size, shown) as life:
            where = life.kill(place, int(target), times, rng)
            step = max(0, life.step())
        if where is None:
            break
        result.kills[place] += 1
        left = duration_words(_left(times, result.asked + 1 - number, step))
        say(f"kill {number}/{result.asked} in {place}, {where}; about {left} left")
        if result.resized:
            size = rng.choice([other for other in _sizes(recipe) if other != size] or [size])
    what = f"Life {result.kills.total() + 1} of {result.kills.total() + 1}, to the end"
    with _shown(what, steps) as shown, _Life(command, home, size, shown) as life:
        life.to_the_end()


def _shown(what: str, steps: int) -> AbstractContextManager[Bar]:
    """What people see from its first moment on: a life may be over in two seconds."""
    return bar(what, steps, "steps", patience=0)


def _left(times: dict[str, float], lives: int, step: int = 0) -> float:
    """Seconds that so many more lives take from this step on, by those of the undisturbed run."""
    start, steps = times["first_step"], max(1.0, times["steps"])
    return lives * start + max(0.0, times["end"] - start) * (1 - min(1.0, step / steps))


def _sizes(recipe: Recipe) -> list[int]:
    """Numbers of processes that this machine may try."""
    return [size for size in (1, 2, 4) if recipe.train.micro_batches % size == 0]


class _Life:
    """One start of the command, in a process group of its own, which ends with the context."""

    def __init__(self, command: list[str], home: Path, size: int, shown: Bar) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.shown, self._looked = shown, 0.0
        self.home, self.began, self.born = home, time.monotonic(), time.time()
        self.log = home / "output.log"
        self.commits = _newest_commit(home)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--processes", str(size)],
                env={**os.environ, environment.HOME.name: str(home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self._end()

    def _end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def to_the_end(self) -> dict[str, float]:
        """Let it finish; when the lease, the first step and the end came (seconds), and how many
        steps there were.

        Raises:
            LaunchError: it does not finish.
        """
        times = {
            "lease": self._when(self._has_lease),
            "first_step": self._when(lambda: self.step() > 0),
        }
        self._when(lambda: False)
        if (code := self.process.returncode) != 0:
            raise LaunchError(
                f"The run in {self.home} ended with {code}: {self._last_line()}",
                f"Its output is in {self.log}",
            )
        return times | {"end": time.monotonic() - self.began, "steps": float(self.step())}

    def kill(
        self, place: str, target: int, times: dict[str, float], rng: random.Random
    ) -> str | None:
        """End the whole group at a moment in `place`; says where that was, None if the run ended
        before."""
        if place == START:
            self._wait(rng.uniform(0, times["lease"]))
        elif place == RESUME:
            self._when(self._has_lease)
            self._wait(rng.uniform(0, max(0.1, times["first_step"] - times["lease"])))
        else:
            self._when(lambda: self._trains() and self.step() >= target)
            if place == SAVE:
                self._when(self._is_saving)
            self._wait(rng.uniform(0, _SHORT_SECONDS))
        if self.process.poll() is not None:
            if self.process.returncode != 0:
                raise LaunchError(
                    f"The disturbed run ended with {self.process.returncode} by itself:"
                    f" {self._last_line()}",
                    f"Its output is in {self.log}",
                )
            return None
        self._end()
        return (
            f"{time.monotonic() - self.began:.2f} s after its start, at step {max(0, self.step())}"
        )

    def _when(self, happened: Callable[[], bool]) -> float:
        while not happened() and self.process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if (now := time.monotonic()) - self._looked > _LOOK_SECONDS:
                self._looked = now
                self.shown.advance(max(0, self.step()) - self.shown.done)
        return time.monotonic() - self.began

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._when(lambda: time.monotonic() >= end)

    def _has_lease(self) -> bool:
        return _newest_commit(self.home) > self.commits

    def _trains(self) -> bool:
        """This life has logged a step, so it is past its start and its restore."""
        return float(self._last_point().get("time", 0.0)) > self.born

    def _is_saving(self) -> bool:
        """A file of the state is being written: it has a temporary name."""
        return any(self.home.glob("*/state/objects/*/.*"))

    def step(self) -> int:
        """The newest step that the run has logged, whichever life did; -1 before the first."""
        return int(self._last_point().get("step", -1))

    def _last_point(self) -> dict[str, Any]:
        runs = runs_in(self.home)
        return runs[0].last_point() if runs else {}

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "(it printed nothing)"


def _newest_commit(home: Path) -> int:
    """The highest number of a commit: they are never used twice, and old ones are deleted."""
    return max(
        (int(path.stem) for path in home.glob("*/state/commits/*.json") if path.stem.isdigit()),
        default=-1,
    )


def _only_run(home: Path) -> RunFolder:
    runs = runs_in(home)
    if len(runs) != 1:
        raise XrunError(f"{home} holds {len(runs)} runs instead of one.")
    return runs[0]


def _compare(recipe: Recipe, one: RunFolder, other: RunFolder, result: Result) -> None:
    """Every logged point and the final weights."""
    reports = one.report(), other.report()
    disturbed = reports[1]
    result.attempts = len(disturbed.attempts)
    result.steps_recomputed = disturbed.steps_recomputed
    result.seconds_lost = disturbed.seconds_lost
    weights = reports[0].weights_sha256 or "", disturbed.weights_sha256 or ""
    result.weights_sha256 = weights
    bitwise = not result.resized or recipe.train.reduction == "exact"
    result.differences += [
        f"attempt {number} failed by itself: {attempt.reason}"
        for number, attempt in enumerate(disturbed.attempts, 1)
        if attempt.end == AttemptEnd.OWN
    ]
    points = _by_place(one), _by_place(other)
    result.points = len(points[0])
    for place in sorted({*points[0], *points[1]}):
        _compare_points(place, points[0].get(place), points[1].get(place), bitwise, result)
    if bitwise and weights[0] != weights[1]:
        result.differences.append(f"final weights: SHA-256 {weights[0]} and {weights[1]}")


def _by_place(run: RunFolder) -> dict[tuple[int, str], dict[str, Any]]:
    """Points by step and kind, without what the clock says."""
    points: dict[tuple[int, str], dict[str, Any]] = {}
    for point in run.points():
        values = reproducible(point)
        del values["step"]
        place = point["step"], next(iter(values)).partition("/")[0]
        if place in points:
            values = {"doubled": json.dumps([points[place], values])}
        points[place] = values
    return points


def _compare_points(
    place: tuple[int, str],
    one: dict[str, Any] | None,
    other: dict[str, Any] | None,
    bitwise: bool,
    result: Result,
) -> None:
    where = f"step {place[0]}, {place[1]}"
    if one is None or other is None:
        result.differences.append(
            f"{where}: only in the {'undisturbed' if other is None else 'disturbed'} run"
        )
        return
    for name in sorted({*one, *other}):
        left, right = one.get(name), other.get(name)
        if left == right:
            continue
        difference = _relative(left, right)
        if name.endswith("/loss"):
            result.largest_difference = max(result.largest_difference, difference)
        if (
            bitwise
            or (name.endswith("/loss") and difference > TOLERANCE)
            or name == "train/samples"
        ):
            result.differences.append(
                f"{where}: {name} is {left} undisturbed and {right} disturbed"
            )


def _relative(left: Any, right: Any) -> float:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return float("inf")
    return abs(left - right) / max(abs(left), abs(right))
