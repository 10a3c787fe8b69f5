"""A run's record: what the head of its store says, typed.

Every older format is read, and keys that a newer xrun has added to the record, an attempt, a
checkpoint or the end stay where they are. Rules about attempts (whether one made progress, may be
followed by another, was preempted) stand here and nowhere else; what attempts cost is in
`spending`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..errors import (
    EX_TEMPFAIL,
    AttemptEnd,
    CheckpointCorrupt,
    ExportError,
    PublishError,
    StoppedOnPurpose,
)
from ..files import typed, with_numbers
from ..recipe.interval import Every
from ..store.protocol import Head, StoredFile
from .checkpoint import Checkpoint
from .locked import Lock
from .plan import Plan

FORMAT = 2
OWN_FAILURES = 3
"""So many attempts in a row that failed by themselves and committed nothing end the run."""
OUTSIDE_ENDS = 20
"""The same for attempts that were ended from outside: real spot machines have runs of short
lives."""
PEOPLE = ("SIGINT", "SIGHUP")
"""Reasons of a stop that somebody at a terminal wanted."""
PAUSED = "paused after step"
"""How the reason of an attempt begins that has come to a rung of its sweep."""
Typed = TypeVar("Typed", bound="AttemptRecord | Finished")


@dataclass(frozen=True)
class AttemptRecord:
    """One life of the container; what is not known is None. Times are seconds since 1970.

    `from_step` is the newest step that was committed before, `resumed_step` the one that it went on
    from; `steps_recomputed` and `seconds_lost` are what it computes again of the one before.
    `trained_from` is when its setup was over. `launched`, of the first one alone, is when somebody
    asked a cloud for it. `command` is the plan's. `memory` names the kind of
    memory that a micro-batch had to fit into, in so many `parts`. `other_data` says in what its
    data were not those of the steps before, which was meant. `last_save` is the seconds that its
    last save took, `sample_flops` what the model computes for one sample, forward and backward,
    where it was counted; `built` is a digest of what a sharded model is besides its saved values
    (`training.restored`). Where and at which price it ran: `cluster` to `billed_from`;
    `on_demand_usd_per_hour` is what the same costs on demand. `barren_hours` and `barren_usd` are
    of machines before its own on which none began. `last_seen` is its last sign of life that
    anybody has recorded (its lease, a commit, a point in its log), `silence` the longest time
    without one that is usual: the seconds between two of its commits. `committed` is the newest
    committed step when it `ended`, with which exit `code`, how and why (`end`, `reason`).
    """

    id: str
    started: float = 0.0
    host: str = ""
    processes: int = 1
    nodes: int = 1
    command: str | None = None
    from_step: int = -1
    resumed_step: int | None = None
    steps_recomputed: int | None = None
    seconds_lost: float | None = None
    trained_from: float | None = None
    launched: float | None = None
    steps_per_epoch: int | None = None
    memory: str | None = None
    parts: int | None = None
    other_data: str | None = None
    last_save: float | None = None
    sample_flops: float | None = None
    built: str | None = None
    cluster: str | None = None
    cloud: str | None = None
    region: str | None = None
    zone: str | None = None
    instance: str | None = None
    accelerators: str | None = None
    spot: bool | None = None
    usd_per_hour: float | None = None
    on_demand_usd_per_hour: float | None = None
    source: str | None = None
    price_date: str | None = None
    billed_from: float | None = None
    barren_hours: float | None = None
    barren_usd: float | None = None
    last_seen: float | None = None
    silence: float | None = None
    committed: int | None = None
    ended: float | None = None
    code: int | None = None
    end: AttemptEnd | None = None
    reason: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_step(self) -> int:
        """The step that it began at."""
        return max(0, self.from_step if self.resumed_step is None else self.resumed_step)

    @property
    def last_known(self) -> float:
        """When it ended; while nobody knows, its last sign of life."""
        signs = (self.ended, self.last_seen, self.started)
        return next(sign for sign in signs if sign is not None)

    @property
    def was_lost(self) -> bool:
        """Whether it was ended from outside, with or without a last save."""
        return self.end == AttemptEnd.OUTSIDE

    @property
    def is_paused(self) -> bool:
        """Whether it has come to a rung of its sweep, where it may go on later."""
        reason = (self.reason or "").lower()  # of one that found it there, it is a sentence
        return self.end == AttemptEnd.STOPPED and reason.startswith(PAUSED)

    @property
    def made_progress(self) -> bool:
        """Whether it has committed a step that was not committed before."""
        return self.committed is not None and self.committed > self.from_step

    @property
    def was_stopped(self) -> bool:
        """Whether a person or the budget has ended it for good."""
        return self.end == AttemptEnd.STOPPED and self.code == StoppedOnPurpose.exit_code

    @property
    def may_be_followed(self) -> bool:
        """Whether another one goes on where somebody wants it, or has nothing left to do: it ended
        with no refusal."""
        return self.code in (None, 0, EX_TEMPFAIL) or self.was_stopped

    @property
    def was_preempted(self) -> bool:
        """Whether a cloud has ended it, and no person and no mistake of its own."""
        asked = self.end == AttemptEnd.STOPPED and self.code == EX_TEMPFAIL
        return self.was_lost or (asked and self.reason not in PEOPLE)

    def to_json(self) -> dict[str, Any]:
        """As the record has it; what is not known is left out."""
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AttemptRecord:
        """Read an attempt of any format."""
        values = {_OLDER.get(name, name): each for name, each in dict(value).items()}
        if values.get("end") is not None:
            values["end"] = AttemptEnd(values["end"])
        return _from_json(cls, values)


_WIRE = {"end": "kind"}
"""Keys that are called otherwise in records than here."""
_OLDER = {"kind": "end", "split": "parts"}
"""The other way round; `split` is a key of format 1."""


@dataclass(frozen=True)
class Finished:
    """What a run has come to: its last step, its metrics then, the final weights' SHA-256 (of
    several files `training.export.digest_of`), and the revision of the published model where there
    is one. Of a run that was stopped early `waited` evaluations in a row had been no better, and
    `reason` is the sentence.

    `exported_step` is the step of the exported weights. `export_failed` is why there are none, or
    why they are not published (`is_made`); with `export_again` the next attempt tries once more,
    by itself.
    """

    step: int
    steps_per_epoch: int | None = None
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights_sha256: str | None = None
    data_revision: str | None = None
    model_revision: str | None = None
    waited: int | None = None
    reason: str | None = None
    exported_step: int | None = None
    export_failed: str | None = None
    export_again: bool | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_made(self) -> bool:
        """Whether there is a model, published or not."""
        return self.weights_sha256 is not None

    def to_json(self) -> dict[str, Any]:
        """As the record has it."""
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finished:
        """Read it from a record of any format."""
        return _from_json(cls, {**value, "metrics": with_numbers(value.get("metrics", {}))})


@dataclass(frozen=True)
class Failure:
    """What ended a rank, as it says itself or as its exit code tells.

    `end` is OWN, OUTSIDE or STOPPED; `parts` is set where smaller parts of a micro-batch may fit;
    `traceback` says that the rank's log has one. `code` is 1 for what nobody foresaw, and None
    where the machine or the process was taken away. `step` is how many steps were done then;
    None where nobody knows. `again`: it may pass on the same machine, whose fault it is not.
    `hung`: no sign of life.
    """

    message: str
    end: AttemptEnd = AttemptEnd.OWN
    code: int | None = None
    hint: str = ""
    time: float = 0.0
    traceback: bool = False
    parts: int = 0
    rank: int | None = None
    step: int | None = None
    again: bool = False
    hung: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a rank writes it down, and as nodes tell each other."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Failure:
        """Read what `to_json` wrote. Raises ValueError."""
        known = typed(cls, value)
        if "message" not in known:
            raise ValueError("a failure has no message")
        return cls(**{**known, "end": AttemptEnd(value.get("end", AttemptEnd.OWN))})


@dataclass(frozen=True)
class Outcome:
    """How ranks have ended: one exit code for all of them, and what the failed one says."""

    code: int
    failure: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """As a rank writes it down, and as nodes tell each other."""
        return {"code": self.code, "failure": self.failure.to_json() if self.failure else None}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Outcome:
        """Read what `to_json` wrote. Raises ValueError."""
        known = typed(cls, told)
        if "code" not in known:
            raise ValueError("an outcome has no code")
        failure = told.get("failure")
        return cls(known["code"], Failure.from_json(failure) if failure else None)


@dataclass(frozen=True)
class Piece:
    """A piece of the log of points in the store: the file, and the step of its last point."""

    file: StoredFile
    last: int

    def to_json(self) -> dict[str, Any]:
        """As the record has it."""
        return {**self.file.to_json(), "last": self.last}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Piece:
        """Read it from a record."""
        return cls(StoredFile.from_json(dict(value)), int(value["last"]))


@dataclass(frozen=True)
class NoProgress:
    """The newest attempts in a row that committed no new step, newest first: those that failed by
    themselves, and those that were ended from outside."""

    own: tuple[AttemptRecord, ...]
    outside: tuple[AttemptRecord, ...]

    @property
    def given_up(self) -> bool:
        """Whether they are so many that the next one would make none either."""
        return len(self.own) >= OWN_FAILURES or len(self.outside) >= OUTSIDE_ENDS

    def why(self, logs: Path) -> tuple[str, str]:
        """The sentence that ends the run, and the way on."""
        count = len(self.own) if len(self.own) >= OWN_FAILURES else len(self.outside)
        reason = (self.own or self.outside)[0].reason or ""
        return (
            f"{count} attempts in a row committed no step; the last one: {reason.rstrip('.')}.",
            f"Fix the cause (logs: {logs}), then run the same command again.",
        )


@dataclass(frozen=True)
class RunRecord:
    """Everything that is committed of a run.

    `format` is that of the newest xrun that has written it. `checkpoints` are the kept ones by
    step, `rejected` the steps of damaged ones, `points` and
    `logs` (by attempt and rank) what a store far away holds of the run's files, `recipe` the
    resolved recipe. Of the plan it also has what the recipe does not say: `sources`, the digest of
    each component's file by its path, and the run that it was forked from, with where that is.
    `lock` is all that the run was made from besides.
    """

    digest: str = ""
    rule: int = 1
    attempts: tuple[AttemptRecord, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    rejected: tuple[int, ...] = ()
    finished: Finished | None = None
    points: tuple[Piece, ...] = ()
    logs: Mapping[str, Mapping[str, StoredFile]] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    fork: str = ""
    fork_store: str = ""
    lock: Lock = field(default_factory=Lock)
    format: int = FORMAT
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, head: Head | None) -> RunRecord:
        """What a head says; without one, nothing is committed.

        Raises:
            CheckpointCorrupt: it is no record.
        """
        try:
            return cls.from_json(head.record) if head else cls()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointCorrupt(
                f"The record of the run in its commit {head.number if head else 0} is damaged:"
                f" {error}.",
                "Read it with the xrun that wrote it, or bring the state back from a copy.",
            ) from error

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """Read a record of any format."""
        checkpoints = [Checkpoint.from_json(each) for each in value.get("checkpoints", ())]
        finished = value.get("finished")
        return cls(
            digest=value.get("digest", ""),
            rule=int(value.get("rule", 1)),
            attempts=tuple(_with_signs(value.get("attempts", ()), checkpoints)),
            checkpoints=tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step)),
            rejected=tuple(value.get("rejected", ())),
            finished=Finished.from_json(finished) if finished else None,
            points=tuple(map(Piece.from_json, value.get("points", ()))),
            logs={
                attempt: {rank: StoredFile.from_json(file) for rank, file in ranks.items()}
                for attempt, ranks in value.get("logs", {}).items()
            },
            recipe=value.get("recipe"),
            sources=value.get("sources") or {},
            fork=value.get("fork") or "",
            fork_store=value.get("fork_store") or "",
            lock=Lock.from_json(value.get("lock")),
            format=max(FORMAT, value.get("format", 1)),
            more={name: each for name, each in value.items() if name not in _RECORD_KEYS},
        )

    def to_json(self) -> dict[str, Any]:
        """What is committed."""
        told: dict[str, Any] = {
            "format": self.format,
            "digest": self.digest,
            "rule": self.rule,
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "checkpoints": [checkpoint.to_json() for checkpoint in self.checkpoints],
            "rejected": list(self.rejected),
            "recipe": self.recipe,
            "sources": dict(self.sources) or None,
            "fork": self.fork or None,
            "fork_store": self.fork_store or None,
            "lock": self.lock.to_json() or None,
            "finished": self.finished.to_json() if self.finished else None,
            "points": [piece.to_json() for piece in self.points] or None,
            "logs": {
                attempt: {rank: file.to_json() for rank, file in ranks.items()}
                for attempt, ranks in self.logs.items()
            }
            or None,
        }
        return {**{name: each for name, each in told.items() if each is not None}, **self.more}

    @cached_property
    def newest(self) -> Checkpoint | None:
        """The newest committed checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def committed_step(self) -> int:
        """The step of the newest committed checkpoint; -1 if there is none."""
        return self.newest.step if self.newest else -1

    @property
    def save_bytes(self) -> int:
        """What the newest checkpoint took, without what no save writes again."""
        files = self.newest.files.items() if self.newest else ()
        return sum(file.size for name, file in files if not name.startswith("frozen"))

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one epoch, as far as anybody has counted them."""
        known = [each.steps_per_epoch for each in self.attempts if each.steps_per_epoch]
        return self.finished.steps_per_epoch if self.finished else next(reversed(known), None)

    @property
    def built(self) -> str | None:
        """What the run's model was when an attempt built it last."""
        return next((each.built for each in reversed(self.attempts) if each.built), None)

    @property
    def newest_step(self) -> int:
        """The newest step that was committed, rejected ones included; -1 if none ever was."""
        return max([self.committed_step, *self.rejected])

    @property
    def losses(self) -> int:
        """How many attempts were ended from outside."""
        return sum(attempt.was_lost for attempt in self.attempts)

    @property
    def uptime(self) -> float:
        """Seconds that the attempts before the last one have lived, as far as their ends are
        known."""
        known = (each for each in self.attempts[:-1] if each.ended is not None)
        return sum(max(0.0, (each.ended or 0.0) - each.started) for each in known)

    @property
    def last_save(self) -> float:
        """Seconds that an attempt's last save takes: the longest of the newest three."""
        known = [each.last_save for each in self.attempts if each.last_save is not None]
        return max(known[-3:], default=0.0)

    def parts_on(self, memory: str, processes: int) -> int:
        """In how many parts a micro-batch was computed last on such a machine; 1 on a new kind."""
        of_kind = [each for each in self.attempts if each.memory == memory]
        here = [each.parts or 1 for each in of_kind if each.processes == processes]
        return here[-1] if here else 1

    def no_progress(self, command: str) -> NoProgress:
        """The newest attempts in a row of this command that committed no new step: somebody who
        types it again has perhaps repaired what failed before."""
        own: list[AttemptRecord] = []
        outside: list[AttemptRecord] = []
        for attempt in reversed(self.attempts):
            another = (attempt.command or "") != command
            if another or attempt.made_progress or attempt.code == StoppedOnPurpose.exit_code:
                break
            if attempt.end == AttemptEnd.OWN:
                own.append(attempt)
            elif attempt.was_lost:
                outside.append(attempt)
        return NoProgress(tuple(own), tuple(outside))

    def has_reached_the_end(self, plan: Plan) -> bool:
        """Whether the run has finished the step that this plan asks for, or was stopped early, and
        this plan would not have had more patience."""
        finished = self.finished
        if finished is None:
            return False
        patience = plan.recipe["train"].get("evaluate", {}).get("patience")
        early = patience is not None and (finished.waited or 0) >= patience
        return early or finished.step >= plan.last_step(finished.steps_per_epoch)

    def is_done(self, plan: Plan) -> bool:
        """Whether it has, and its model is exported."""
        done = self.has_reached_the_end(plan)
        return done and self.finished is not None and self.finished.export_failed is None

    def check_exported(self, run: str) -> None:
        """A run that has finished has its model.

        Raises:
            ExportError: it could not be made, or (`PublishError`) not be published.
        """
        finished = self.finished
        if finished is not None and finished.export_failed is not None:
            code = self.attempts[-1].code if self.attempts else None
            kind, lacks = (
                (PublishError, "not published") if finished.is_made else (ExportError, "not there")
            )
            raise kind(
                f"{run} is finished, and step {finished.step} is committed; its model is {lacks}:"
                f" {finished.export_failed}",
                f"Nothing was trained. Fix the cause, then type `xrun export-model {run}`.",
                code or ExportError.exit_code,
            )

    def is_left(self, plan: Plan) -> bool:
        """Whether an attempt has something to do: to train, or to try an export again."""
        again = self.finished is not None and self.finished.export_again
        return bool(again) or not self.has_reached_the_end(plan)

    def begun(self, plan: Plan, attempt: AttemptRecord) -> RunRecord:
        """The record with one more attempt; the one before that said nothing of its end was ended
        from outside."""
        before = self.attempts
        if before and before[-1].ended is None:
            lost = replace(
                before[-1],
                end=AttemptEnd.OUTSIDE,
                reason="ended from outside",
                committed=self.newest_step,
            )
            before = (*before[:-1], lost)
        begun_with = replace(plan.locked, packages={})  # which ones there are is told later
        now = replace(
            attempt,
            from_step=self.newest_step,
            last_seen=attempt.started,
            silence=max([_interval(plan), *(each.silence or 0.0 for each in before)]),
        )
        return replace(
            self,
            digest=plan.digest,
            rule=plan.rule,
            recipe=plan.recipe,
            sources=plan.sources,
            fork=plan.fork,
            fork_store=plan.fork_store,
            lock=self.lock.followed_by(begun_with, self.newest_step),
            attempts=(*before, now),
        )

    def seen(self, point: Mapping[str, Any], when: float = 0.0) -> RunRecord:
        """The record with another sign of the last attempt's life, if it says more than its
        commits: the newest point of this machine's log, if it is that attempt's, or that somebody
        else saw it at `when`."""
        last = self.attempts[-1] if self.attempts else None
        if last is None or last.ended is not None:
            return self
        if point.get("attempt", last.id) == last.id:
            when = max(when, point.get("time", 0.0))
        return self.with_last(last_seen=when, silence=0.0) if when > last.last_known else self

    @property
    def launched(self) -> float:
        """When it was launched, else when its first attempt began, in seconds since 1970; 0
        before."""
        first = self.attempts[0] if self.attempts else AttemptRecord("")
        return first.launched or first.started

    def with_last(self, **facts: Any) -> RunRecord:
        """The record with more facts about its last attempt."""
        return replace(self, attempts=(*self.attempts[:-1], replace(self.attempts[-1], **facts)))


_RECORD_KEYS = {each.name for each in fields(RunRecord)} - {"more"}


def _with_signs(
    attempts: Iterable[Mapping[str, Any]], checkpoints: Sequence[Checkpoint]
) -> Iterator[AttemptRecord]:
    """The attempts of a record; an older one has their signs of life in its checkpoints only."""
    times = {each.attempt: each.time for each in sorted(checkpoints, key=lambda one: one.time)}
    for attempt in map(AttemptRecord.from_json, attempts):
        unknown = attempt.ended is None and attempt.last_seen is None
        yield replace(attempt, last_seen=times.get(attempt.id)) if unknown else attempt


def _interval(plan: Plan) -> float:
    """Seconds between two commits, where the recipe says them; else 0."""
    every = plan.recipe.get("checkpoint", {}).get("every")
    return (Every.parse(every).seconds or 0.0) if every else 0.0


def new_id(now: float) -> str:
    """An attempt's name: ids sort in the order of their starts, also two within one second."""
    second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    return f"{second}{int(now % 1 * 1000):03}-{uuid.uuid4().hex[:6]}"


def _to_json(value: AttemptRecord | Finished) -> dict[str, Any]:
    known = {name: each for name, each in vars(value).items() if name != "more"}
    told = {_WIRE.get(name, name): each for name, each in known.items() if each is not None}
    return {**told, **value.more}


def _from_json(kind: type[Typed], values: Mapping[str, Any]) -> Typed:
    """Raises ValueError."""
    names = {each.name for each in fields(kind)} - {"more"}
    known = {name: each for name, each in typed(kind, values).items() if name != "more"}
    if "step" in names - set(known) or "id" in names - set(known):
        raise ValueError("it has no name")
    return kind(**known, more={name: each for name, each in values.items() if name not in names})
