"""Which frozen tensors are copied before the next forward pass, and which beside it."""

from __future__ import annotations

from xrun.checkpoint.movement import Movement

BASE, TEACHER = {"base"}, {"base", "teacher"}


def test_what_has_not_moved_over_a_step_is_copied_beside_it() -> None:
    """Only a copy of a later step says so, not one that is tried again at the same step."""
    movement = Movement()
    assert movement.unsure(BASE) == BASE
    assert movement.compare(4, {"base": "a"}) == set()
    assert movement.unsure(BASE) == BASE
    assert movement.compare(4, {"base": "a"}) == set()
    assert movement.unsure(BASE) == BASE
    assert movement.compare(5, {"base": "a"}) == set()
    assert movement.unsure(BASE) == set()


def test_what_has_moved_is_copied_before_for_ever() -> None:
    """Found between the first two copies it spoils none of them, and standing still for a while
    changes nothing."""
    movement = Movement()
    movement.compare(0, {"base": "a", "teacher": "b"})
    assert movement.compare(1, {"base": "a", "teacher": "c"}) == set()
    assert movement.unsure(TEACHER) == {"teacher"}
    movement.compare(2, {"base": "a", "teacher": "c"})
    movement.compare(3, {"base": "a", "teacher": "c"})
    assert movement.unsure(TEACHER) == {"teacher"}


def test_what_begins_to_move_later_spoils_the_copy_that_shows_it() -> None:
    """It is named once, and copied before from then on."""
    movement = Movement()
    for step in (0, 1, 2):
        movement.compare(step, {"base": "a", "teacher": "b"})
    assert movement.unsure(TEACHER) == set()
    assert movement.compare(3, {"base": "a", "teacher": "c"}) == {"teacher"}
    assert movement.unsure(TEACHER) == {"teacher"}
    assert movement.compare(4, {"base": "a", "teacher": "d"}) == set()


def test_what_was_seen_to_be_written_to_counts_at_once() -> None:
    """Trained weights too, which nothing else is known of."""
    movement = Movement()
    for step in (0, 1):
        movement.compare(step, {"base": "a"})
    movement.add({"base", "table"})
    assert movement.unsure(BASE) == {"base", "table"}
