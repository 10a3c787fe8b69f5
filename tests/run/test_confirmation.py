"""How long an attempt may speak for its run after the store has said that it is its own."""

from __future__ import annotations

from pathlib import Path

from xrun.clock import boot_seconds
from xrun.run.confirmation import FRESH_SECONDS, PAUSE_SECONDS, Confirmation


def test_what_the_store_has_said_holds_for_half_a_minute(tmp_path: Path) -> None:
    """From when it was asked; another process, which reads the file, knows the same."""
    now = [100.0]
    own = Confirmation(tmp_path / "a1", lambda: now[0])
    reader = Confirmation(tmp_path / "a1", lambda: now[0])
    assert not reader.is_fresh, "nobody has asked"
    own.note(99.0)
    assert FRESH_SECONDS == 30.0
    for second in range(60):
        now[0] = 100.0 + second
        assert reader.is_fresh == (now[0] < 129.0), now


def test_who_was_asleep_knows_nothing_until_the_store_was_asked_again(tmp_path: Path) -> None:
    """Also after a sleep that is shorter than an answer holds: somebody else may have finished the
    run meanwhile."""
    now = [100.0]
    own = Confirmation(tmp_path / "a1", lambda: now[0])
    own.note(99.0)
    assert own.is_fresh
    now[0] += PAUSE_SECONDS + 0.1
    assert not own.is_fresh
    assert not own.is_fresh, "a look from before the sleep stays one"
    own.note(now[0] - 0.05)
    assert not own.is_fresh, "asked before it slept, answered after"
    own.note(now[0])
    assert own.is_fresh


def test_it_is_one_attempts(tmp_path: Path) -> None:
    """On a folder that machines share another attempt's says nothing; a torn one neither."""
    Confirmation(tmp_path / "a1").note(boot_seconds())
    assert Confirmation(tmp_path / "a1").is_fresh
    assert not Confirmation(tmp_path / "a2").is_fresh
    (tmp_path / "a1" / "confirmed.json").write_text("12")
    assert not Confirmation(tmp_path / "a1").is_fresh


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    """What cannot be noted is not fresh."""
    (tmp_path / "file").write_text("")
    Confirmation(tmp_path / "file" / "a1").note(boot_seconds())
    assert not Confirmation(tmp_path / "file" / "a1").is_fresh
