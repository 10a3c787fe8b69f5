"""One attempt, from outside: take the run's lease, start the ranks, pass signals on, record how it ended, exit with its code.

`python -m xrun.entrypoint PLAN` is what a container (or a local run) starts. It starts the ranks itself because torchrun and
`accelerate launch` turn a child's 75 into 1 and end children before they have saved. It never imports torch, so it is there at
once and cannot fall with the training.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import COME_BACK, CheckpointError, LaunchError, StoppedOnPurpose, StoreError, StoreUnavailable, XrunError
from .plan import Plan
from .progress import Progress
from .run_folder import RunFolder, is_finished, open_store
from .stop import PARENT, StopFlag, end_with_parent
from .store import Head
from .tracker.child import Sender, answer_of, is_told, start_witness
from .tracker.jsonl import JsonlTracker, write_json

OWN_FAILURES = 3
"""So many attempts in a row that failed by themselves and committed nothing end the run."""
OUTSIDE_ENDS = 20
"""The same for attempts that were ended from outside: real spot machines have runs of short lives."""
_POLL_SECONDS = 0.02
_RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Waits between the questions to a store that cannot be read."""
_OUTAGE_SECONDS = 1800.0
"""How long a store far away is asked before the attempt gives up."""
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

    def run(self) -> int:
        """Lease, ranks, end."""
        witness = start_witness(self.folder.path / "plan.json") if self.told else None
        head = self._head()
        for damaged in self.store.damaged:
            self.progress.say(f"The commit {damaged} is damaged; the one before it counts.")
        self._check(head)
        if head is not None and is_finished(self.plan, head.record):
            return self._finished(head)
        if witness is not None:
            self._check_witness(head, answer_of(witness))
        self._lease(head)
        code, failure = self._ranks(fresh=head is None)
        code = self._end(code, failure)
        if self.sender is not None:
            self.sender.finish(code, min(_SENDER_SECONDS, self.stop.seconds_left()))
        return code

    def _finished(self, head: Head) -> int:
        where = f"in {self.folder.model}" if self.folder.model.exists() else f"at {self.plan.store}"
        self.progress.say(f"{self.plan.run} is finished; its model is {where}.")
        return 0

    def _head(self) -> Head | None:
        """The head; a store that cannot be read is asked again, and then it is an error, never "nothing there"."""
        began = time.monotonic()
        for delay in _RETRY_SECONDS if not self.plan.store else itertools.repeat(_RETRY_SECONDS[-1]):
            try:
                return self.store.head()
            except StoreUnavailable as error:
                self.progress.say(f"{error} Asking again.")
                if self.stop:
                    raise
                if time.monotonic() - began > _OUTAGE_SECONDS:
                    break
                time.sleep(delay)
        try:
            return self.store.head()
        except StoreUnavailable as error:
            raise StoreError(error.message, "Nothing was started, since nobody can tell what the run has committed.") from error

    def _check(self, head: Head | None) -> None:
        """Everything that must be known before a step is trained."""
        record = head.record if head else {}
        if head is not None and head.owner != self.plan.owner:
            raise StoreError(
                f"The run {self.plan.run} belongs to {head.owner}, not to {self.plan.owner}.",
                "Give the recipe another name, or start a run of your own with --run.",
            )
        if record.get("digest", self.plan.digest) != self.plan.digest:
            raise CheckpointError(
                f"The run {self.plan.run} was trained with another recipe (its digest is {record['digest'][:8]}, "
                f"the recipe's {self.plan.digest[:8]}).",
                "Start a new run with --new, or take its weights along with --fork.",
            )
        witness = JsonlTracker(self.folder.path).last_commit()
        if witness is not None and witness[0] > steps_committed(record) and not self.store.damaged:
            raise CheckpointError(
                f"{self.folder.metrics.parent / 'committed.json'} knows of a commit of step {witness[0]}, "
                f"the store {self._where()} has {'none' if head is None else f'step {steps_committed(record)}'}.",
                "Bring the store's files back, or start a new run with --new. Nothing was started from step 0.",
            )
        self._check_progress(record.get("attempts", []))

    def _check_witness(self, head: Head | None, answer: dict[str, Any]) -> None:
        """The second witness: a run that Weights & Biases knows to be further than the store must not go on."""
        known = steps_committed(head.record if head else {})
        for delay in _RETRY_SECONDS:
            if answer["answer"] != "unknown" or known >= 0:
                break
            self.progress.say(f"Weights & Biases does not answer ({answer['why']}). Asking again.")
            time.sleep(delay)
            answer = answer_of(start_witness(self.folder.path / "plan.json"))
        if answer["answer"] == "unknown" and known < 0:
            raise LaunchError(
                f"Weights & Biases does not answer ({answer['why']}) and the store {self._where()} holds no checkpoint, so "
                "nobody can tell whether this run has been trained before.",
                "Nothing was started. Start the same command again later, or without it: -s tracking.wandb=null.",
            )
        if answer["answer"] == "unknown":
            self.progress.say(f"Weights & Biases does not answer ({answer['why']}); the store's word is taken.")
        if answer["answer"] == "commit" and answer["step"] > known and not self.store.damaged:
            raise CheckpointError(
                f"Weights & Biases knows of a commit of step {answer['step']} of the run {self.plan.run}, the store "
                f"{self._where()} has {'none' if known < 0 else f'step {known}'}.",
                "Bring the store's files back, or start a new run with --new. Nothing was started from step 0.",
            )

    def _where(self) -> str:
        return self.plan.store or str(self.folder.state)

    def _check_progress(self, attempts: list[dict[str, Any]]) -> None:
        own, outside = without_progress(attempts)
        if len(own) >= OWN_FAILURES or len(outside) >= OUTSIDE_ENDS:
            raise StoppedOnPurpose(*no_progress(own, outside, self.folder))

    def _lease(self, head: Head | None) -> Head:
        """Take the run over: from now on nobody else's commit succeeds."""
        record: dict[str, Any] = dict(head.record) if head else {"format": 1, "digest": self.plan.digest, "checkpoints": []}
        attempts = [dict(attempt) for attempt in record.get("attempts", [])]
        if attempts and "ended" not in attempts[-1]:
            attempts[-1] |= {"kind": "outside", "reason": "ended from outside", "committed": steps_committed(record)}
        attempts.append(
            {
                "id": self.id, "started": time.time(), "host": socket.gethostname(), "processes": self.plan.processes,
                "from_step": steps_committed(record),
            }
        )  # fmt: skip
        if (delay := self.store.commit_delay()) > 1:
            self.progress.say(f"{self._where()} takes the next commit in {delay:.0f} s.")
        head = self.store.commit({**record, "attempts": attempts}, head)
        self._tell_attempts(attempts)
        return head

    def _tell_attempts(self, attempts: list[dict[str, Any]]) -> None:
        """For the sender, which never asks the store."""
        if self.told:
            write_json(self.folder.path / "attempts.json", attempts)

    def _ranks(self, fresh: bool) -> tuple[int, dict[str, Any]]:
        """Start the ranks and wait; the gravest exit code and what the failed rank has said."""
        logs = self.folder.logs(self.id)
        logs.mkdir(parents=True, exist_ok=True)
        port = free_port()
        if self.told:
            self.sender = Sender(self.folder.path, self.id, self.progress.say, self._stopped_there)
        ranks = [self._start_rank(rank, port, logs) for rank in range(self.plan.processes)]
        self._wait(ranks, fresh)
        codes = [rank.returncode for rank in ranks]
        self.progress.close()
        code = gravest(codes)
        if self.refused:
            return LaunchError.exit_code, {"kind": "own", "message": self.refused, "hint": "Start a new one with --new."}
        return code, {} if code == 0 else read_failure(logs, codes)

    def _stopped_there(self) -> None:
        self.purpose = "stopped in Weights & Biases"
        self.stop.set(self.purpose)

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
            if fresh and not self.refused and self.sender is not None and self.sender.is_deleted():
                self.refused = f"The run {self.plan.run} was deleted in Weights & Biases, and its id cannot be used again there."
                self.stop.set(self.refused)
            if self.stop and not told:
                told = True
                self.progress.say(f"{self.stop.reason}: saving, then stopping.")
                send(ranks, signal.SIGTERM)
                if self.sender is not None:
                    self.sender.preempting()
            if any(rank.returncode for rank in ranks) and failed_at == float("inf"):
                failed_at = time.monotonic()
            if self.stop.seconds_left() < -_LINGER_SECONDS or time.monotonic() - failed_at > _LINGER_SECONDS:
                send(ranks, signal.SIGKILL)
            self.progress.update()
            time.sleep(_POLL_SECONDS)

    def _end(self, code: int, failure: dict[str, Any]) -> int:
        """Record how the attempt ended, unless another has taken over; returns the exit code."""
        head = self.store.head()
        if head is None or head.attempt != self.id:
            self._say_end(code, failure, False, ([], []))
            return code or StoreError.exit_code
        if code == COME_BACK and self.purpose:
            code = StoppedOnPurpose.exit_code
        stopped = code in (COME_BACK, StoppedOnPurpose.exit_code) and bool(self.stop)
        kind = "finished" if code == 0 else "stopped" if stopped else failure.get("kind", "own")
        reason = self.stop.reason if stopped else failure.get("message", "")
        attempts = [dict(attempt) for attempt in head.record["attempts"]]
        if attempts[-1].get("code") == code or (stopped and self.store.commit_delay() >= self.stop.seconds_left()):
            self._tell_attempts(attempts)
            self._say_end(code, failure, False, ([], []))
            self._close_store(code)
            return code
        attempts[-1] |= {
            "ended": time.time(), "code": code, "kind": kind, "reason": reason, "committed": steps_committed(head.record),
        }  # fmt: skip
        own, outside = without_progress(attempts)
        given_up = code == COME_BACK and not stopped and (len(own) >= OWN_FAILURES or len(outside) >= OUTSIDE_ENDS)
        if given_up:
            attempts[-1]["code"] = code = StoppedOnPurpose.exit_code
        self.store.commit({**head.record, "attempts": attempts}, head)
        self._tell_attempts(attempts)
        self._say_end(code, failure, given_up, (own, outside))
        self._close_store(code)
        return code

    def _close_store(self, code: int) -> None:
        """Nothing of a finished run depends on this."""
        if code == 0:
            try:
                self.store.finish()
            except StoreError as error:
                self.progress.say(f"The history of {self._where()} could not be dropped: {error}")

    def _say_end(self, code: int, failure: dict[str, Any], given_up: bool, ends: tuple[list[Any], list[Any]]) -> None:
        if code in (0, COME_BACK) and not failure.get("message"):
            return
        if failure.get("message"):
            self.progress.say(f"{failure['message']} {failure.get('hint', '')}".strip())
        if failure.get("traceback"):
            self.progress.say(f"The whole story is in {self.folder.logs(self.id)}/rank{failure['rank']}.log")
        if given_up:
            self.progress.say(" ".join(no_progress(*ends, self.folder)))


def new_id(now: float) -> str:
    """An attempt's name: ids sort in the order of their starts, also two within one second."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}{int(now % 1 * 1000):03}-{uuid.uuid4().hex[:6]}"


def steps_committed(record: Mapping[str, Any]) -> int:
    """The newest step that a record names, rejected ones included; -1 if nothing was ever committed."""
    steps = [manifest["step"] for manifest in record.get("checkpoints", [])]
    return max([*steps, *record.get("rejected", [])], default=-1)


def without_progress(attempts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The newest attempts in a row that committed no new step: those that failed by themselves, those ended from outside."""
    own: list[dict[str, Any]] = []
    outside: list[dict[str, Any]] = []
    for attempt in reversed(attempts):
        if attempt.get("committed", -1) > attempt["from_step"] or attempt.get("code") == StoppedOnPurpose.exit_code:
            break
        if attempt.get("kind") in ("own", "outside"):
            (own if attempt["kind"] == "own" else outside).append(attempt)
    return own, outside


def no_progress(own: list[dict[str, Any]], outside: list[dict[str, Any]], folder: RunFolder) -> tuple[str, str]:
    """The sentence that ends a run without progress, and the way on."""
    reasons = (own or outside)[0].get("reason", "")
    count = len(own) if len(own) >= OWN_FAILURES else len(outside)
    return (
        f"{count} attempts in a row committed no step; the last one: {reasons}",
        f"Mend the cause (logs: {folder.path / 'logs'}) and start the same command again.",
    )


def rank_environment(plan: Plan, rank: int, port: int) -> dict[str, str]:
    """What one rank finds in its environment: the names that torch and Accelerate read."""
    processors = len(os.sched_getaffinity(0))
    exact = plan.recipe["train"]["reduction"] == "exact"
    threads = 1 if exact else max(1, processors // plan.processes)
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(plan.processes), "LOCAL_WORLD_SIZE": str(plan.processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads),
        "XRUN_PROJECT": plan.project, PARENT: str(os.getpid()), "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # spinning starves the others
        **plan.recipe["env"],
    }  # fmt: skip


def gravest(codes: list[int]) -> int:
    """One exit code for all ranks: a known refusal before "come back", that before 0; 1 and signals count as "come back"."""
    known = [code for code in codes if 2 <= code <= 7]
    return known[0] if known else COME_BACK if any(codes) else 0


def read_failure(logs: Path, codes: list[int]) -> dict[str, Any]:
    """What the first failed rank has written down, or what its exit code tells."""
    written = [failure for path in sorted(logs.glob("failure-*.json")) if (failure := _failure(path))]
    known = [failure for failure in written if failure["code"] in codes and failure["code"] == gravest(codes)]
    ended = [f"rank {rank} was ended by {signal.Signals(-code).name}" for rank, code in enumerate(codes) if code < 0]
    killed = any(code in (-signal.SIGKILL, -signal.SIGTERM) for code in codes)
    if known or (written and not killed):
        return (known or sorted(written, key=lambda failure: failure["time"]))[0]
    kind = "outside" if killed else "own"
    asked = all(code in (0, COME_BACK) for code in codes)  # they stopped because they were told to
    return {} if asked else {"kind": kind, "message": (ended or [f"the ranks ended with {codes}"])[0] + "."}


def _failure(path: Path) -> dict[str, Any] | None:
    """What a rank has written down; None if it was cut short, as on a full disk."""
    try:
        return {**json.loads(path.read_text()), "rank": path.stem.removeprefix("failure-")}
    except ValueError:
        return None


def send(ranks: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """A signal to every rank that still lives."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
