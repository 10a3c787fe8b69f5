"""One attempt, from outside: take the run's lease, start the ranks, pass signals on, record how it
ended, exit with its code.

`python -m xrun.supervisor.entrypoint PLAN` is what a container (or a local run) starts. It starts
the ranks itself because torchrun and `accelerate launch` turn a child's 75 into 1 and end children
before they have saved. It never imports torch, so it is there at once and cannot fall with the
training.

On several nodes every node starts it. Node 0 does all this; the others (`FollowingNode`) start
their ranks when it says so, and all end with the same code.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EX_TEMPFAIL, LaunchError, LeaseLost, StoppedOnPurpose, StoreError, XrunError
from ..machine.nodes import Nodes, meeting_port, nodes_of
from ..machine.stop import StopFlag, end_with_parent
from ..run import logs as attempt_logs
from ..run import spending
from ..run.folder import is_finished, open_store
from ..run.plan import Plan
from ..run.record import given_up, leased, new_id, no_progress, steps_committed, without_progress
from ..run.stop_request import STOP_SECONDS, listening
from ..store.protocol import Head
from ..tracker.jsonl import write_json
from ..tracker.wandb.processes import Sender, dismiss, is_told, start_witness
from .node import FollowingNode, Node
from .progress import Progress
from .ranks import LINGER_SECONDS, Ranks, free_port, gravest
from .rendezvous import MEETING_SECONDS, Leader, Message
from .witnesses import Witnesses

_SENDER_SECONDS = 60.0
"""How long the last points may take to reach Weights & Biases after the training has ended."""
_REPORT_SECONDS = 2 * LINGER_SECONDS
"""How long another node may take to say how its ranks have ended, after those of node 0 have."""
_GOODBYE_SECONDS = 30.0
"""How long a node that is late is waited for to be told that the attempt has failed; one that
finished waits longer."""


def main(path: str) -> int:
    """Run one attempt of the plan at `path`; returns its exit code."""
    end_with_parent(signal.SIGTERM)
    stop = StopFlag()
    stop.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        plan = Plan.from_json(Path(path).read_text())
        nodes = nodes_of(os.environ, plan.processes)
        return (FollowingNode if nodes.rank else Attempt)(plan, stop, nodes).run()
    except XrunError as error:
        print(f"xrun: {error}", file=sys.stderr, flush=True)
        return error.exit_code


class Attempt(Node):
    """One life of the container, on node 0: lease, ranks, end."""

    peers: Leader

    def __init__(self, plan: Plan, stop: StopFlag, nodes: Nodes | None = None) -> None:
        super().__init__(plan, stop, nodes or Nodes(processes=plan.processes))
        self.id = new_id(time.time())
        self.store = open_store(plan, self.id)
        self.progress = Progress(self.folder, self.id)
        self.peers = Leader(self.nodes, plan.run, meeting_port(plan.run, os.environ))
        self.told = is_told(plan.recipe)
        self.sender: Sender | None = None
        self.purpose = ""
        """Why somebody has ended the run for good; "" if nobody has."""
        self._reports: dict[int, Message] = {}
        self.refused = ""
        """Why Weights & Biases does not take this run; "" while it does."""

    def say(self, text: str) -> None:
        """See Node."""
        self.progress.say(text)

    def _live(self) -> int:
        """Lead; then the other nodes end with the same code."""
        code = EX_TEMPFAIL
        try:
            self._warm_up(self.id)
            code = self._lead()
        except XrunError as error:
            code = error.exit_code
            raise
        finally:
            self._cool_down(self.id)
            self.peers.gather(self._asked_to_stop, _GOODBYE_SECONDS if code else MEETING_SECONDS)
            self.peers.close(code)
        return code

    def _lead(self) -> int:
        """Certainty, lease, ranks, end."""
        asked = start_witness(self.folder.path / "plan.json") if self.told else None
        try:
            head = self._certain(asked)
        finally:
            if asked is not None:
                dismiss(asked)
        for last in (False, False, True):
            if head is not None and is_finished(self.plan, head.record):
                where = (
                    f"in {self.folder.model}"
                    if self.folder.model.exists()
                    else f"at {self.plan.store}"
                )
                self.progress.say(f"{self.plan.run} is finished; its model is {where}.")
                return 0
            try:
                self._lease(head)
                break
            except LeaseLost:
                if last or not self.plan.store:
                    raise
                head = self._certain(None)  # a store far away may have answered with an old head
        return self._train(fresh=head is None)

    def _certain(self, asked: subprocess.Popen[str] | None) -> Head | None:
        """What the store has, once both witnesses agree with it; W&B was asked meanwhile."""
        witnesses = Witnesses(self.plan, self.store, self.stop, self.progress.say)
        head = witnesses.head()
        for damaged in self.store.damaged:
            self.progress.say(f"The commit {damaged} is damaged; the one before it counts.")
        witnesses.check(head)
        if asked is not None and not (head is not None and is_finished(self.plan, head.record)):
            return witnesses.check_wandb(head, asked)
        return head

    def _lease(self, head: Head | None) -> None:
        """Take the run over: from now on nobody else's commit succeeds."""
        before, now = (head.record.get("attempts", []) if head else []), time.time()
        entry = {
            "id": self.id,
            "started": now,
            "host": socket.gethostname(),
            "processes": self.nodes.world,
            "nodes": self.nodes.count,
            **spending.facts(os.environ, before, now),
        }
        self._check_budget([*before, entry], now)
        record = leased(head.record if head else {}, self.plan, entry)
        if (delay := self.store.commit_delay()) > 1:
            self.progress.say(f"The store takes its next commit in {delay:.0f} s.")
        self.store.commit(record, head)
        self._tell_attempts(record["attempts"])

    def _check_budget(self, attempts: Sequence[Mapping[str, Any]], now: float) -> None:
        budget = self.plan.recipe["budget"]
        if spent := spending.allowance(budget, attempts, now).spent(now):
            raise StoppedOnPurpose(spent, spending.WAY_ON)
        if warning := spending.unknown(budget, attempts[-1]):
            self.progress.say(warning)

    def _train(self, fresh: bool) -> int:
        """Train, record the end; Weights & Biases is told meanwhile."""
        if self.told:
            self.sender = Sender(
                self.folder.path,
                self.id,
                self.progress.say,
                lambda: self._give_up("stopped in Weights & Biases"),
            )
        code = EX_TEMPFAIL
        try:
            with listening(
                self.plan, self.id, lambda: self._give_up("stopped by xrun cancel --save")
            ):
                outcome = self._ranks(fresh)
            code = self._end(*outcome)
        finally:
            if self.sender is not None:
                self.sender.finish(code, min(_SENDER_SECONDS, self.stop.seconds_left()))
        return code

    def _tell_attempts(self, attempts: list[dict[str, Any]]) -> None:
        """For the sender, which never asks the store."""
        if self.plan.recipe["tracking"]["wandb"]:
            write_json(self.folder.path / "attempts.json", attempts)

    def _give_up(self, why: str) -> None:
        """Somebody wants the run to end for good; the machine stays, so there is time to save."""
        self.purpose = why
        self.stop.set(why, STOP_SECONDS, at_once=True)

    def _ranks(self, fresh: bool) -> tuple[int, dict[str, Any]]:
        """The ranks of all nodes, from their start to their end; the gravest exit code and what the
        failed rank has said.

        Ranks that had too little memory are started again, and compute their micro-batches in
        smaller parts.
        """
        if missing := self.peers.gather(self._asked_to_stop):
            minutes = f"{MEETING_SECONDS / 60:.0f} minutes"
            return EX_TEMPFAIL, {
                "kind": "outside",
                "message": f"Not here after {minutes}: {', '.join(missing)}.",
            }
        split = 0
        while True:
            code, failure = self._round(fresh, split)
            if self.refused:
                return LaunchError.exit_code, {
                    "kind": "own",
                    "message": self.refused,
                    "hint": "Start a new one with --new.",
                }
            split = failure.get("split", 0)
            if not split or self.stop:
                return code, failure
            self.say(
                f"{failure['message']} Starting again: each micro-batch is computed in {split}"
                " parts."
            )

    def _round(self, fresh: bool, split: int) -> tuple[int, dict[str, Any]]:
        port, self._reports = free_port(), {}
        self.peers.tell("start", attempt=self.id, port=port, split=split)
        ranks = self._start(self.id, port, split)
        ranks.wait(functools.partial(self._watch, ranks, fresh))
        code, failure = ranks.outcome()
        if code:
            self.peers.tell("failed", code=code)
        deadline = time.monotonic() + _REPORT_SECONDS
        while len(self._reports) < self.nodes.count - 1 and time.monotonic() < deadline:
            if message := self.peers.wait(deadline - time.monotonic()):
                self._hear(message, ranks)
        self.progress.close()
        return gravest_of([{"code": code, "failure": failure}, *self._all_reports()])

    def _watch(self, ranks: Ranks, fresh: bool) -> None:
        """While the ranks train."""
        if fresh and not self.stop and self.sender is not None and self.sender.is_deleted():
            self.refused = (
                f"The run {self.plan.run} was deleted in Weights & Biases, and its id cannot be"
                " used again there."
            )
            self.stop.set(self.refused)
        self._look(ranks)
        self.progress.update()

    def _announce(self) -> None:
        super()._announce()
        if self.sender is not None:
            self.sender.preempting()

    def _asked_to_stop(self) -> bool:
        """While the nodes wait for each other."""
        self._look()
        return bool(self.stop)

    def _hear(self, message: Message, ranks: Ranks | None) -> None:
        if message["kind"] == "lost" and message["node"] not in self._reports:
            message |= {
                "code": EX_TEMPFAIL,
                "failure": {"kind": "outside", "message": f"{self._name(message)} is gone."},
            }
        if message["kind"] in ("lost", "ended"):
            self._reports.setdefault(message["node"], message)
            if message.get("code"):
                self.peers.tell("failed", code=message["code"])
        super()._hear(message, ranks)

    def _name(self, message: Message) -> str:
        return self.nodes.name(message["node"]).capitalize()

    def _all_reports(self) -> list[Message]:
        """How the ranks of the other nodes have ended."""
        silent = {
            "code": EX_TEMPFAIL,
            "failure": {
                "kind": "outside",
                "message": "Another node did not say how its ranks ended.",
            },
        }
        return [self._reports.get(node, silent) for node in range(1, self.nodes.count)]

    def _end(self, code: int, failure: dict[str, Any]) -> int:
        """Record how the attempt ended; returns the exit code."""
        if code == EX_TEMPFAIL and self.purpose:
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
        """Commit the end; the code, which is another one after too many attempts without progress,
        and then why."""
        stopped = bool(self.stop) and code in (EX_TEMPFAIL, StoppedOnPurpose.exit_code)
        kind = "finished" if code == 0 else "stopped" if stopped else failure.get("kind", "own")
        attempts = [dict(attempt) for attempt in head.record["attempts"]]
        attempts[-1] |= {
            "ended": time.time(),
            "code": code,
            "kind": kind,
            "committed": steps_committed(head.record),
            "reason": self.stop.reason if stopped else failure.get("message", ""),
        }
        ends, why = without_progress(attempts), ""
        if code == EX_TEMPFAIL and not stopped and given_up(attempts):
            attempts[-1]["code"] = code = StoppedOnPurpose.exit_code
            why = " ".join(no_progress(*ends, self.folder.path / "logs"))
        if not stopped or self.store.commit_delay() < self.stop.seconds_left():
            logs = (
                attempt_logs.kept(self.store, self.folder.logs(self.id), self.id, head.record)
                if self.plan.store
                else {}
            )
            self.store.commit({**head.record, "attempts": attempts, **logs}, head)
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
            self.progress.say(
                f"The whole story is in {self.folder.logs(self.id)}/rank{failure['rank']}.log"
            )
        if why:
            self.progress.say(why)


def gravest_of(reports: list[Message]) -> tuple[int, dict[str, Any]]:
    """One exit code for all nodes, and the failure that is its cause: what only noticed that
    another one went away comes last."""
    code = gravest([report["code"] for report in reports])

    def rank(failure: dict[str, Any]) -> int:
        known = failure.get("split") or (code != EX_TEMPFAIL and failure.get("code") == code)
        return (
            0 if known else 1 if failure["kind"] != "outside" else 2 if "code" not in failure else 3
        )

    return code, min(
        (report["failure"] for report in reports if report["failure"]), key=rank, default={}
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
