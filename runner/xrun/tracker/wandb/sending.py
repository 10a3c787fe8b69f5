"""One run's points on their way to Weights & Biases: begin after its last row, follow the log, look
what arrives, finish."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ... import environment
from ...backoff import Backoff
from ...errors import EX_TEMPFAIL, LaunchError, StoreError
from ...files import read_json
from ...run.confirmation import FRESH_SECONDS, PAUSE_SECONDS, Confirmation
from ...run.folder import RunFolder, commit_in
from ...run.plan import Plan
from ...run.record import AttemptRecord, RunRecord
from .api import Deleted, Refused, RunPath, Unreachable, run_status, run_url
from .gate import Gate
from .library import cores, end_cores
from .orders import Orders, Standing
from .processes import DELETED
from .rows import PointFile, last_key
from .tracker import WandbTracker, commit_of

POLL_SECONDS = 0.2
PERSON = "person"
"""Who sends because a person asks says so in the lock."""
_CHECK_SECONDS = float(environment.WANDB_CHECK.of())
"""Between two looks at what has arrived; rows that have not after three of them are sent again."""
_SEND_SECONDS = min(5.0, _CHECK_SECONDS)
_SETTLE_SECONDS = _CHECK_SECONDS / 3
"""How long rows that were taken may take to be seen."""
_OUTAGE_SECONDS = min(8.0, 3 * _CHECK_SECONDS)
"""How long W&B is waited for at the end while it does not answer."""
_BACKOFF = Backoff(first=1.0, longest=30.0)
_NOT_OURS = "the store has not confirmed that this attempt still has the run"
_ENVIRONMENT = dict(os.environ)
"""This process's own, before the library writes into it where its `wandb-core` listens."""


@dataclass(frozen=True)
class Wish:
    """What is to be sent: for an attempt, or (`attempt` is "") because a person asks.

    `seconds` is how long the end may take; `said` and `tries` are what a sender before this one,
    under the same id, left off at.
    """

    folder: Path
    attempt: str
    seconds: float
    said: str = ""
    tries: int = 0


class Sending:
    """One life of the process that sends."""

    def __init__(self, plan: Plan, orders: Orders, wish: Wish) -> None:
        self.plan, self.orders, self.wish = plan, orders, wish
        self.folder = RunFolder(wish.folder)
        told = plan.wandb
        self.confirmation = Confirmation(self.folder.logs(wish.attempt))
        self.tracker = WandbTracker(
            RunPath.of(plan),
            wish.folder,
            tags=told.tags if told else (),
            group=plan.sweep,
            store=plan.store,
            seconds=_SEND_SECONDS,
            server=Gate(self._may_send).url,
            running=bool(wish.attempt),
        )
        self.standing = Standing(wish.folder, wish.attempt, wish.said)
        self.points = PointFile(self.folder.metrics)
        self.began = False
        self.commit: tuple[int, str] | None = None
        self.told_commit: tuple[int, str] | None = None
        self.told_attempts: Any = None
        self.marked = self.said_stop = False
        self.tries, self.missing = wish.tries, 0
        self.deadline = self.patience = float("inf")
        self.progress = time.monotonic()

    def live(self) -> int:
        """Everything; returns the exit code."""
        threading.Thread(target=self._tick, name="xrun-tick", daemon=True).start()
        try:
            self._await_config()
            while not self.began and not self._is_over() and self._await_confirmation():
                self._open()
            if not self.began:
                return self._given_up()
            self._follow()
            return self._finish()
        except Deleted:
            sentence = (
                f"The run {self.plan.run} was deleted in Weights & Biases, and its id cannot be"
                " used again; take --again."
            )
            self.standing.tell("deleted", sentence)
            return DELETED
        except Exception as error:  # the library's, whose process may have died
            traceback.print_exc()
            self._retry(Unreachable(f"the wandb library has failed with {type(error).__name__}"))
            return self._given_up()

    def _await_config(self) -> None:
        """Until the attempt has cut the points that it computes again and has written config.json;
        or has ended before."""
        while not self.orders.ended and self._config_attempt() != self.wish.attempt:
            self.orders.listen(POLL_SECONDS)

    def _config_attempt(self) -> Any:
        return (read_json(self.folder.config, dict) or {}).get("attempt")

    def _tick(self) -> None:
        """Notice when this process was asleep, whatever its other threads wait for."""
        while True:
            self.confirmation.tick()
            time.sleep(PAUSE_SECONDS / 10)

    def _may_send(self) -> bool:
        """Whether what is sent now is this run's: a person's wish, or an attempt's that still has
        the run."""
        return not self.wish.attempt or self.confirmation.is_fresh

    def _await_confirmation(self) -> bool:
        """Wait until the store has said again whose the run is; False if it has not for too long
        after the end. That is asked twice in this time, and then W&B has its own."""
        if self._may_send():
            return True
        less = max(0.0, self.wish.seconds - FRESH_SECONDS)
        while not self._may_send():
            self._is_over()
            if time.monotonic() > self.deadline - less:
                return False
            if time.monotonic() - self.progress > _CHECK_SECONDS:
                self._unconfirmed()
            self.orders.listen(POLL_SECONDS)
        self.progress = time.monotonic()
        self.patience = max(self.patience, min(self.deadline, self.progress + _OUTAGE_SECONDS))
        return True

    def _unconfirmed(self) -> None:
        """A store out of reach delays what W&B gets."""
        self._trouble(Unreachable(_NOT_OURS))

    def _is_over(self) -> bool:
        """Whether it is too late to wait for W&B; the time for the end runs from the first time
        that this is asked after it."""
        if self.orders.ended and self.deadline == float("inf"):
            self.deadline = time.monotonic() + self.wish.seconds
            self.patience = time.monotonic() + min(self.wish.seconds, _OUTAGE_SECONDS)
        return time.monotonic() > self.patience

    def _open(self) -> None:
        """Begin where W&B's last row ends, if that works now."""
        try:
            self.tracker.start(self._config(), 0, self._attempts())
        except (Unreachable, Refused) as error:
            self._retry(error)
            return
        with contextlib.suppress(OSError):
            who = [] if self.wish.attempt else [PERSON]
            (self.wish.folder / "wandb.lock").write_text(" ".join([*who, *map(str, cores())]))
        self.began = True
        self.standing.url = run_url(self.tracker.address)
        self.standing.seen = self.tracker.rows.after
        self.commit = self._older_commit(commit_of(self.tracker.status))
        self.progress = time.monotonic()
        self._sending()

    def _attempts(self) -> Sequence[AttemptRecord]:
        """As the attempt has told them; a point is another sign of the last one's life."""
        try:
            told = read_json(self.folder.attempts, list) or ()
            known = RunRecord(attempts=tuple(map(AttemptRecord.from_json, told)))
            return known.seen(self.folder.last_point()).attempts
        except (ValueError, StoreError):  # it is written anew with the next attempt
            return []

    def _older_commit(self, known: tuple[int, str] | None) -> tuple[int, str] | None:
        """The commit that is in the folder, if W&B knows of a newer one: another machine has made
        that, and it stays."""
        here = commit_in(self.folder.witness)
        return here if here and known and here[0] < known[0] else None

    def _retry(self, error: Exception) -> None:
        """Wait before another try, longer from time to time; the library needs a fresh process for
        that."""
        self._trouble(error)
        self.tries += 1
        self._pause(_BACKOFF.seconds(self.tries))
        if "wandb" in sys.modules and not self._is_over():
            self._again()

    def _follow(self) -> None:
        checked = time.monotonic()
        while not self.orders.ended:
            if self._may_send():
                self._tell()
            self.orders.listen(POLL_SECONDS)
            if self.orders.interrupted or time.monotonic() - checked > _CHECK_SECONDS:
                checked, self.orders.interrupted = time.monotonic(), False
                self._check()
                if time.monotonic() - self.progress > 3 * _CHECK_SECONDS:
                    self._again()  # W&B answers, and yet the library has brought nothing there

    def _tell(self) -> None:
        """Hand over what is new."""
        for point in self.points.read():
            self.tracker.log(point["step"], point)
        commit, attempts = commit_in(self.folder.witness), read_json(self.folder.attempts, list)
        if commit and commit != self.commit:
            self.commit = self.told_commit = commit
            self.tracker.committed(*commit)
        if attempts and attempts != self.told_attempts:
            self.told_attempts = attempts
            self.tracker.tell_attempts(self._attempts())
        if self.orders.preempting and not self.marked:
            self.marked = True
            self.tracker.preempting()

    def _check(self) -> bool:
        """Ask W&B what has arrived; returns whether all of it has."""
        try:
            status = run_status(self.tracker.address)
        except (Unreachable, Refused) as error:
            self._trouble(error)
            self.progress = time.monotonic()
            return False
        self.missing = self.missing + 1 if status is None else 0
        if self.missing > 1:
            raise Deleted
        if status is None:
            return False
        if status.stopped and not self.said_stop:
            self.said_stop = True
            print("stop", flush=True)
        before, self.standing.seen = self.standing.seen, last_key(status.last)
        seen, told = self.standing.seen, self.told_commit
        there = seen >= self.tracker.rows.after and told in (None, commit_of(status))
        if there or seen > before:
            self.tries, self.progress = 0, time.monotonic()
        if self._may_send() or (there and self.orders.ended):
            self._sending()
        else:
            self.progress = time.monotonic()  # nothing more can arrive
            self._unconfirmed()
        return there

    def _finish(self) -> int:
        """Send the rest and close the run, while there is time; a run that will come back keeps its
        last row open. Of an attempt that may have lost its run, nothing."""
        if not self._await_confirmation():
            self._leave()
        self._tell()
        if self.orders.code not in (EX_TEMPFAIL, None) and self.tracker.complete():
            # The row may be an older attempt's, and its marks are in the summary now.
            self.told_attempts = None
        self._tell()
        while not self._check() and self.standing.state != "sending":
            if self._is_over():
                self._leave()
            time.sleep(POLL_SECONDS)
        self._is_over()
        self._close()
        settled = time.monotonic() + _SETTLE_SECONDS
        while not (there := self._check()) and time.monotonic() < min(settled, self.deadline):
            time.sleep(POLL_SECONDS)
        if there:
            for_people = "" if self.wish.attempt else f"Everything is at {self.standing.url}"
            self.standing.tell("sent", for_people)
            return 0
        if self.standing.state == "sending" and time.monotonic() + 1 < self.deadline:
            self._again()  # the library has given up on rows without a word
        return self._given_up()

    def _close(self) -> None:
        """End the run there; the library waits for its server as long as it takes, so we go when
        the time is up."""
        watch = threading.Timer(max(0.0, self.deadline - time.monotonic()), self._leave)
        watch.daemon = True
        watch.start()
        self.tracker.close(1 if self.orders.code is None else self.orders.code)
        watch.cancel()

    def _given_up(self) -> int:
        """The exit code when points still wait."""
        if self.wish.attempt:
            return 1
        return LaunchError.exit_code if self.standing.state == "refused" else EX_TEMPFAIL

    def _leave(self) -> NoReturn:
        """There is no more time, and the library cannot be told so."""
        slow = "Weights & Biases was too slow" if self._may_send() else _NOT_OURS
        sentence = f"{slow}; the last points wait in the run's folder."
        self.standing.tell("waiting", sentence)
        end_cores()
        os._exit(self._given_up())

    def _again(self) -> NoReturn:
        """Begin anew in a fresh process under the same id: the library's state cannot be trusted
        after it has failed."""
        end_cores()
        arguments = ["-m", "xrun.tracker.wandb.sender", str(self.wish.folder), self.wish.attempt]
        arguments += ["--said", self.standing.said, "--tries", str(self.tries)]
        arguments += ["--preempting"] * self.orders.preempting
        if self.orders.ended:
            left = min(max(0.0, self.deadline - time.monotonic()), self.wish.seconds)
            code = EX_TEMPFAIL if self.orders.code is None else self.orders.code
            arguments += ["--once", "--seconds", f"{left:.1f}", "--exit", str(code)]
        os.execve(sys.executable, [*environment.PYTHON, *arguments], _ENVIRONMENT)  # noqa: S606  no shell

    def _pause(self, seconds: float) -> None:
        """Wait; the end of the attempt cuts it short once, for a last try."""
        until, ended = time.monotonic() + seconds, self.orders.ended
        while time.monotonic() < until and self.orders.ended == ended and not self._is_over():
            self.orders.listen(POLL_SECONDS)

    def _sending(self) -> None:
        self.standing.tell("sending", f"Weights & Biases: {self.standing.url}")

    def _trouble(self, error: Exception) -> None:
        state = "refused" if isinstance(error, Refused) else "waiting"
        said = f"Weights & Biases{' refuses' if state == 'refused' else ''}: {error}"
        self.standing.tell(state, f"{said}. The points wait in the run's folder.")

    def _config(self) -> dict[str, Any]:
        """What W&B shows of the run: the whole recipe, versions of code and data, and what the plan
        adds to that."""
        unknown = {"run": self.plan.run, "recipe": self.plan.recipe}
        config = read_json(self.folder.config, dict) or unknown
        names = ("store", "fork", "processes", "owner", "overrides")
        plan = {name: getattr(self.plan, name) for name in names}
        return {**config, "plan": {**plan, "sources": self.plan.mathematics.get("sources", {})}}
