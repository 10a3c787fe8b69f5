"""How far apart saves are best."""

from __future__ import annotations

import math

import pytest

from xrun.run.saving import PRIOR_UPTIME, best_interval, mean_uptime, usd_per_byte, worth
from xrun.store.address import Address

HOUR = 3600.0


def test_the_best_interval_loses_least() -> None:
    """No other interval has a smaller expected loss per second, C / T for saving plus T / 2M for
    what is computed again."""

    def loss(interval: float) -> float:
        return 5.0 / interval + interval / (2 * 3 * HOUR)

    best = best_interval(5.0, 1.0, 3 * HOUR)
    assert all(loss(best) <= loss(best * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))
    assert best == pytest.approx(math.sqrt(2 * 5.0 * 3 * HOUR))


def test_the_uptime_begins_at_a_prior_and_ends_at_what_is_seen() -> None:
    """Without an observation the prior counts; with many, their mean."""
    assert mean_uptime(0, 0) == PRIOR_UPTIME
    assert mean_uptime(HOUR, 1) == (PRIOR_UPTIME + HOUR) / 2
    assert mean_uptime(1000 * HOUR, 1000) == pytest.approx(HOUR, rel=0.01)
    assert mean_uptime(50 * HOUR, 0) > 50 * HOUR


@pytest.mark.parametrize(
    ("cloud", "store", "usd"),
    [
        ("aws", "hub://me/run", 0.09),
        ("AWS", "gs://bucket", 0.09),
        ("aws", "s3://bucket", 0.0),
        ("gcp", "gs://bucket/prefix", 0.0),
        ("gcp", "hub", 0.12),
        ("nebius", "hub", 0.0),
        ("", "hub", 0.0),
        ("azure", "./runs", 0.0),
    ],
)
def test_what_leaves_a_cloud_is_billed(cloud: str, store: str, usd: float) -> None:
    """But not into a bucket of its own, nor onto the machine's disk."""
    assert usd_per_byte(cloud, Address.parse(store)) * 1e9 == pytest.approx(usd)


def test_money_is_seconds_of_a_machine() -> None:
    """A machine that costs nothing, or nobody knows what, is not spared."""
    assert worth(0.5, 2.0) == 900
    assert worth(0.5, None) == worth(0.5, 0.0) == 0
