"""`LeadingNode`: one life of the container, on node 0: certainty, lease, ranks, end."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xrun_sky.stay import LEFT

from .. import clock, environment
from ..alerts.message import Message, Messages
from ..alerts.teller import SECONDS as ALERT_SECONDS
from ..alerts.teller import Teller
from ..clock import boot_seconds
from ..errors import (
    EX_TEMPFAIL,
    AttemptEnd,
    ComponentError,
    LaunchError,
    LeaseLost,
    StoppedOnPurpose,
    StoreError,
    XrunError,
)
from ..files import number, read_json, write_json
from ..machine.nodes import Nodes, meeting_port
from ..machine.stop import StopFlag
from ..run import logs, spending
from ..run.confirmation import Confirmation
from ..run.folder import as_typed
from ..run.plan import Plan
from ..run.record import PEOPLE, AttemptRecord, Failure, Outcome, RunRecord, new_id
from ..run.stop_request import STOP_SECONDS, listening
from ..run.stores import open_store
from ..store.protocol import Head, KeepsHistory, commit_delay, lease_lost
from ..tracker.jsonl import JsonlTracker
from ..tracker.tensorboard.process import Writer
from ..tracker.wandb.processes import Sender, dismiss, start_witness
from . import billing
from .leaving import Leaving
from .node import Node
from .progress import Progress
from .ranks import LINGER_SECONDS, Ranks, free_port, gravest_of
from .rendezvous import MEETING_SECONDS, Leader
from .rendezvous import Message as NodeMessage
from .retries import Retries
from .witnesses import Witnesses

_SENDER_SECONDS = 60.0
"""How long the last points may take to reach Weights & Biases after the training has ended."""
_WRITER_SECONDS = 20.0
"""The same for the files of TensorBoard, which are on this machine."""
_REPORT_SECONDS = 2 * LINGER_SECONDS
"""How long another node may take to say how its ranks have ended, after those of node 0 have."""
_GOODBYE_SECONDS = 30.0
"""How long a node that is late is waited for to be told that the attempt has failed; one that
finished waits longer."""
_PARTING_SECONDS = 30.0
"""How long node 0 waits for the others to end before it does."""
_UNTRAINED_SECONDS = 1.0
"""How long recording an end may take before which nothing was trained."""
_LAST_SECONDS = 1.0
"""What a process that has hung up may still take to end."""


class LeadingNode(Node):
    """One life of the container, on node 0: lease, ranks, end."""

    peers: Leader

    def __init__(self, plan: Plan, stop: StopFlag, nodes: Nodes | None = None) -> None:
        super().__init__(plan, stop, nodes or Nodes(processes=plan.processes))
        self.id = new_id(clock.now())
        self.store = open_store(plan, self.id)
        self.progress = Progress(self.folder, self.id, plan.global_batch)
        self.peers = Leader(self.nodes, plan.run, meeting_port(plan.run, os.environ))
        self.told = plan.wandb is not None and plan.wandb.online
        self.sender: Sender | None = None
        self.writer: Writer | None = None
        self.confirmation = Confirmation(self.folder.logs(self.id))
        self._trained = True
        """Whether the ranks, as far as they were started, may have trained anything."""
        self.lost = False
        """Whether another attempt has taken the run."""
        self.seen = 0.0
        """When Weights & Biases got the last row before this attempt, in seconds since 1970."""
        self.purpose = ""
        """Why somebody has ended the run for good; "" if nobody has."""
        self._reports: dict[int, Outcome] = {}
        self.leaving = Leaving(os.environ, self.folder, self.id)
        self.refused = ""
        """Why Weights & Biases does not take this run; "" while it does."""
        self.alerts = Teller(plan, self.say)
        self.messages = Messages(plan, self.id)
        self._begun = False
        """Whether this attempt has done a step."""

    def say(self, text: str) -> None:
        """See Node."""
        self.progress.say(text)

    def _live(self) -> int:
        """Lead; then the other nodes end, and this one last: SkyPilot ends the others at the first
        code that is not 0, and writes one of its own for them."""
        code = EX_TEMPFAIL
        try:
            self._warm_up(self.id)
            code = self._lead()
        except XrunError as error:
            code = error.exit_code
            self._alert_end(code, error.message, error.hint)
            raise
        finally:
            self._cool_down(self.id)
            seconds = _GOODBYE_SECONDS if code else MEETING_SECONDS
            self.peers.gather(self._asked_to_stop, seconds)
            self.peers.close(code, min(_PARTING_SECONDS, self.stop.seconds_left()))
            self.alerts.close(min(ALERT_SECONDS, self._seconds_left()))
            if code and self.nodes.count > 1:
                time.sleep(_LAST_SECONDS)
        return code

    def _lead(self) -> int:
        """Certainty, lease, ranks, end."""
        with self.stop.interrupting():
            fresh = self._taken()
        return 0 if fresh is None else self._train(fresh)

    def _taken(self) -> bool | None:
        """Take the run over once that is certain to be right; says whether nothing was committed
        before, and None if nothing is left to do."""
        asked = start_witness(self.folder.plan_file) if self.told else None
        try:
            head = self._certain(asked)
        finally:
            if asked is not None:
                dismiss(asked)
        for last in (False, False, True):
            if not RunRecord.of(head).is_left(self.plan):
                self._say_finished(RunRecord.of(head))
                return None
            try:
                self._lease(head)
                break
            except LeaseLost:
                if last or not self.plan.address.durable:
                    self.lost = True
                    raise
                head = self._certain(None)  # a store far away may have answered with an old head
        return head is None

    def _say_finished(self, record: RunRecord) -> None:
        """That nothing is left to train.

        Raises:
            ExportError: its model was not made.
        """
        run, here = self.plan.run, self.folder.model
        record.check_exported(run)
        there = self.plan.model_address
        if here.exists() or there is not None:
            where = f"in {here}" if here.exists() else f"at {there}"
            self.say(f"{run} is finished; its model is {where}.")
        else:
            again = f"`xrun export-model {as_typed(run, self.folder.path)}` makes it again."
            self.say(f"{run} is finished; its model was deleted from {here}. {again}")
        if record.attempts and record.attempts[-1].command == (self.plan.command or None):
            # The attempt before this one, which nobody but its end has started again, may not have
            # come to tell.
            self.messages.record = record
            self.alerts.tell(self.messages.finished())

    def _certain(self, asked: subprocess.Popen[str] | None) -> Head | None:
        """What the store has, once both witnesses agree with it; W&B was asked meanwhile."""
        witnesses = Witnesses(self.plan, self.store, self.stop, self.say)
        head = witnesses.head()
        for damaged in self.store.damaged:
            self.say(f"The commit {damaged} is damaged; the one before it counts.")
        record = RunRecord.of(head)
        witnesses.check(head, record)
        if asked is not None and record.is_left(self.plan):
            head, self.seen = witnesses.check_wandb(head, asked), witnesses.seen
        return head

    def _lease(self, head: Head | None) -> None:
        """Take the run over: from now on nobody else's commit succeeds."""
        before, now = RunRecord.of(head).seen(self.folder.last_point(), self.seen), clock.now()
        attempt = AttemptRecord(
            id=self.id,
            started=now,
            host=socket.gethostname(),
            processes=self.nodes.world,
            nodes=self.nodes.count,
            command=self.plan.command or None,
            launched=(self.plan.launched or None) if not before.attempts else None,
            **billing.facts(os.environ, before.attempts, now),
        )
        self.messages.record = before
        self._check_budget([*before.attempts, attempt], now)
        record = before.begun(self.plan, attempt)
        if (delay := commit_delay(self.store)) > 1:
            self.say(f"The store takes its next commit in {delay:.0f} s.")
        asked = boot_seconds()
        self.store.commit(record.to_json(), head)
        self._confirm(asked)
        if begun := environment.BEGUN.of():
            with contextlib.suppress(OSError):  # the script then asks to come back as ever
                Path(begun).touch()
        self.progress.resumed = max(0, record.committed_step)
        self.messages.record = record
        self.messages.reached = int(number(self.folder.last_point().get("step")))
        self._tell_attempts(record)

    def _check_budget(self, attempts: Sequence[AttemptRecord], now: float) -> None:
        limits = self.plan.limits
        if spent := spending.allowance(limits, attempts, now).spent(now):
            raise StoppedOnPurpose(spent, spending.WAY_ON)
        if warning := spending.unknown(limits, attempts[-1]):
            self.say(warning)

    def _train(self, fresh: bool) -> int:
        """Train, record the end; Weights & Biases and TensorBoard are told meanwhile."""
        if self.plan.tensorboard is not None:
            self.writer = Writer(self.folder.path, self.id, self.say)
        if self.told:
            stopped = functools.partial(self._give_up, "stopped in Weights & Biases")
            self.sender = Sender(self.folder.path, self.id, self.say, stopped)
        code = EX_TEMPFAIL
        asked = functools.partial(self._give_up, "stopped by xrun cancel --save")
        with listening(self.plan, self.id, asked, self._confirm if self.told else None):
            try:
                code = self._end(self._ranks(fresh))
            finally:
                self._end_sender(code)
        return code

    def _confirm(self, asked: float) -> None:
        """For the sender: the store said that the run is this attempt's when it was asked."""
        if self.told:
            self.confirmation.note(asked)

    def _end_sender(self, code: int) -> None:
        """The last points and the exit code go to Weights & Biases, and the points to TensorBoard's
        files, unless the run is another attempt's by now."""
        if self.writer is not None and self.lost:
            self.writer.abandon()
        elif self.writer is not None:
            self.writer.finish(min(_WRITER_SECONDS, self._seconds_left()))
        if self.sender is not None and self.lost:
            self.sender.abandon()
        elif self.sender is not None:
            if self._is_paused:  # W&B has no other word for a run that is well and goes on later
                self.sender.preempting()
            self.sender.finish(code, min(_SENDER_SECONDS, self._seconds_left()))

    @property
    def _is_paused(self) -> bool:
        """Whether this attempt has come to a rung, where its run waits for others."""
        return any(each.is_paused for each in self.messages.record.attempts[-1:])

    def _seconds_left(self) -> float:
        """How long the attempt's end may take: whoever stops a start does not want to wait."""
        return min(self.stop.seconds_left(), math.inf if self._trained else _UNTRAINED_SECONDS)

    def _tell_attempts(self, record: RunRecord) -> None:
        """For the sender, which never asks the store."""
        if self.plan.wandb is not None:
            write_json(self.folder.attempts, [attempt.to_json() for attempt in record.attempts])

    def _give_up(self, why: str) -> None:
        """Somebody wants the run to end for good; the machine stays, so there is time to save."""
        self.purpose = why
        self.stop.set(why, STOP_SECONDS, at_once=True)

    def _ranks(self, fresh: bool) -> Outcome:
        """The ranks of all nodes, from their start to their end.

        Ranks that had too little memory are started again, and compute their micro-batches in
        smaller parts; so are those that failed by what may pass here (`Retries`).
        """
        if missing := self.peers.gather(self._asked_to_stop):
            minutes = f"{MEETING_SECONDS / 60:.0f} minutes"
            what = f"Not here after {minutes}: {', '.join(missing)}."
            return Outcome(EX_TEMPFAIL, Failure(what, AttemptEnd.OUTSIDE))
        parts, retries = 0, Retries()
        while True:
            outcome = self._round(fresh, parts)
            failure = outcome.failure
            if failure is not None and failure.hung:
                self.alerts.tell(self.messages.stalled(failure.message, self._committed()))
            if self.refused:
                failure = Failure(self.refused, hint="Start another one with --again.")
                return Outcome(LaunchError.exit_code, failure)
            if failure is None or self.stop:
                return outcome
            if self._is_done():  # and the ranks could not say so
                return Outcome(0)
            if failure.parts:
                parts = failure.parts
                how = f"Starting again: each micro-batch is computed in {parts} parts."
                self.say(f"{failure.message} {how}")
            elif retries.again(failure, self._committed()):
                what = failure.message.rstrip(".")
                self.say(f"{what}. The processes are started again on this machine.")
            else:
                return _mistake(failure) if retries.is_mistake else outcome

    def _committed(self) -> int:
        """The newest committed step that this machine knows of; -1 if there is none."""
        return JsonlTracker(self.folder.path).committed_step()

    def _is_done(self) -> bool:
        """Whether the store says that this attempt has finished the run, its model included."""
        with contextlib.suppress(XrunError):
            head = self.store.head()
            mine = head is not None and head.attempt == self.id
            return mine and RunRecord.of(head).is_done(self.plan)
        return False

    def _round(self, fresh: bool, parts: int) -> Outcome:
        port, self._reports = free_port(), {}
        self.peers.tell("start", attempt=self.id, port=port, parts=parts)
        ranks = self._start(self.id, port, parts)
        ranks.wait(functools.partial(self._watch, ranks, fresh))
        self._trained = ranks.trained
        self._alert_begun(ranks)
        own = ranks.outcome()
        if own.code:
            self.peers.tell("failed", code=own.code)
        deadline = time.monotonic() + _REPORT_SECONDS
        while len(self._reports) < self.nodes.count - 1 and time.monotonic() < deadline:
            if message := self.peers.wait(deadline - time.monotonic()):
                self._hear(message, ranks)
        self.progress.close()
        return gravest_of([own, *self._all_reports()])

    def _watch(self, ranks: Ranks, fresh: bool) -> None:
        """While the ranks train."""
        if fresh and not self.stop and self.sender is not None and self.sender.is_deleted():
            self.refused = (
                f"The run {self.plan.run} was deleted in Weights & Biases, and its id cannot be"
                " used again there."
            )
            self.stop.set(self.refused)
        if not self.stop and self.leaving.is_due():
            self.stop.set(LEFT, STOP_SECONDS, at_once=True)
        self._look(ranks)
        self._alert_begun(ranks)
        self.progress.update()

    def _announce(self, saves: bool) -> None:
        super()._announce(saves)
        if self.sender is not None:
            self.sender.preempting()
        if not self.purpose and not self.refused and self.stop.reason not in PEOPLE:
            step = int(number(self.folder.last_point().get("step")))
            reason, committed = self.stop.reason, self._committed()
            if reason == LEFT:
                self.alerts.tell(self.messages.leaves(step, committed))
            else:
                self.alerts.tell(self.messages.preempted(reason, step, committed))

    def _alert_begun(self, ranks: Ranks) -> None:
        """Once this attempt has done its first step."""
        if self._begun or not self.alerts.on or ranks.starting:
            return
        config = read_json(self.folder.config, dict) or {}
        if config.get("attempt") == self.id:
            self._begun = True
            first, steps = (int(number(config.get(name))) for name in ("first_step", "steps"))
            self.alerts.tell(self.messages.begun(first, steps))

    def _alert_end(self, code: int, what: str, hint: str) -> None:
        """How the run has ended, unless somebody wanted that, or it goes on by itself or as another
        attempt's."""
        told: Message | None = None
        if code == 0:
            told = self.messages.finished() if self.messages.record.finished else None
        elif code != EX_TEMPFAIL and not self.purpose and not self._is_paused:
            spent = spending.is_spent(what)
            told = self.messages.budget(what) if spent else self.messages.failed(what, hint)
        if told is not None and not self.lost:
            self.alerts.tell(told)

    def _asked_to_stop(self) -> bool:
        """While the nodes wait for each other."""
        self._look()
        return bool(self.stop)

    def _hear(self, message: NodeMessage, ranks: Ranks | None) -> None:
        node = message["node"]
        if message["kind"] == "lost" and node not in self._reports:
            gone = f"{self.nodes.name(node).capitalize()} is gone."
            self._report(node, Outcome(EX_TEMPFAIL, Failure(gone, AttemptEnd.OUTSIDE)))
            message = {**message, "code": EX_TEMPFAIL}
        logs.heard(self.folder.logs(self.id), message.get("printed") or {})
        if message["kind"] == "ended":
            self._report(node, Outcome.from_json(message))
        super()._hear(message, ranks)

    def _report(self, node: int, outcome: Outcome) -> None:
        self._reports.setdefault(node, outcome)
        if outcome.code:
            self.peers.tell("failed", code=outcome.code)

    def _all_reports(self) -> list[Outcome]:
        """How the ranks of the other nodes have ended."""
        what = "Another node did not say how its ranks ended."
        silent = Outcome(EX_TEMPFAIL, Failure(what, AttemptEnd.OUTSIDE))
        return [self._reports.get(node, silent) for node in range(1, self.nodes.count)]

    def _end(self, outcome: Outcome) -> int:
        """Record how the attempt ended; returns the exit code."""
        code, failure, why = outcome.code, outcome.failure, ""
        if code == EX_TEMPFAIL and self.purpose:
            code = StoppedOnPurpose.exit_code
        try:
            asked, head = boot_seconds(), self.store.head()
            if head is None:
                gone = lease_lost(f"in {self.plan.where}", self.plan.run, self.id, head)
                code, failure = gone.exit_code, Failure(gone.message, hint=gone.hint)
            elif head.attempt != self.id:
                self.lost = True
                code = code or StoreError.exit_code  # another attempt has taken over
            else:
                self._confirm(asked)
                self.messages.record = RunRecord.of(head)
                if code == 0 and not RunRecord.of(head).is_done(self.plan):
                    code, failure = EX_TEMPFAIL, Failure("The ranks ended before the run had.")
                code, why = self._record_end(head, code, failure)
        except StoreError as error:
            self.lost = self.lost or isinstance(error, LeaseLost)
            self.say(f"How this attempt ended could not be recorded. {error}")
        self._say_end(failure, why)
        if self.purpose and code == StoppedOnPurpose.exit_code:
            self.say(f"To go on with it: the same command, or xrun resume {self.plan.run}")
        what = why or (failure.message if failure else f"It ended with exit code {code}")
        self._alert_end(code, what, failure.hint if failure and not why else "")
        if code == 0:
            self._drop_history()
        return code

    def _record_end(self, head: Head, code: int, failure: Failure | None) -> tuple[int, str]:
        """Commit the end, unless a rank has; the code, which is another one after too many attempts
        without progress, and then why."""
        record = RunRecord.of(head)
        if record.attempts[-1].code == code:
            self._tell_attempts(record)
            if self.nodes.count > 1:  # what the others have printed until their end
                self._commit_end(record, head)
            return code, ""
        stopped = bool(self.stop) and code in (EX_TEMPFAIL, StoppedOnPurpose.exit_code)
        record = record.with_last(
            ended=clock.now(),
            code=code,
            committed=record.newest_step,
            end=_end_of(code, stopped, failure),
            reason=self.stop.reason if stopped else failure.message if failure else "",
        )
        ends, why = record.no_progress(self.plan.command), ""
        if code == EX_TEMPFAIL and not stopped and ends.given_up:
            code = StoppedOnPurpose.exit_code
            record = record.with_last(code=code)
            why = " ".join(ends.why(self.folder.path / "logs"))
        if not stopped or commit_delay(self.store) < self._seconds_left():
            self._commit_end(record, head)
        self._tell_attempts(record)
        return code, why

    def _commit_end(self, record: RunRecord, head: Head) -> None:
        """The record with the end in it, and with what the attempt has printed where the machine
        may be gone."""
        if self.plan.address.durable:
            kept = logs.kept(self.store, self.folder.logs(self.id), self.id, record.logs)
            record = replace(record, logs=kept)
        if record != RunRecord.of(head):
            self.store.commit(record.to_json(), head)

    def _drop_history(self) -> None:
        """Nothing of a finished run depends on this."""
        try:
            if isinstance(self.store, KeepsHistory):
                self.store.drop_history()
        except StoreError as error:
            self.say(f"The history of the run's state could not be dropped. {error}")

    def _say_end(self, failure: Failure | None, why: str) -> None:
        if failure is not None and failure.message:
            self.last_words = f"{failure.message} {failure.hint}".strip()
            self.say(self.last_words)
        if failure is not None and failure.traceback:
            log = self.folder.logs(self.id) / f"rank{failure.rank}.log"
            self.say(f"Full traceback: {log}")
            if failure.code == ComponentError.exit_code:
                self.say(self._after_a_change())
        if why:
            self.last_words = why
            self.say(why)

    def _after_a_change(self) -> str:
        """What goes on once a component's file, which a run's id counts, is another one."""
        step = self._committed()
        if step <= 0:
            return "No step is committed: once the file is mended, type the same command again."
        return (
            "A changed file of the model or dataset makes it another run: add"
            f" --fork {self.plan.run}, which goes on at step {step} with its weights, or --new,"
            " which begins at step 0."
        )


def _mistake(failure: Failure) -> Outcome:
    """What has failed twice at the same step will fail there on every machine."""
    code = ComponentError.exit_code
    hint = f"It failed twice after step {failure.step}. Fix it, then run the same command again."
    return Outcome(code, replace(failure, code=code, hint=hint))


def _end_of(code: int, stopped: bool, failure: Failure | None) -> AttemptEnd:
    if code == 0:
        return AttemptEnd.FINISHED
    if stopped:
        return AttemptEnd.STOPPED
    return failure.end if failure else AttemptEnd.OWN
