"""What must be certain before a step is trained: what was committed, by whom, with which recipe.

Two witnesses: the store's head, and the tracker's record of the last commit. A store that is
further is normal (killed between the two); a tracker that is further means that something was lost,
and nothing is started.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Callable
from typing import Any

from ..errors import CheckpointError, LaunchError, StoppedOnPurpose, StoreError, StoreUnavailable
from ..machine.stop import StopFlag
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..run.record import given_up, no_progress, rule_of, steps_committed, without_progress
from ..store.protocol import Head, Store
from ..tracker.jsonl import JsonlTracker
from ..tracker.wandb.processes import answer_of, start_witness

_RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Waits between questions to somebody who does not answer."""
_OUTAGE_SECONDS = 1800.0
"""How long a store far away is asked before the attempt gives up."""


class Witnesses:
    """The questions of one attempt; `say` tells people what is being waited for."""

    def __init__(
        self, plan: Plan, store: Store, stop: StopFlag, say: Callable[[str], None]
    ) -> None:
        self.plan, self.store, self.stop, self.say = plan, store, stop, say
        self.folder = RunFolder(plan.folder)
        self.where = plan.store or str(self.folder.state)

    def head(self) -> Head | None:
        """The head; a store that cannot be read is asked again, and then it is an error, never
        "nothing there".

        Raises:
            StoreError: nobody can tell what was committed.
        """
        known = JsonlTracker(self.folder.path).last_commit()
        return self._up_to_date(self._ask(), known[0] if known else -1)

    def _up_to_date(self, head: Head | None, step: int) -> Head | None:
        """The head, asked for again while it is older than a witness says: a store far away may
        answer with an old one."""
        for delay in _RETRY_SECONDS if self.plan.store else ():
            if step <= steps_committed(head.record if head else {}):
                break
            self.say(
                f"The store answers with less than step {step}, which was committed. Asking again."
            )
            time.sleep(delay)
            head = self._ask()
        return head

    def _ask(self) -> Head | None:
        began = time.monotonic()
        for delay in itertools.chain(
            _RETRY_SECONDS, itertools.repeat(_RETRY_SECONDS[-1]) if self.plan.store else ()
        ):
            try:
                return self.store.head()
            except StoreUnavailable as error:
                self.say(f"{error} Asking again.")
                if self.stop:
                    raise
                if time.monotonic() - began > _OUTAGE_SECONDS:
                    break
                time.sleep(delay)
        try:
            return self.store.head()
        except StoreUnavailable as error:
            raise StoreError(
                error.message,
                "Nothing was started, since nobody can tell what the run has committed.",
            ) from error

    def check(self, head: Head | None) -> None:
        """Owner, recipe, this machine's witness, progress.

        Raises:
            StoreError: the run is somebody else's.
            CheckpointError: it was trained with another recipe, or commits are missing.
            StoppedOnPurpose: attempt after attempt has made no progress.
        """
        record = head.record if head else {}
        if head is not None and head.owner != self.plan.owner:
            raise StoreError(
                f"The run {self.plan.run} belongs to {head.owner}, not to {self.plan.owner}.",
                "Give the recipe another name, or start a run of your own with --run.",
            )
        if record.get("digest", self.plan.digest) != self.plan.digest:
            raise CheckpointError(
                f"The run {self.plan.run} was trained with another recipe (its digest is"
                f" {record['digest'][:8]} by rule {rule_of(record)}, the recipe's"
                f" {self.plan.digest[:8]} by rule {self.plan.rule}).",
                "Start a new run with --new, or take its weights along with --fork.",
            )
        if (known := JsonlTracker(self.folder.path).last_commit()) is not None:
            self._compare(f"{self.folder.path / 'committed.json'}", known[0], head)
        attempts = record.get("attempts", [])
        if given_up(attempts):
            raise StoppedOnPurpose(
                *no_progress(*without_progress(attempts), self.folder.path / "logs")
            )

    def check_wandb(self, head: Head | None, asked: subprocess.Popen[str]) -> Head | None:
        """The witness on no machine of ours; out of reach it is a warning, unless the store is
        empty. Returns the head.

        Raises:
            CheckpointError: it knows of a newer commit than the store.
            LaunchError: neither of the two can say that the run is new.
        """
        answer, known = answer_of(asked), steps_committed(head.record if head else {})
        for delay in _RETRY_SECONDS:
            if answer["answer"] != "unknown" or known >= 0:
                break
            self.say(f"Weights & Biases does not answer ({answer['why']}). Asking again.")
            time.sleep(delay)
            answer = answer_of(start_witness(self.folder.path / "plan.json"))
        if answer["answer"] == "commit":
            head = self._up_to_date(head, answer["step"])
            self._compare("Weights & Biases", answer["step"], head)
        elif answer["answer"] == "unknown" and known >= 0:
            self.say(
                f"Weights & Biases does not answer ({answer['why']}); the store's word is taken."
            )
        elif answer["answer"] == "unknown":
            raise LaunchError(
                f"Weights & Biases does not answer ({answer['why']}) and the store {self.where}"
                " holds no checkpoint, so nobody can tell whether this run has been trained"
                " before.",
                "Nothing was started. Start the same command again later, or without it: -s"
                " tracking.wandb=null.",
            )
        return head

    def _compare(self, witness: str, step: int, head: Head | None) -> None:
        known: Any = steps_committed(head.record if head else {})
        if step > known and not self.store.damaged:
            raise CheckpointError(
                f"{witness} knows of a commit of step {step} of the run {self.plan.run}, "
                f"the store {self.where} has {'none' if head is None else f'step {known}'}.",
                "Bring the store's files back, or start a new run with --new. Nothing was started"
                " from step 0.",
            )
