"""Every error that xrun raises on purpose, and the exit code that each one means.

    XrunError(message, hint)
    ├── RecipeError(problems)      2   the person edits the recipe
    ├── ComponentError             2   the person edits a file in models/ or datasets/
    ├── LaunchError                3   account, credentials, or a run that is busy elsewhere
    │   ├── NoRunId                2   what was typed for a run's id is none
    │   └── CloudUnavailable      75   try again
    ├── StoreError                 4   storage refuses
    │   ├── DiskFull               4   there is no room for it
    │   ├── LeaseLost              4   another attempt has taken the run over
    │   └── StoreUnavailable      75   cannot tell; try again
    ├── CheckpointError            5   checkpoint and recipe disagree, or nothing usable is left
    │   └── CheckpointCorrupt      5   one is damaged; restore falls back to the one before
    ├── TrainError                 6   training cannot go on
    │   ├── NonFiniteLoss          6
    │   ├── NonFiniteGradient      6
    │   ├── NonFiniteWeights       6
    │   └── DataExhausted          6
    ├── ProcessesApart            75   the training processes cannot reach each other
    ├── AcceleratorsMissing       75   torch cannot use what was rented; another machine may do
    ├── OutOfMemory               75   a micro-batch does not fit; the next try computes it in parts
    ├── ExportError            2 or 4   the run is finished, its model is not made
    │   └── PublishError                as its cause: the model is made, and not published
    ├── RehearsalFailed                as the run would have ended; nothing is paid for
    ├── Interrupted               75   Ctrl-C has ended a command; typed again, it goes on
    └── StoppedOnPurpose           7   budget, cancel, no progress: never recovered
    Stopped(BaseException)        75   state is committed; no error: `except Exception` lets it pass

Exit 0 is a finished run, and 1 means that xrun itself has a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

EX_TEMPFAIL = 75
"""The exit code that asks whoever started the attempt to start it again (sysexits.h)."""
NEVER_BEGAN = 76
"""The same of a job's machine on which no attempt has begun: only so many of them in a row."""


class AttemptEnd(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """Somebody or something asked it to, and its state was committed if there was time."""
    OUTSIDE = "outside"
    """Its machine, a process of it, or what it needs from outside was taken away."""
    OWN = "own"
    """It failed by itself."""

    @classmethod
    def _missing_(cls, value: object) -> AttemptEnd:
        """An end that only a newer xrun knows is no failure of the run."""
        return cls.OUTSIDE


class XrunError(Exception):
    """Something that a person can act on: what is wrong, and the way out."""

    exit_code = 1
    end = AttemptEnd.OWN
    """What it says of the attempt that it ends."""
    again = False
    """Whether it may pass on the same machine, whose fault it is not."""

    def __init__(self, message: str, hint: str = "") -> None:
        if message.endswith("..") and not message.endswith("..."):
            message = message[:-1]  # the sentence ends with a library's own, which had a full stop
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe, at the place where a person wrote it.

    `path` is the file (or `-s key=value` for an override); `line` and `column` count from 1 and
    are 0 where there is no position.
    """

    path: str
    line: int
    column: int
    key: str
    what: str
    got: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        key = f" {self.key}:" if self.key else ""
        got = f" (got {self.got})" if self.got else ""
        end = "" if self.what.endswith((".", "?", "!")) else "."
        return f"{place}:{key} {self.what}{got}{end} {self.hint}".rstrip()


_LONGEST, _MOST = 100, 300
"""Words are compared by so many characters, and with so many others: each comparison costs."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, in any case; None if none is near."""
    by_lower = {name[:_LONGEST].lower(): name for name in islice(known, _MOST)}
    near = difflib.get_close_matches(word[:_LONGEST].lower(), by_lower, 1, 0.6)
    return by_lower[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean X?`, or nothing if no known word is near."""
    near = nearest(word, known)
    return f"Did you mean `{near}`?" if near else ""


class RecipeError(XrunError):
    """A recipe that cannot run, with everything that is wrong in it."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class ComponentError(XrunError):
    """A file in models/ or datasets/ that does not do what a component must."""

    exit_code = 2


class LaunchError(XrunError):
    """The run cannot be started from here."""

    exit_code = 3


class NoRunId(LaunchError):
    """What a person has typed for a run's id cannot be one."""

    exit_code = 2


class CloudUnavailable(LaunchError):
    """A cloud did not answer."""

    exit_code = EX_TEMPFAIL


class StoreError(XrunError):
    """The store refuses."""

    exit_code = 4


class DiskFull(StoreError):
    """There is no room for what the store was given."""


class LeaseLost(StoreError):
    """Another attempt has taken the run over; this one stops and overwrites nothing."""


class StoreUnavailable(StoreError):
    """The store cannot be read now, so nobody can tell what it holds."""

    exit_code = EX_TEMPFAIL
    end = AttemptEnd.OUTSIDE
    again = True


class CheckpointError(XrunError):
    """The run's checkpoints and its recipe disagree, or no checkpoint is usable."""

    exit_code = 5


class CheckpointCorrupt(CheckpointError):
    """A committed file does not have the bytes that were committed."""


class TrainError(XrunError):
    """Training cannot go on, and trying again would end the same way."""

    exit_code = 6


class NonFiniteLoss(TrainError):
    """The loss is NaN or infinite; the optimizer has not stepped on it."""


class NonFiniteGradient(TrainError):
    """A gradient is NaN or infinite; the optimizer has not stepped on it."""


class NonFiniteWeights(TrainError):
    """A step has made weights NaN or infinite; they are neither committed nor exported."""


class DataExhausted(TrainError):
    """The dataset ended before the recipe's last step."""


class ProcessesApart(XrunError):
    """The training processes do not meet, or what one says reaches another one changed."""

    exit_code = EX_TEMPFAIL
    again = True


class AcceleratorsMissing(XrunError):
    """The accelerators that were rented are not there, or torch cannot compute on them."""

    exit_code = EX_TEMPFAIL
    end = AttemptEnd.OUTSIDE


class OutOfMemory(XrunError):
    """A micro-batch does not fit into memory; computed in so many `parts` it may."""

    exit_code = EX_TEMPFAIL

    def __init__(self, message: str, parts: int) -> None:
        super().__init__(message)
        self.parts = parts


class ExportError(XrunError):
    """The run is finished and committed, and its model could not be made: the person edits a
    component, or storage refuses. `xrun export-model RUN` tries again."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", exit_code: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class PublishError(ExportError):
    """The run is finished and its model made, and it could not be put where others find it: the
    exit code is the cause's. `xrun export-model RUN` tries again."""


class RehearsalFailed(XrunError):
    """What would have failed on a machine that costs money has failed here, with the exit code that
    the run would have ended with."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Interrupted(XrunError):
    """Ctrl-C has ended a command before it was done. A run that trains saves instead."""

    exit_code = EX_TEMPFAIL


class StoppedOnPurpose(XrunError):
    """Ended by budget, cancel or lack of progress; never recovered."""

    exit_code = 7
    end = AttemptEnd.STOPPED


def error_of(code: int, message: str) -> XrunError:
    """The error that an attempt has ended with, as far as its exit code tells."""
    told = (
        ComponentError,
        LaunchError,
        StoreError,
        CheckpointError,
        TrainError,
        StoppedOnPurpose,
        CloudUnavailable,
    )
    return next((each for each in told if each.exit_code == code), XrunError)(message)


class Stopped(BaseException):
    """Asked to stop; the state is committed. Control flow, so it is no `Exception`."""

    exit_code = EX_TEMPFAIL
