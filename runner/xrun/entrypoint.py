"""One attempt, from outside: take the run's lease, start the ranks, pass signals on, record how it ended, exit with its code.

`python -m xrun.entrypoint PLAN` is what a container (or a local run) starts. It starts the ranks itself because torchrun and
`accelerate launch` turn a child's 75 into 1 and end children before they have saved. It never imports torch, so it is there at
once and cannot fall with the training.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .errors import COME_BACK, LaunchError, StoppedOnPurpose, StoreError, XrunError
from .plan import Plan
from .progress import Progress
from .ranks import free_port, gravest, rank_environment, read_failure, send
from .record import given_up, leased, new_id, no_progress, steps_committed, without_progress
from .run_folder import RunFolder, is_finished, open_store
from .stop import StopFlag, end_with_parent
from .store import Head
from .tracker.child import Sender, is_told, start_witness
from .tracker.jsonl import write_json
from .witnesses import Witnesses

_POLL_SECONDS = 0.02
_SENDER_SECONDS = 60.0
"""How long the last points may take to reach Weights & Biases after the training has ended."""
_LINGER_SECONDS = 5.0
"""How long the other ranks may take to end by themselves after one has failed."""


def main(path: str) -> int:
    """Run one attempt of the plan at `path`; returns its exit code."""
    end_with_parent(signal.SIGTERM)
    stop = StopFlag()
    stop.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        return Attempt(Plan.from_json(Path(path).read_text()), stop).run()
    except XrunError as error:
        print(f"xrun: {error}", file=sys.stderr, flush=True)
        return error.exit_code


class Attempt:
    """One life of the container."""

    def __init__(self, plan: Plan, stop: StopFlag) -> None:
        self.plan, self.stop = plan, stop
        self.folder = RunFolder(plan.folder)
        self.id = new_id(time.time())
        self.store = open_store(plan, self.id)
        self.progress = Progress(self.folder, self.id)
        self.told = is_told(plan.recipe)
        self.sender: Sender | None = None
        self.purpose = ""
        """Why somebody has ended the run for good; "" if nobody has."""
        self.refused = ""
        """Why Weights & Biases does not take this run; "" while it does."""

    def run(self) -> int:
        """Certainty, lease, ranks, end."""
        asked = start_witness(self.folder.path / "plan.json") if self.told else None
        witnesses = Witnesses(self.plan, self.store, self.stop, self.progress.say)
        head = witnesses.head()
        for damaged in self.store.damaged:
            self.progress.say(f"The commit {damaged} is damaged; the one before it counts.")
        witnesses.check(head)
        if head is not None and is_finished(self.plan, head.record):
            where = f"in {self.folder.model}" if self.folder.model.exists() else f"at {witnesses.where}"
            self.progress.say(f"{self.plan.run} is finished; its model is {where}.")
            return 0
        if asked is not None:
            witnesses.check_wandb(head, asked)
        self._lease(head)
        return self._live(fresh=head is None)

    def _lease(self, head: Head | None) -> None:
        """Take the run over: from now on nobody else's commit succeeds."""
        entry = {
            "id": self.id, "started": time.time(), "host": socket.gethostname(), "processes": self.plan.processes,
        }  # fmt: skip
        record = leased(head.record if head else {}, self.plan.digest, entry)
        if (delay := self.store.commit_delay()) > 1:
            self.progress.say(f"The store takes its next commit in {delay:.0f} s.")
        self.store.commit(record, head)
        self._tell_attempts(record["attempts"])

    def _live(self, fresh: bool) -> int:
        """Train, record the end; Weights & Biases is told meanwhile."""
        if self.told:
            self.sender = Sender(self.folder.path, self.id, self.progress.say, self._stopped_there)
        code = COME_BACK
        try:
            code = self._end(*self._ranks(fresh))
        finally:
            if self.sender is not None:
                self.sender.finish(code, min(_SENDER_SECONDS, self.stop.seconds_left()))
        return code

    def _tell_attempts(self, attempts: list[dict[str, Any]]) -> None:
        """For the sender, which never asks the store."""
        if self.told:
            write_json(self.folder.path / "attempts.json", attempts)

    def _stopped_there(self) -> None:
        self.purpose = "stopped in Weights & Biases"
        self.stop.set(self.purpose)

    def _ranks(self, fresh: bool) -> tuple[int, dict[str, Any]]:
        """Start the ranks and wait; the gravest exit code and what the failed rank has said."""
        logs = self.folder.logs(self.id)
        logs.mkdir(parents=True, exist_ok=True)
        port = free_port()
        ranks = [self._start_rank(rank, port, logs) for rank in range(self.plan.processes)]
        self._wait(ranks, fresh)
        codes = [rank.returncode for rank in ranks]
        self.progress.close()
        if self.refused:
            return LaunchError.exit_code, {"kind": "own", "message": self.refused, "hint": "Start a new one with --new."}
        code = gravest(codes)
        return code, {} if code == 0 else read_failure(logs, codes)

    def _start_rank(self, rank: int, port: int, logs: Path) -> subprocess.Popen[bytes]:
        with (logs / f"rank{rank}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "xrun.attempt", str(self.folder.path / "plan.json"), self.id],
                env={**os.environ, **rank_environment(self.plan, rank, port)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _wait(self, ranks: list[subprocess.Popen[bytes]], fresh: bool) -> None:
        """Until every rank has ended: pass a stop on once, and end the others when one has failed or time is up."""
        told, failed_at = False, float("inf")
        while any(rank.poll() is None for rank in ranks):
            if fresh and not self.stop and self.sender is not None and self.sender.is_deleted():
                self.refused = f"The run {self.plan.run} was deleted in Weights & Biases, and its id cannot be used again there."
                self.stop.set(self.refused)
            if self.stop and not told:
                told = True
                self._pass_on(ranks)
            if any(rank.returncode for rank in ranks) and failed_at == float("inf"):
                failed_at = time.monotonic()
            if self.stop.seconds_left() < -_LINGER_SECONDS or time.monotonic() - failed_at > _LINGER_SECONDS:
                send(ranks, signal.SIGKILL)
            self.progress.update()
            time.sleep(_POLL_SECONDS)

    def _pass_on(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self.progress.say(f"{self.stop.reason}: saving, then stopping.")
        send(ranks, signal.SIGTERM)
        if self.sender is not None:
            self.sender.preempting()

    def _end(self, code: int, failure: dict[str, Any]) -> int:
        """Record how the attempt ended; returns the exit code."""
        if code == COME_BACK and self.purpose:
            code = StoppedOnPurpose.exit_code
        why = ""
        try:
            head = self.store.head()
            if head is None or head.attempt != self.id:
                code = code or StoreError.exit_code  # another attempt has taken over
            elif head.record["attempts"][-1].get("code") != code:
                code, why = self._record_end(head, code, failure)
            else:
                self._tell_attempts(head.record["attempts"])
        except StoreError as error:
            self.progress.say(f"How this attempt ended could not be recorded. {error}")
        self._say_end(code, failure, why)
        if code == 0:
            self._drop_history()
        return code

    def _record_end(self, head: Head, code: int, failure: dict[str, Any]) -> tuple[int, str]:
        """Commit the end; the code, which is another one after too many attempts without progress, and then why."""
        stopped = bool(self.stop) and code in (COME_BACK, StoppedOnPurpose.exit_code)
        kind = "finished" if code == 0 else "stopped" if stopped else failure.get("kind", "own")
        attempts = [dict(attempt) for attempt in head.record["attempts"]]
        attempts[-1] |= {
            "ended": time.time(), "code": code, "kind": kind, "committed": steps_committed(head.record),
            "reason": self.stop.reason if stopped else failure.get("message", ""),
        }  # fmt: skip
        ends, why = without_progress(attempts), ""
        if code == COME_BACK and not stopped and given_up(attempts):
            attempts[-1]["code"] = code = StoppedOnPurpose.exit_code
            why = " ".join(no_progress(*ends, self.folder.path / "logs"))
        if not stopped or self.store.commit_delay() < self.stop.seconds_left():
            self.store.commit({**head.record, "attempts": attempts}, head)
        self._tell_attempts(attempts)
        return code, why

    def _drop_history(self) -> None:
        """Nothing of a finished run depends on this."""
        try:
            self.store.finish()
        except StoreError as error:
            self.progress.say(f"The history of the run's state could not be dropped. {error}")

    def _say_end(self, code: int, failure: dict[str, Any], why: str) -> None:
        if failure.get("message"):
            self.progress.say(f"{failure['message']} {failure.get('hint', '')}".strip())
        if failure.get("traceback"):
            self.progress.say(f"The whole story is in {self.folder.logs(self.id)}/rank{failure['rank']}.log")
        if why:
            self.progress.say(why)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
