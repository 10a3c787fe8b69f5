"""Commits keep the distance that a Hub asks for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from loopback.hub import Hub
from support.hub_store import (
    COMMIT,
    HUB_WARNINGS,
    REPO,
    Clock,
    Opener,
    ours,
)
from xrun.errors import StoreError, StoreUnavailable
from xrun.store.hub.rate_limiter import RateLimiter
from xrun.store.protocol import Head

pytestmark = HUB_WARNINGS


def test_commits_keep_their_distance_whoever_makes_them(
    attempt: Opener, hub: Hub, clock: Clock, tmp_path: Path
) -> None:
    """30 s and at most 20 an hour here, over attempts, machines, lost answers and the finished
    model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    head: Head | None = None
    for name in ("a1", "a2", "a3"):
        store = attempt(name, hourly=20)
        head = store.head()
        for number in range(13):
            if number % 4 == 0:
                hub.faults.add(COMMIT, when="after")
            wait, asked = store.commit_delay(), clock()
            head = store.commit({}, head)
            assert clock() - asked >= wait
            if number % 6 == 5:
                store.publish(tmp_path / "model", "digits-1", "A model")
    dates = sorted(c.time for branch in ("main", "state") for c in hub.history(REPO, branch)[:-1])
    assert len(dates) == 39 + 1  # the same model again is no commit
    assert min(b - a for a, b in itertools.pairwise(dates)) >= 29  # git keeps whole seconds
    assert all(later - first >= 3599 for first, later in zip(dates, dates[20:], strict=False))


def test_a_wait_that_is_given_up_commits_nothing(attempt: Opener, hub: Hub) -> None:
    """Who has no time for the distance between commits says so through its sleep, and gets an error
    that means: not committed."""
    store = attempt(sleep=lambda seconds: True)
    head = store.commit({}, store.head())
    assert 0 < store.commit_delay() <= 30
    with pytest.raises(StoreError, match="too late") as error:
        store.commit({"again": 1}, head)
    assert not isinstance(error.value, StoreUnavailable)
    assert len(ours(hub)) == 1


def limiter(clock: Clock, hourly: int = 100) -> RateLimiter:
    return RateLimiter(30, hourly, clock, clock.sleep)


@pytest.mark.parametrize("ahead", [60.0, 86400.0, 40 * 365 * 86400.0])
def test_a_clock_that_is_ahead_costs_one_distance(clock: Clock, ahead: float) -> None:
    """Another machine's, or this one's before it was set back: its newest commit counts as now, the
    others as long before, however often they are heard of."""
    limits, theirs = limiter(clock, hourly=3), [clock() + ahead - back for back in (3000, 40, 0)]
    limits.learn(theirs)
    assert limits.delay() == pytest.approx(600, abs=0.01)  # the first of three is 3000 s old
    clock.sleep(10)
    limits.learn(theirs)
    assert limits.delay() == pytest.approx(590, abs=0.01)
    clock.sleep(591)
    limits.learn([*theirs, clock() + ahead])
    assert limits.delay() == pytest.approx(3600 - 40 - 601, abs=1)
    assert limiter(clock).delay() == 0


def test_a_clock_that_is_behind_never_makes_wait_longer(clock: Clock) -> None:
    limits = limiter(clock)
    limits.learn([clock() - 86400 - back for back in range(100)])
    assert limits.delay() == 0
