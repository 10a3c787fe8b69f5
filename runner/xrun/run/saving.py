"""How far apart saves are best, by what they cost, what a preemption loses, and what a store takes.

A cloud bills what leaves it, so what a save sends out of it counts as the seconds of the machine
that are to be had for the same money: a large state on a Hub is not sent over and over only because
nothing waits for it.

With a cost of C seconds per save and M seconds between preemptions the best interval is
sqrt(2 * C * M) (Young 1974, Daly 2006). C is what a save takes from training, not how long writing
goes on in the background.
"""

from __future__ import annotations

import math

from ..store.address import Address

EGRESS = {"aws": 0.09, "gcp": 0.12, "azure": 0.087}
"""Dollars for a gigabyte (10^9 bytes) that leaves a cloud for the internet, by the list prices of
the first terabytes in US regions; other clouds, the smaller ones mostly, take nothing, or nobody
here knows what."""
_OWN = {"s3": "aws", "gs": "gcp", "az": "azure"}
"""The cloud from which a bucket is filled for nothing."""
PRIOR_UPTIME = 3 * 3600.0
"""Seconds between preemptions before a run has seen any: spot machines of the published traces last
hours."""
MINIMUM_SECONDS = 10.0
"""No closer than this: below it a save costs more in attention (logs, files, commits) than the
seconds it could lose."""
MINIMUM_STALL = 1e-3


def mean_uptime(seconds: float, preemptions: int, prior: float = PRIOR_UPTIME) -> float:
    """Expected seconds between preemptions: the observed ones, and the prior counted as one more
    observation."""
    return (prior + seconds) / (1 + preemptions)


def usd_per_byte(cloud: str, store: Address) -> float:
    """What a byte costs that a machine on this cloud sends to a store; a bucket of the same cloud
    is taken to be in reach for nothing."""
    free = not store.durable or _OWN.get(store.kind) == cloud.lower()
    return 0.0 if free else EGRESS.get(cloud.lower(), 0.0) / 1e9


def worth(usd: float, usd_per_hour: float | None) -> float:
    """For how many seconds a machine is to be had for so much; 0 for one that costs nothing, or
    nobody knows what."""
    return usd / usd_per_hour * 3600 if usd_per_hour else 0.0


def best_interval(
    stall: float, write: float, uptime: float, minimum: float = MINIMUM_SECONDS
) -> float:
    """Seconds between saves that lose least.

    `stall`: seconds a save takes from training, with those that what it sends is worth; `write`:
    seconds until it is committed; `uptime`: mean seconds between preemptions.
    """
    return max(math.sqrt(2 * max(stall, MINIMUM_STALL) * uptime), write, minimum)
