"""All trials of a sweep, so many at a time, each a process of its own: `xrun RECIPE`.

The driver keeps nothing: what is left to do it reads from the board at every start, and after every
trial that has ended. Each process is the command that a person would type for that trial.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .. import environment
from ..errors import EX_TEMPFAIL, LaunchError, StoppedOnPurpose, StoreUnavailable, XrunError
from ..files import needed
from ..lock import Held, held_by, locked
from ..run.folder import RunFolder
from ..run.plan import Limits
from ..signals import STOPS, answered, is_wish
from .board import Board
from .proposal import propose
from .spent import WAY_ON, Spent, spent
from .standing import Standing
from .trial import words
from .trials import Trial, Trials

_LOOK_SECONDS = 0.1
"""Between two looks at which trials have ended."""
_ELSEWHERE_SECONDS = 1.0
"""The same while only other processes run trials, whose results are on the board."""
_NEAR_SECONDS, _FAR_SECONDS = 1.0, 15.0
"""Between two looks at what they have cost, here and where a network has to be asked."""
_CRASHES = 20
"""So many processes of one trial that were ended by a signal are followed by another one."""


@dataclass
class Driver:
    """`command` is what runs the trial of a number; `stop_job` asks a run's job on a cloud to save
    and to stop; `show` is called once, when there is a new result to be shown."""

    trials: Trials
    board: Board
    command: Callable[[int], Sequence[str]]
    say: Callable[[str], None]
    stop_job: Callable[[str], None]
    show: Callable[[], None] = lambda: None
    _all: dict[int, Trial] = field(default_factory=dict)
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _codes: dict[int, int] = field(default_factory=dict)
    """How the processes of trials have ended that have something left to do by the board."""
    _crashes: Counter[int] = field(default_factory=Counter)
    _spent: dict[int, Spent] = field(default_factory=dict)
    _asked: bool = False
    _over: str = ""
    _stopped: bool = False
    _shown: bool = False
    _looked: float = -_FAR_SECONDS
    """When the budget was looked at last."""

    def run(self) -> int:
        """Until no trial has anything left to do. Returns 0, 75 where somebody has asked to stop,
        or the code of a trial that ended with no result: an account, a store, a person.

        Raises:
            StoppedOnPurpose: the budget is spent, and every trial that ran has saved.
            LaunchError: the sweep is running already.
            XrunError: a store cannot be asked.
        """
        self._all = {each.number: each for each in self.trials.all()}
        with needed(self.board.folder), self._alone(), self._signals():
            try:
                return self._to_the_end()
            finally:
                self._stop()
                for process in self._running.values():
                    process.wait()

    def _to_the_end(self) -> int:
        standing = self.board.standing()
        for number in self._all:
            if standing.result_of(number) is not None:
                self.say(f"trial {number} {words(self.trials, standing, number)}")
        while True:
            ended, elsewhere = self._reap(), self._elsewhere(standing)
            if ended or elsewhere:
                standing = self._news(standing, ended)
            self._check_budget()
            if self._asked or self._over:
                self._stop()
            else:
                self._begin(standing, len(elsewhere))
            if not self._running:
                if self._over:
                    raise StoppedOnPurpose(self._over, WAY_ON)
                if self._asked:
                    return EX_TEMPFAIL
                if not elsewhere and standing == (standing := self._news(standing, ())):
                    return self._end(standing)
            time.sleep(_ELSEWHERE_SECONDS if elsewhere else _LOOK_SECONDS)

    def _begin(self, standing: Standing, elsewhere: int) -> None:
        """Start what may run, as many as fit; first those that are further."""
        ready = [number for number in self._ready(standing) if not self._is_held(number)]
        ready.sort(key=lambda number: (-standing.rung_of(number), number))
        free = self.trials.sweep.parallel - len(self._running) - elsewhere
        while len(ready) < free and self.trials.are_open:
            runs = [each.plan.run for each in self._all.values()]
            self.trials = propose(self.trials, self.board, runs)
            for number in range(len(self._all) + 1, len(self.trials.values) + 1):
                self._all[number] = self.trials.trial(number)
                ready.append(number)
                self.say(f"trial {number} is proposed: {self._all[number].words}")
        for number in ready[: max(0, free)]:
            with self.log(number).open("ab") as output:
                self._running[number] = subprocess.Popen(
                    self.command(number),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, environment.PARENT.name: str(os.getpid())},
                )

    def log(self, number: int) -> Path:
        """What the processes of a trial have printed."""
        return self.board.folder / f"trial-{number:02}.log"

    def _ready(self, standing: Standing) -> list[int]:
        waits = (number for number in self._all if standing.state_of(number) == "waits")
        return [each for each in waits if each not in self._running and each not in self._codes]

    def _elsewhere(self, standing: Standing) -> list[int]:
        """Trials that another process of this machine runs: a command that somebody has typed, or
        what a driver that was killed has left, which saves and ends."""
        return [number for number in self._ready(standing) if self._is_held(number)]

    def _is_held(self, number: int) -> bool:
        return RunFolder(self._all[number].plan.folder).owner_pid() is not None

    def _reap(self) -> list[int]:
        """The trials whose processes have ended; those that a signal has ended begin again."""
        ended = [each for each, process in self._running.items() if process.poll() is not None]
        for number in ended:
            code = self._running.pop(number).returncode
            self._spent.pop(number, None)
            self._crashes[number] += code < 0
            if code > 0 or self._crashes[number] >= _CRASHES:
                self._codes[number] = code if code > 0 else 1
        return ended

    def _news(self, before: Standing, ended: Sequence[int]) -> Standing:
        """The board now; what is new on it is said."""
        now = self.board.standing()
        waits = {number for number in self._codes if now.state_of(number) == "waits"}
        self._codes = {number: self._codes[number] for number in waits}
        for number in self._all:
            if now.result_of(number) != before.result_of(number):
                self.say(f"trial {number} {words(self.trials, now, number)}")
                if not self._shown:
                    self._shown = True
                    self.show()
        for rung, made in now.decisions.items():
            known = len(before.decisions.get(rung, {}))
            if self.board.rules.method == "halving" and len(made) > known:
                on = ", ".join(map(str, now.at(rung + 1))) or "none"
                self.say(f"rung {rung} is decided for {len(made)} trials; those that go on: {on}.")
        for number in ended:
            if number in self._codes and not self._asked:
                code = self._codes[number]
                self.say(f"trial {number} ended with {code} and no result: {self.log(number)}")
        return now

    def _end(self, standing: Standing) -> int:
        """The exit code once nothing runs: that of a trial without a result, where there is one."""
        waits = [each for each in self._all if standing.state_of(each) == "parked"]
        if waits:
            missing = ", ".join(map(str, sorted(self._codes)))
            self.say(f"{len(waits)} trials wait at their rung for the results of {missing}.")
        codes = sorted(self._codes.values(), key=lambda code: (code == EX_TEMPFAIL, code))
        return codes[0] if codes else 0

    def _check_budget(self) -> None:
        """Now and then: what all trials have cost."""
        limits = Limits(**self.trials.sweep.budget.model_dump())
        every = _FAR_SECONDS if self.trials.base.address.durable else _NEAR_SECONDS
        if (
            not (limits.usd or limits.hours)
            or self._over
            or time.monotonic() < self._looked + every
        ):
            return
        self._looked = time.monotonic()
        with contextlib.suppress(StoreUnavailable):  # it is looked again
            for number, trial in self._all.items():
                if number in self._running or number not in self._spent:
                    self._spent[number] = spent(trial.plan)
            self._over = sum(self._spent.values(), Spent()).exceeds(limits)

    def _stop(self) -> None:
        """Ask what runs to save and to end, once. A job on a cloud goes on without this command,
        unless nothing is left to pay it with."""
        if self._stopped:
            return
        self._stopped = True
        for number, process in self._running.items():
            if not (self._over and self.trials.base.on_clouds):
                process.terminate()
                continue
            try:
                self.stop_job(self._all[number].plan.run)
            except XrunError as error:  # it has just ended, or has a limit of its own
                self.say(f"trial {number}: {error}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the sweep's lock.

        Raises:
            LaunchError: another process holds it.
        """
        self.board.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.board.folder / "lock", wait=False) as file:
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                yield
        except Held as error:
            what = f"The sweep {self.trials.id} is running already"
            hint = "`xrun sweep status RECIPE` tells how far it is; stop that process first."
            pid = held_by(self.board.folder / "lock") or "unknown"
            raise LaunchError(f"{what} (process {pid}).", hint) from error

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While this lasts a request to stop is one to all trials."""
        with answered(self._on_signal, STOPS):
            yield

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked |= is_wish(number)
