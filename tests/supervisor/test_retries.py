"""What is tried again on the same machine, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.running import PER_STEP, Project, curve, record, weights
from xrun.errors import AttemptEnd
from xrun.run.record import Failure
from xrun.supervisor.retries import TROUBLES, Retries

TROUBLE = Failure("The ranks hang.", code=75, again=True)
LOST = Failure("rank 1 was ended by SIGKILL.", AttemptEnd.OUTSIDE)


def unforeseen(step: int | None, kind: str = "RuntimeError") -> Failure:
    return Failure(f"{kind}: at address {step}", code=1, step=step)


def test_a_trouble_that_may_pass_gets_two_more_tries() -> None:
    """A hang, processes that do not meet, a store out of reach: then the machine is given up; a
    commit begins the count anew."""
    retries = Retries()
    assert [retries.again(TROUBLE, 10) for _ in range(TROUBLES + 1)] == [True] * TROUBLES + [False]
    assert not retries.is_mistake
    assert retries.again(TROUBLE, 20)


def test_the_same_exception_at_the_same_step_is_a_mistake() -> None:
    """It is tried once more, and is no chance if it comes again."""
    retries = Retries()
    assert retries.again(unforeseen(15), 10)
    assert not retries.again(unforeseen(15), 10)
    assert retries.is_mistake


@pytest.mark.parametrize(
    "second", [unforeseen(14), unforeseen(15, "ValueError"), unforeseen(None), TROUBLE, LOST]
)
def test_another_failure_is_none(second: Failure) -> None:
    """Another step, another exception or another kind of end: the machine is given up, or a
    trouble's own count goes on."""
    retries = Retries()
    assert retries.again(unforeseen(15), 10)
    assert retries.again(second, 10) == second.again
    assert not retries.is_mistake


@pytest.mark.parametrize(
    "failure",
    [LOST, Failure("no GPU", AttemptEnd.OUTSIDE, 75), Failure("a refusal", code=2)],
)
def test_what_the_machine_or_the_person_has_to_change_is_not_tried_again(failure: Failure) -> None:
    retries = Retries()
    assert not retries.again(failure, -1)
    assert not retries.is_mistake


def test_an_exception_by_chance_costs_no_machine(tmp_path: Path) -> None:
    """An exception in step 8 that does not come again: the same attempt restores the newest
    checkpoint and ends with the undisturbed run's weights."""
    calm, struck = Project(tmp_path / "calm"), Project(tmp_path / "struck")
    assert calm.attempt().code == 0
    struck.trap("raise", call=8 * PER_STEP, committed=5)
    done = struck.attempt()
    assert done.code == 0, done.err
    assert "The processes are started again on this machine." in done.err
    (attempt,) = record(struck.run)["attempts"]
    assert (attempt["kind"], attempt["resumed_step"], attempt["steps_recomputed"]) == (
        "finished",
        5,
        2,
    )
    assert weights(struck.run) == weights(calm.run)
    assert curve(struck.run) == curve(calm.run)


def test_an_exception_that_comes_again_ends_the_run(tmp_path: Path) -> None:
    """The same exception at the same step after the second start: 2, once, with the step and the
    path of the traceback; what was committed stays."""
    project = Project(tmp_path)
    project.trap("raise", call=8 * PER_STEP, committed=0, stays=True)
    done = project.attempt("checkpoint.every=100 steps")
    assert done.code == 2, done.err
    assert "It failed twice after step 7." in done.err
    assert "Full traceback:" in done.err
    (attempt,) = record(project.run)["attempts"]
    assert (attempt["code"], attempt["kind"]) == (2, "own")
