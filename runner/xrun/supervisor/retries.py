"""What is tried again on the same machine before it is given up: to come back on another one costs
minutes, and a mistake costs them for ever."""

from __future__ import annotations

from ..errors import AttemptEnd
from ..run.record import Failure

TROUBLES = 2
"""So many times in a row without a new commit, what is not the machine's fault is tried again on
it."""


class Retries:
    """The failures of one attempt since its newest commit."""

    def __init__(self) -> None:
        self._committed = -1
        self._failures: list[Failure] = []

    def again(self, failure: Failure, committed: int) -> bool:
        """Whether the ranks are started again here after this failure; `committed` is the newest
        committed step.

        A trouble that may pass gets two more tries, and what nobody foresaw gets one: it may have
        been chance.
        """
        if committed > self._committed:
            self._committed, self._failures = committed, []
        self._failures.append(failure)
        if failure.again:
            return len(self._failures) <= TROUBLES
        return is_unforeseen(failure) and len(self._failures) == 1

    @property
    def is_mistake(self) -> bool:
        """Whether the newest failure is the one before it once more, at the same step: then it is
        no chance."""
        if len(self._failures) < 2:
            return False
        before, now = self._failures[-2:]
        same = now.step is not None and (before.step, _kind(before)) == (now.step, _kind(now))
        return same and is_unforeseen(before) and is_unforeseen(now)


def is_unforeseen(failure: Failure) -> bool:
    """Whether it is an exception or a crash that nobody has a sentence for."""
    return failure.code == 1 and failure.end == AttemptEnd.OWN


def _kind(failure: Failure) -> str:
    """The exception's name; its text may hold addresses and times."""
    return failure.message.partition(":")[0]
