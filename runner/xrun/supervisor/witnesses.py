"""What must be certain before a step is trained: what was committed, by whom, with which recipe.

Two witnesses: the store's head, and the tracker's record of the last commit. A store that is
further is normal (killed between the two); a tracker that is further means that something was lost,
and nothing is started.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from ..backoff import Backoff
from ..errors import CheckpointError, LaunchError, StoppedOnPurpose, StoreError, StoreUnavailable
from ..machine.stop import StopFlag
from ..run.folder import STATE_IS_BACK, RunFolder
from ..run.plan import Plan
from ..run.record import RunRecord
from ..store.protocol import Head, Store
from ..tracker.jsonl import JsonlTracker
from ..tracker.wandb.processes import answer_of, start_witness

_BACKOFF = Backoff(first=0.2, longest=3.2)
"""Between questions to somebody who does not answer, or not with the newest."""
_TRIES = 6
_WAY_ON = f"Nothing was started from step 0. {STATE_IS_BACK}"
_OUTAGE_SECONDS = 1800.0
"""How long a store far away is asked before the attempt gives up."""


class Witnesses:
    """The questions of one attempt; `say` tells people what is being waited for."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        stop: StopFlag,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.plan, self.store, self.stop, self.say = plan, store, stop, say
        self.clock, self.sleep = clock, sleep
        self.folder = RunFolder(plan.folder)
        self.seen = 0.0
        """When the last row that Weights & Biases has was logged, in seconds since 1970."""

    def head(self) -> Head | None:
        """The head; a store that cannot be read is asked again, and then it is an error, never
        "nothing there".

        Raises:
            StoreError: nobody can tell what was committed.
        """
        known = JsonlTracker(self.folder.path).committed_step()
        return self._up_to_date(self._ask(), known)

    def _up_to_date(self, head: Head | None, step: int) -> Head | None:
        """The head, asked for again while it is older than a witness says: a store far away may
        answer with an old one."""
        for tries in range(1, _TRIES if self.plan.address.durable else 1):
            if step <= RunRecord.of(head).newest_step:
                break
            self.say(f"The store does not show step {step}, which was committed. Asking again.")
            time.sleep(_BACKOFF.seconds(tries))
            head = self._ask()
        return head

    def _ask(self) -> Head | None:
        def rest(seconds: float) -> bool:
            if not self.stop:
                self.sleep(seconds)
            return bool(self.stop)

        far_away = self.plan.address.durable
        tries = _BACKOFF.tries(
            StoreUnavailable,
            end=self.clock() + _OUTAGE_SECONDS if far_away else None,
            times=None if far_away else _TRIES,
            clock=self.clock,
            sleep=rest,
            before=lambda error: self.say(f"{error} Asking again."),
        )
        try:
            return tries(self.store.head)
        except StoreUnavailable as error:
            if self.stop:
                raise
            # Far away it may answer later, and to another machine; a folder here is a person's.
            raise (StoreUnavailable if far_away else StoreError)(
                error.message,
                "Nothing was started, since nobody can tell what the run has committed.",
            ) from error

    def check(self, head: Head | None, record: RunRecord) -> None:
        """Owner, recipe, this machine's witness, progress.

        Raises:
            StoreError: the run is somebody else's.
            CheckpointError: it was trained with another recipe, or commits are missing.
            StoppedOnPurpose: attempt after attempt has made no progress.
        """
        if head is not None and head.owner != self.plan.owner:
            raise StoreError(
                f"The run {self.plan.run} belongs to {head.owner}, not to {self.plan.owner}.",
                "Give the recipe another name, or start a run of your own with --run; to go on with"
                f" theirs: -s checkpoint.team={head.owner}.",
            )
        if record.digest not in ("", self.plan.digest):
            raise CheckpointError(
                f"The run {self.plan.run} was trained with another recipe (its digest is"
                f" {record.digest[:8]} by rule {record.rule}, the recipe's"
                f" {self.plan.digest[:8]} by rule {self.plan.rule}).",
                "Start a new run with --new, or take its weights along with --fork.",
            )
        if self.store.damaged and record.newest_step < 0:
            # It explains why an older step is the newest, never why there is none.
            raise CheckpointError(
                f"The commits {', '.join(self.store.damaged)} in {self.plan.where} are damaged, and"
                f" those before them hold no checkpoint of the run {self.plan.run}.",
                _WAY_ON,
            )
        if (known := JsonlTracker(self.folder.path).last_commit()) is not None:
            self._compare(str(self.folder.witness), known[0], head)
        if (ends := record.no_progress(self.plan.command)).given_up:
            raise StoppedOnPurpose(*ends.why(self.folder.path / "logs"))

    def check_wandb(self, head: Head | None, asked: subprocess.Popen[str]) -> Head | None:
        """The witness on no machine of ours; out of reach it is a warning, unless the store is
        empty. Returns the head.

        Raises:
            CheckpointError: it knows of a newer commit than the store.
            LaunchError: neither of the two can say that the run is new.
        """
        answer, known = answer_of(asked), RunRecord.of(head).newest_step
        for tries in range(1, _TRIES):
            if not answer.why or known >= 0:
                break
            self.say(f"Weights & Biases does not answer ({answer.why}). Asking again.")
            time.sleep(_BACKOFF.seconds(tries))
            answer = answer_of(start_witness(self.folder.plan_file))
        self.seen = answer.seen
        if answer.step is not None:
            head = self._up_to_date(head, answer.step)
            self._compare("Weights & Biases", answer.step, head)
        elif answer.why and known >= 0:
            self.say(
                f"Weights & Biases does not answer ({answer.why}); the run goes by its store alone."
            )
        elif answer.why:
            raise LaunchError(
                f"Weights & Biases does not answer ({answer.why}) and the store"
                f" {self.plan.where} holds no checkpoint, so nobody can tell whether this run has"
                " been trained before.",
                "Nothing was started. Start the same command again later, or without it: -s"
                " tracking.wandb=null.",
            )
        return head

    def _compare(self, witness: str, step: int, head: Head | None) -> None:
        known = RunRecord.of(head).newest_step
        if step > known and not self.store.damaged:
            raise CheckpointError(
                f"{witness} knows of a commit of step {step} of the run {self.plan.run}, "
                f"the store {self.plan.where} has {'none' if known < 0 else f'step {known}'}.",
                _WAY_ON,
            )
