"""One run's points on their way to Weights & Biases: begin after its last row, follow the log, look
what arrives, finish."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...errors import EX_TEMPFAIL, LaunchError
from ...run.plan import Plan
from .api import Address, Deleted, Refused, RunStatus, Unreachable, create_run, run_status
from .orders import Orders, Standing
from .processes import DELETED
from .rows import BEFORE_ALL, PointFile, Rows, last_key, preemptions, read_json
from .run import cores, end_cores, open_run
from .witness import COMMIT_HEAD, COMMIT_STEP, COMMIT_STORE, run_url

POLL_SECONDS = 0.2
_CHECK_SECONDS = float(os.environ.get("XRUN_WANDB_CHECK", "30"))
"""Between two looks at what has arrived; rows that have not after three of them are sent again."""
_SEND_SECONDS = min(5.0, _CHECK_SECONDS)
_SETTLE_SECONDS = _CHECK_SECONDS / 3
"""How long rows that were taken may take to be seen."""
_OUTAGE_SECONDS = min(8.0, 3 * _CHECK_SECONDS)
"""How long W&B is waited for at the end while it does not answer."""
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_ATTEMPTS = 100
"""So many of the newest attempts are told of."""
_ENVIRONMENT = dict(os.environ)
"""As it was before the library wrote into it where its process listens."""


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
        self.plan, self.orders, self.wish, self.folder = plan, orders, wish, wish.folder
        self.tracking = plan.recipe["tracking"]["wandb"]
        self.address = Address.of(plan.run, self.tracking)
        self.standing = Standing(wish.folder, wish.attempt, wish.said)
        self.points = PointFile(wish.folder / "metrics.jsonl")
        self.rows = Rows(BEFORE_ALL, [])
        self.run: Any = None
        self.commit: Any = None
        self.told_commit: Any = None
        self.told_attempts: Any = None
        self.marked = self.said_stop = False
        self.tries, self.missing = wish.tries, 0
        self.deadline = self.patience = float("inf")
        self.progress = time.monotonic()

    def live(self) -> int:
        """Everything; returns the exit code."""
        try:
            self._await_config()
            while self.run is None and not self._is_over():
                self._open()
            if self.run is None:
                return self._given_up()
            self._follow()
            return self._finish()
        except Deleted:
            sentence = (
                f"The run {self.plan.run} was deleted in Weights & Biases, and its id cannot be"
                " used again; take --new."
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
        while (
            not self.orders.ended
            and (read_json(self.folder / "config.json") or {}).get("attempt") != self.wish.attempt
        ):
            self.orders.listen(POLL_SECONDS)

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
            status = run_status(self.address)
            if status is None:
                create_run(self.address)
            run = open_run(
                self.address,
                self.folder,
                self._config(),
                self.tracking.get("tags") or (),
                _SEND_SECONDS,
            )
            self._begin(run, status)
        except (Unreachable, Refused) as error:
            self._retry(error)

    def _retry(self, error: Exception) -> None:
        """Wait before another try, longer from time to time; the library needs a fresh process for
        that."""
        self._trouble(error)
        self.tries += 1
        self._pause(_RETRY_SECONDS[min(self.tries, len(_RETRY_SECONDS)) - 1])
        if "wandb" in sys.modules and not self._is_over():
            self._again()

    def _begin(self, run: Any, status: RunStatus | None) -> None:
        """Cross-check: the library resumes at the same row that we have seen."""
        if run.starting_step != (status.next_step if status else 0):
            raise Unreachable("somebody else writes to this run")
        with contextlib.suppress(OSError):
            (self.folder / "wandb.lock").write_text(" ".join(map(str, cores())))
        self.run = run
        self.address = Address(run.entity, self.address.project, self.address.run)
        self.standing.url = run_url(self.address)
        self.standing.seen = last_key(status.last) if status else BEFORE_ALL
        self.rows = Rows(self.standing.seen, read_json(self.folder / "attempts.json") or [])
        self.commit = self._older_commit(status)
        self.progress = time.monotonic()
        self._sending()

    def _older_commit(self, status: RunStatus | None) -> Any:
        """The commit that is in the folder, if W&B knows of a newer one: another machine has made
        that, and it stays."""
        known = status.summary.get(COMMIT_STEP, -1) if status else -1
        here = read_json(self.folder / "committed.json")
        return here if here and here["step"] < known else None

    def _follow(self) -> None:
        checked = time.monotonic()
        while not self.orders.ended:
            self._tell()
            self.orders.listen(POLL_SECONDS)
            if self.orders.interrupted or time.monotonic() - checked > _CHECK_SECONDS:
                checked, self.orders.interrupted = time.monotonic(), False
                self._check()
                if time.monotonic() - self.progress > 3 * _CHECK_SECONDS:
                    self._again()  # W&B answers, and yet the library has brought nothing there

    def _tell(self) -> None:
        """Hand over what is new."""
        for row in self.rows.add(self.points.read()):
            self.run.log(row)
        commit, attempts = (
            read_json(self.folder / "committed.json"),
            read_json(self.folder / "attempts.json"),
        )
        if commit and commit != self.commit:
            self.commit = self.told_commit = commit
            store = self.plan.store or "local"
            self.run.summary.update(
                {COMMIT_STEP: commit["step"], COMMIT_HEAD: commit["head"], COMMIT_STORE: store}
            )
        if attempts and attempts != self.told_attempts:
            self.told_attempts = attempts
            self.run.summary.update(_told(attempts))
        if self.orders.preempting and not self.marked:
            self.marked = True
            self.run.mark_preempting()

    def _check(self) -> bool:
        """Ask W&B what has arrived; returns whether all of it has."""
        try:
            status = run_status(self.address)
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
        known = {"step": status.summary.get(COMMIT_STEP), "head": status.summary.get(COMMIT_HEAD)}
        there = self.standing.seen >= self.rows.after and self.told_commit in (None, known)
        if there or self.standing.seen > before:
            self.tries, self.progress = 0, time.monotonic()
        self._sending()
        return there

    def _finish(self) -> int:
        """Send the rest and close the run, while there is time; a run that will come back keeps its
        last row open."""
        self._tell()
        if self.orders.code not in (EX_TEMPFAIL, None):
            for row in self.rows.rest():
                self.run.log(row)
                self.told_attempts = (
                    None  # the row may be an older attempt's, and its marks are in the summary now
                )
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
            self.standing.tell(
                "sent", "" if self.wish.attempt else f"Everything is at {self.standing.url}"
            )
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
        self.run.finish(exit_code=0 if self.orders.code == 0 else 1)
        watch.cancel()

    def _given_up(self) -> int:
        """The exit code when points still wait."""
        if self.wish.attempt:
            return 1
        return LaunchError.exit_code if self.standing.state == "refused" else EX_TEMPFAIL

    def _leave(self) -> NoReturn:
        """There is no more time, and the library cannot be told so."""
        self.standing.tell(
            "waiting", "Weights & Biases was too slow; the last points wait in the run's folder."
        )
        end_cores()
        os._exit(self._given_up())

    def _again(self) -> NoReturn:
        """Begin anew in a fresh process under the same id: the library's state cannot be trusted
        after it has failed."""
        end_cores()
        arguments = ["-m", "xrun.tracker.wandb.sender", str(self.folder), self.wish.attempt]
        arguments += ["--said", self.standing.said, "--tries", str(self.tries)]
        arguments += ["--preempting"] * self.orders.preempting
        if self.orders.ended:
            arguments += [
                "--once",
                "--seconds",
                f"{min(max(0.0, self.deadline - time.monotonic()), self.wish.seconds):.1f}",
            ]
            arguments += [
                "--exit",
                str(EX_TEMPFAIL if self.orders.code is None else self.orders.code),
            ]
        os.execve(sys.executable, [sys.executable, *arguments], _ENVIRONMENT)  # noqa: S606  no shell is wanted

    def _pause(self, seconds: float) -> None:
        """Wait; the end of the attempt cuts it short once, for a last try."""
        until, ended = time.monotonic() + seconds, self.orders.ended
        while time.monotonic() < until and self.orders.ended == ended and not self._is_over():
            self.orders.listen(POLL_SECONDS)

    def _sending(self) -> None:
        self.standing.tell("sending", f"Weights & Biases: {self.standing.url}")

    def _trouble(self, error: Exception) -> None:
        if isinstance(error, Refused):
            self.standing.tell(
                "refused",
                f"Weights & Biases refuses: {error}. The points wait in the run's folder.",
            )
        else:
            self.standing.tell(
                "waiting", f"Weights & Biases: {error}. The points wait in the run's folder."
            )

    def _config(self) -> dict[str, Any]:
        """What W&B shows of the run: the whole recipe, versions of code and data, and what the plan
        adds to that."""
        config = read_json(self.folder / "config.json") or {
            "run": self.plan.run,
            "recipe": self.plan.recipe,
        }
        plan = {
            name: getattr(self.plan, name)
            for name in ("store", "fork", "processes", "owner", "overrides")
        }
        return {**config, "plan": {**plan, "sources": self.plan.mathematics.get("sources", {})}}


def _told(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the summary has of a run's attempts."""
    recomputed = sum(attempt.get("steps_recomputed", 0) for attempt in attempts)
    return {
        "xrun/attempts": attempts[-_ATTEMPTS:],
        "xrun/preemptions": preemptions(attempts),
        "xrun/steps_recomputed": recomputed,
    }
