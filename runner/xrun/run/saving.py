"""How far apart saves are best, by what they cost, what a preemption loses, and what a store takes.

With a cost of C seconds per save and M seconds between preemptions the best interval is
sqrt(2 * C * M) (Young 1974, Daly 2006). C is what a save takes from training, not how long writing
goes on in the background.
"""

from __future__ import annotations

import math

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


def best_interval(
    stall: float, write: float, uptime: float, minimum: float = MINIMUM_SECONDS
) -> float:
    """Seconds between saves that lose least.

    `stall`: seconds a save takes from training; `write`: seconds until it is committed; `uptime`:
    mean seconds between preemptions.
    """
    return max(math.sqrt(2 * max(stall, MINIMUM_STALL) * uptime), write, minimum)
