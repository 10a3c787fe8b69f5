"""A run's record, typed: every format that was ever written is read, nothing in it is lost, and the
rules about attempts. Covers `xrun.run.record` and `xrun.run.checkpoint`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.paths import FIXTURES
from support.running import Project, record
from xrun.errors import AttemptEnd
from xrun.run.checkpoint import ARITHMETIC, Checkpoint
from xrun.run.record import (
    FORMAT,
    OUTSIDE_ENDS,
    OWN_FAILURES,
    AttemptRecord,
    Failure,
    Finished,
    Piece,
    RunRecord,
    new_id,
)
from xrun.run.report import status_of
from xrun.store.protocol import StoredFile, copies_named

RECORDS = sorted((FIXTURES / "records").glob("*.json"))
FAILED = AttemptRecord("f", from_step=5, committed=5, end=AttemptEnd.OWN, code=75, reason="why")
MOVED = AttemptRecord("m", from_step=0, committed=5, end=AttemptEnd.OWN, code=75)
KILLED = AttemptRecord("k", from_step=5, committed=5, end=AttemptEnd.OUTSIDE)


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def of(*attempts: AttemptRecord) -> RunRecord:
    return RunRecord(attempts=attempts)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_of_any_format_is_read(path: Path) -> None:
    """Its steps, its attempts with how they ended, and the run's end."""
    value, read_back = read(path), RunRecord.from_json(read(path))
    assert [each.step for each in read_back.checkpoints] == sorted(
        manifest["step"] for manifest in value["checkpoints"]
    )
    assert [(each.id, each.end) for each in read_back.attempts] == [
        (attempt["id"], attempt.get("kind")) for attempt in value["attempts"]
    ]
    assert read_back.digest == value.get("digest", "")
    assert read_back.rule == 1
    assert (read_back.finished is None) == ("finished" not in value)
    assert all(each.arithmetic == 1 for each in read_back.checkpoints)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_written_again_it_says_the_same_and_which_format_it_has(path: Path) -> None:
    """And names every file that it named, so that nothing is swept that is still needed."""
    before = RunRecord.from_json(read(path))
    written = before.to_json()
    assert written["format"] == FORMAT
    assert RunRecord.from_json(json.loads(json.dumps(written))) == before
    assert sorted(copies_named(written)) == sorted(copies_named(read(path)))


def test_keys_of_a_newer_xrun_stay_where_they_are() -> None:
    """In the record, in an attempt, in a checkpoint, and in what the run has come to; and it is
    still the newer one's format."""
    value = {
        "format": 99,
        "later": {"x": 1},
        "attempts": [{"id": "a", "kind": "beamed up", "mood": "good"}],
        "checkpoints": [{"step": 3, "colour": "red"}],
        "finished": {"step": 3, "medal": "gold"},
    }
    typed = RunRecord.from_json(value)
    assert typed.attempts[0].end == AttemptEnd.OUTSIDE, "an end that nobody knows is no failure"
    written = typed.to_json()
    assert written["later"] == {"x": 1}
    assert written["format"] == 99
    assert written["attempts"][0]["mood"] == "good"
    assert written["checkpoints"][0]["colour"] == "red"
    assert written["finished"] == {"step": 3, "medal": "gold", "samples": 0, "metrics": {}}


def test_what_is_not_known_is_left_out() -> None:
    """A record has no key that says nothing, and every end is one word."""
    attempt = AttemptRecord("a", started=1.0, end=AttemptEnd.STOPPED, code=75, parts=2)
    told = json.loads(json.dumps(attempt.to_json()))
    assert (told["kind"], told["parts"]) == ("stopped", 2)
    assert None not in told.values()
    assert AttemptRecord.from_json(told) == attempt
    older = {**told, "split": told.pop("parts")}
    assert AttemptRecord.from_json(older) == attempt, "format 1's word"


@given(st.builds(Failure, message=st.text(), code=st.none() | st.integers(), parts=st.integers()))
def test_a_failure_travels_as_it_is(failure: Failure) -> None:
    """From the rank to its node, and from there to the first."""
    assert Failure.from_json(json.loads(json.dumps(failure.to_json()))) == failure


def test_a_run_is_finished_where_its_plan_ends(tmp_path: Path) -> None:
    """In steps, or in epochs as somebody has counted them."""
    plan = Project(tmp_path).plan("train.steps=null", "train.epochs=2")
    assert not RunRecord().has_reached_the_end(plan)
    for step, reached in ((25, False), (26, True)):
        finished = Finished(step, steps_per_epoch=13)
        assert RunRecord(finished=finished).has_reached_the_end(plan) == reached


def test_rejected_steps_count_as_committed() -> None:
    """A step that was committed and then rejected is no loss of the store, so it is not behind the
    log."""
    assert RunRecord().newest_step == -1
    assert RunRecord(checkpoints=(Checkpoint(5),), rejected=(10,)).newest_step == 10


def test_progress_forgives_earlier_failures() -> None:
    """Only attempts after the last one that committed a new step count as being without
    progress."""
    ends = of(FAILED, FAILED, MOVED).no_progress("")
    assert (ends.own, ends.outside) == ((), ())
    ends = of(FAILED, MOVED, FAILED, KILLED, FAILED).no_progress("")
    assert (len(ends.own), len(ends.outside)) == (2, 1)
    assert not ends.given_up


def test_attempt_after_attempt_without_progress_is_given_up() -> None:
    """After a few failures of its own, after many ends from outside; and a person's end starts the
    count anew."""
    assert of(*[FAILED] * OWN_FAILURES).no_progress("").given_up
    assert not of(*[KILLED] * (OUTSIDE_ENDS - 1)).no_progress("").given_up
    assert of(*[KILLED] * OUTSIDE_ENDS).no_progress("").given_up
    ended = dataclasses.replace(FAILED, code=7)
    assert not of(*[FAILED] * OWN_FAILURES, ended).no_progress("").given_up
    what, way_on = of(*[FAILED] * OWN_FAILURES).no_progress("").why(Path("logs"))
    assert what == f"{OWN_FAILURES} attempts in a row committed no step; the last one: why."
    assert "logs" in way_on


def test_a_command_that_is_typed_again_has_failed_at_nothing() -> None:
    """Somebody who types it has perhaps repaired what failed: only attempts of this very command
    count, those of before there were commands among each other."""
    old = [FAILED] * OWN_FAILURES
    now = dataclasses.replace(FAILED, command="now")
    assert of(*old).no_progress("").given_up
    assert not of(*old).no_progress("now").own
    assert len(of(*old, now, now).no_progress("now").own) == 2
    assert of(*old, *[now] * OWN_FAILURES).no_progress("now").given_up


@pytest.mark.parametrize(
    ("facts", "preempted"),
    [
        ({"end": AttemptEnd.OUTSIDE}, True),
        ({"end": AttemptEnd.STOPPED, "code": 75, "reason": "the cloud's notice"}, True),
        ({"end": AttemptEnd.STOPPED, "code": 75, "reason": "SIGTERM"}, True),
        ({"end": AttemptEnd.STOPPED, "code": 75, "reason": "SIGINT"}, False),
        ({"end": AttemptEnd.STOPPED, "code": 7, "reason": "budget"}, False),
        ({"end": AttemptEnd.OWN, "code": 1}, False),
        ({"end": AttemptEnd.FINISHED, "code": 0}, False),
        ({}, False),
    ],
)
def test_what_counts_as_a_preemption(facts: dict[str, Any], preempted: bool) -> None:
    """A cloud has ended it, and no person and no mistake of its own."""
    assert AttemptRecord("a", **facts).was_preempted == preempted


def test_a_new_attempt_says_how_the_one_before_ended(tmp_path: Path) -> None:
    """That said nothing itself: it was ended from outside, at the newest committed step."""
    plan = Project(tmp_path).plan()
    before = RunRecord(attempts=(AttemptRecord("a"),), checkpoints=(Checkpoint(7),))
    now = before.begun(plan, AttemptRecord("b"))
    lost, own = now.attempts
    assert (lost.end, lost.committed, lost.reason) == ("outside", 7, "ended from outside")
    assert (own.id, own.from_step) == ("b", 7)
    assert (now.digest, now.rule, now.recipe) == (plan.digest, plan.rule, plan.recipe)


def test_a_finished_run_explains_itself(tmp_path: Path) -> None:
    """Its record has the format's number and the resolved recipe."""
    project = Project(tmp_path)
    assert project.attempt("train.steps=3").code == 0
    told = record(project.run)
    assert told["format"] == FORMAT
    assert told["recipe"] == project.plan("train.steps=3").recipe
    assert RunRecord.from_json(told).newest_step == 3


def test_parts_are_those_of_the_same_kind_of_machine() -> None:
    """The newest attempt on it counts; on another kind nothing is known."""
    record = of(
        AttemptRecord("a", memory="x 8 GiB", processes=1, parts=4),
        AttemptRecord("b", memory="x 8 GiB", processes=2, parts=8),
        AttemptRecord("c", memory="x 8 GiB", processes=1, parts=2),
    )
    assert [record.parts_on("x 8 GiB", size) for size in (1, 2, 4)] == [2, 8, 1]
    assert record.parts_on("y", 1) == 1


def test_a_piece_of_the_log_keeps_its_step() -> None:
    """With the file, as the store writes files."""
    piece = Piece(StoredFile("ab", 7, ("objects/a",)), 12)
    assert Piece.from_json(piece.to_json()) == piece
    assert list(copies_named(piece.to_json())) == ["objects/a"]


def test_the_version_of_the_arithmetic_is_a_condition() -> None:
    """What another version has computed is said to differ."""
    old = Checkpoint(3, environment={"threads": 1}, arithmetic=ARITHMETIC - 1)
    assert old.differences({"threads": 1}) == f"arithmetic {ARITHMETIC - 1} -> {ARITHMETIC}"


def test_attempts_sort_by_their_start() -> None:
    """The ids of attempts that start within one second sort in the order of their starts."""
    ids = [
        new_id(1_800_000_000 + milliseconds / 1000 + 0.0001) for milliseconds in range(0, 2000, 7)
    ]
    assert sorted(ids) == ids
    assert new_id(time.time()) != new_id(time.time())


def test_points_and_rows_are_signs_of_the_last_attempts_life() -> None:
    """The newest counts, and then nobody asks how far apart its commits were; another attempt's
    point says nothing, and an end that was recorded is the end."""
    lost = AttemptRecord("a", started=10.0, last_seen=20.0, silence=7.0)
    record = of(AttemptRecord("z"), lost)
    seen = dataclasses.replace(lost, last_seen=30.0, silence=0.0)
    for point, when, expected in [
        ({}, 0.0, lost),
        ({"time": 20.0}, 0.0, lost),
        ({"time": 30.0}, 25.0, seen),
        ({"time": 30.0, "attempt": "a"}, 0.0, seen),
        ({"time": 40.0, "attempt": "z"}, 30.0, seen),
    ]:
        assert record.seen(point, when).attempts[-1] == expected
    ended = of(dataclasses.replace(lost, ended=22.0))
    assert ended.seen({"time": 30.0}, 40.0) == ended
    assert of().seen({"time": 30.0}) == of()


def test_an_older_record_has_its_signs_of_life_in_its_checkpoints() -> None:
    """The newest kept checkpoint of an attempt whose end nobody has recorded."""

    def checkpoint(step: int, attempt: str, time: float) -> dict[str, Any]:
        facts = {"step": step, "attempt": attempt, "digest": "d", "time": time}
        return Checkpoint(**facts, numbers={}, files={}, environment={}).to_json()

    value = {
        "attempts": [
            {"id": "a", "started": 1.0},
            {"id": "b", "started": 9.0, "ended": 12.0},
            {"id": "c"},
        ],
        "checkpoints": [checkpoint(5, "a", 5.0), checkpoint(3, "a", 3.0), checkpoint(8, "b", 11.0)],
    }
    attempts = RunRecord.from_json(value).attempts
    assert [each.last_seen for each in attempts] == [5.0, None, None]
    assert [each.last_known for each in attempts] == [5.0, 12.0, 0.0]


@pytest.mark.once
@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        (AttemptEnd.STOPPED, 7, "stopped"),
        (AttemptEnd.STOPPED, 75, "stopped"),
        (AttemptEnd.OUTSIDE, 75, "stopped"),
        (AttemptEnd.OUTSIDE, 7, "failed"),
        (AttemptEnd.OWN, 7, "failed"),
        (AttemptEnd.OWN, 6, "failed"),
        (None, None, "killed"),
    ],
)
def test_what_was_stopped_on_purpose_has_not_failed(
    end: AttemptEnd | None, code: int | None, status: str
) -> None:
    """By `cancel --save` or by its budget; what was given up after attempt upon attempt has."""
    record = RunRecord(attempts=(AttemptRecord("a", end=end, code=code),))
    assert status_of(record, None) == status
