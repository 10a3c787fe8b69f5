"""What a run was made from, as plans, records and models have it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xrun.run.locked import Lock
from xrun.run.record import RunRecord

LOCK = Lock(
    hub={"models/a/b@main": "1" * 40},
    packages={"einops": "0.8.0", "torch": "2.13.0"},
    python="3.11.9",
    machine={"threads": 2},
    changes=("from step 3 on: einops 0.7.0 -> 0.8.0",),
)


def test_a_lock_is_read_as_it_was_written() -> None:
    """And what a newer xrun has added to it is ignored."""
    assert Lock.from_json({**LOCK.to_json(), "newer": 1}) == LOCK


def test_a_record_of_before_has_none() -> None:
    """And is written as it was, so that an older xrun reads it too."""
    assert RunRecord.from_json({"attempts": []}).lock == Lock()
    assert "lock" not in RunRecord().to_json()
    assert RunRecord.from_json(RunRecord(lock=LOCK).to_json()).lock == LOCK


def test_a_damaged_lock_is_refused() -> None:
    """Naming the key."""
    with pytest.raises(ValueError, match="`hub` is text"):
        Lock.from_json({"hub": "main"})


def test_commits_of_the_hub_hold_for_the_whole_run() -> None:
    """Whatever a later attempt has found; its own new names are added."""
    now = Lock(hub={"models/a/b@main": "2" * 40, "datasets/c@main": "3" * 40})
    together = LOCK.followed_by(now, 5)
    assert together.hub == {"models/a/b@main": "1" * 40, "datasets/c@main": "3" * 40}
    assert together.packages == LOCK.packages


def test_other_versions_are_told_with_their_step() -> None:
    """Once, and not before anything was trained."""
    now = replace(LOCK, packages={"einops": "0.8.1", "torch": "2.13.0"})
    after = LOCK.followed_by(now, 40).followed_by(now, 50)
    assert after.packages["einops"] == "0.8.1"
    assert after.changes == (*LOCK.changes, "from step 40 on: einops 0.8.0 -> 0.8.1")
    assert LOCK.followed_by(now, 0).changes == LOCK.changes


def test_two_locks_are_compared_by_what_both_know() -> None:
    """Versions, commits and machines, each as `name old -> new`."""
    other = replace(LOCK, python="3.12.1", packages={"einops": "0.8.1"}, machine={"threads": 4})
    assert LOCK.versions_of(other) == ["Python 3.11.9 -> 3.12.1", "einops 0.8.0 -> 0.8.1"]
    assert LOCK.machine_of(other) == ["threads 2 -> 4"]
    moved = replace(LOCK, hub={"models/a/b@main": "2" * 40})
    assert LOCK.sources_of(moved) == ["models/a/b@main 111111111111 -> 222222222222"]
