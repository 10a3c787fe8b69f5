"""Row 15: what a run with a deadline costs on published traces, under the class that decides on
real clouds (`xrun_sky.policy`), over the optimum of one who knows the whole trace.

A clock and a trace stand in place of the cloud: the policy sees the answers to the launches that it
makes and nothing else. Two other policies are beside it: spot until there is no time left, and
uniform progress ("Can't Be Late", NSDI 2024), which is shown at every moment which places have
machines, as in its own simulator.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.result import Row, main, spread
from xrun_sky import policy
from xrun_sky.outlook import Outlook
from xrun_sky.policy import Candidate, Policy, Terms, Wait
from xrun_sky.weather import Weather

# Thousands of runs share their tables here.
policy.outlook = lru_cache(maxsize=8192)(Outlook)  # type: ignore[attr-defined]
TRACES = Path(__file__).parent / "data" / "spot-traces"
SLOT, WORK, START = 300, 288, 2
"""Seconds of a slot of the clock; slots of work, a day; slots until new machines train."""
DEAR, SPOT = 1.0, 0.31
"""Dollars per hour."""
SLACKS = (1.15, 1.5, 2.0)
SETS = {
    "two zones, 8 V100": ("availability/1-node/aws-10-26-2022", "v100_8"),
    "two zones, V100": ("availability/1-node/aws-10-26-2022", "v100_1"),
    "two zones, 8 K80": ("availability/1-node/aws-10-26-2022", "k80_8"),
    "two zones, K80": ("availability/1-node/aws-10-26-2022", "k80_1"),
    "nine zones, V100": ("availability/1-node/aws-02-15-2023", "v100_1"),
    "three zones, 16 nodes": ("availability/16-node/aws-08-27-2023", "v100_1"),
    "three zones, 64 vCPU": ("preemption/1-node/aws-04-19-2023", "intel_64"),
    "four zones, V100": ("preemption/1-node/aws-04-22-2023", "v100_1"),
    "four zones, C3": ("preemption/1-node/gcp-04-30-2023", "c3-88"),
    "three zones, 4 nodes": ("preemption/4-node/aws-08-03-2023", "v100_1"),
}
"""A folder of traces and the machines in it."""
CHOSEN = ("two zones, 8 V100", "one zone, 8 V100")
"""The traces on which the policy's two constants were chosen; the others are reported apart."""
TARGET, WORST = 1.10, 1.35
"""Cost over the optimum's: in the mean over all sets and slacks, and of each set and slack."""


@dataclass(frozen=True)
class World:
    """`up[zone, slot]`: whether a zone has as many machines as are wanted. It goes round."""

    name: str
    up: np.ndarray

    def window(self, start: int, slots: int) -> np.ndarray:
        """From one start on."""
        return self.up[:, np.arange(start, start + slots) % self.up.shape[1]]


def worlds() -> list[World]:
    """Every set, and one zone of the first alone."""
    found = []
    for name, (folder, kind) in SETS.items():
        need = int(folder.split("/")[1].split("-")[0])
        zones = [slots(path, need) for path in sorted((TRACES / folder).glob(f"*_{kind}.json"))]
        length = min(map(len, zones))
        found.append(World(name, np.stack([zone[:length] for zone in zones])))
    one = World("one zone, 8 V100", found[0].up[:1])
    return [found[0], one, *found[1:]]


def slots(path: Path, need: int) -> np.ndarray:
    """A trace by slots: machines are there that are there at each of its ticks in the slot."""
    trace = json.loads(path.read_text())
    gap, there = trace["metadata"]["gap_seconds"], np.array(trace["data"]) >= need
    count = int(len(there) * gap // SLOT)
    first = (np.arange(count) * SLOT / gap).astype(int)
    last = np.maximum(first, np.ceil((np.arange(count) + 1) * SLOT / gap).astype(int) - 1)
    total = np.concatenate([[0], np.cumsum(there)])
    last = np.minimum(last, len(there) - 1)
    return (total[last + 1] - total[first]) == (last + 1 - first)


def optimum(up: np.ndarray) -> float:
    """The least cost in slots on demand, by dynamic programming backwards over time and work."""
    zones, end = up.shape
    prices = [SPOT] * zones + [DEAR]
    never = np.full(WORK + 1, np.inf)
    never[0] = 0.0
    without = {end: never}
    on = {end: [never] * (zones + 1)}
    for now in range(end - 1, -1, -1):
        idle = without[now + 1].copy()
        for place, price in enumerate(prices):
            until = now + START
            there = place == zones or up[place, now:until].all()
            if until <= end and there:
                idle = np.minimum(idle, START * price + on[until][place])
        idle[0] = 0.0
        kept = []
        for place, price in enumerate(prices):
            stay = idle
            if place == zones or up[place, now]:
                moved = np.concatenate([[0.0], price + on[now + 1][place][:-1]])
                stay = np.minimum(idle, moved)
            kept.append(stay)
        without[now], on[now] = idle, kept
        without.pop(now + START, None), on.pop(now + START + 1, None)
    return float(without[0][WORK])


@dataclass
class Job:
    """One run in a window: its clock in slots, its cost in slots on demand, its machines."""

    up: np.ndarray
    now: int = 0
    left: int = WORK
    cost: float = 0.0
    place: int | None = None
    starting: int = 0

    @property
    def dear(self) -> int:
        """The place of machines on demand."""
        return len(self.up)

    def there(self, place: int) -> bool:
        """Whether a place has machines now; on demand always has."""
        return place == self.dear or bool(self.up[place, self.now % self.up.shape[1]])

    def start(self, place: int | None) -> None:
        """Ask for machines there, or give up those that there are."""
        self.place, self.starting = place, START

    def slot(self) -> None:
        """One slot passes."""
        if self.place is not None:
            self.cost += DEAR if self.place == self.dear else SPOT
            if self.starting:
                self.starting -= 1
            else:
                self.left -= 1
        self.now += 1


def forced(job: Job, end: int) -> None:
    """Any spot machine; on demand once there is no time left to lose."""
    if job.place == job.dear:
        return
    if job.place is not None and job.there(job.place):
        return
    job.start(None)
    if end - job.now - job.left < 2 * START:
        job.start(job.dear)
        return
    up = [zone for zone in range(job.dear) if job.there(zone)]
    if up:
        job.start(up[0])


def uniform(job: Job, end: int) -> None:
    """Spot where there is some; on demand while behind the line from nothing to all of the work,
    and until ahead of it by two starts."""
    ahead = (WORK - job.left) - job.now * WORK / end
    up = [zone for zone in range(job.dear) if job.there(zone)]
    slack = end - job.now - job.left
    if job.place is not None and job.place != job.dear and job.there(job.place):
        return
    if job.place == job.dear:
        if slack >= 2 * START and up and not job.starting:
            job.start(up[0])
        elif slack >= 2 * START and ahead > 2 * START and not job.starting:
            job.start(None)
        return
    job.start(None)
    if up and slack >= 2 * START:
        job.start(up[0])
    elif ahead < 0 or slack < START + 1:
        job.start(job.dear)


class Ours:
    """`Policy`, told the time in seconds and what its launches found."""

    def __init__(self, zones: int, end: int) -> None:
        self.policy = Policy(Weather())
        spot = [Candidate(f"zone {zone}", True, SPOT) for zone in range(zones)]
        self.candidates = [*spot, Candidate("on demand", False, DEAR)]
        self.terms = Terms(START * SLOT, end * SLOT, retry=SLOT, grain=0.0)
        self.until = 0.0
        self.leave: float | None = None

    def __call__(self, job: Job, end: int) -> None:
        if job.place is not None and not self._gone(job):
            return
        now = job.now * SLOT
        while now >= self.until:
            asked = self.policy.next(now, job.left * SLOT, self.candidates, self.terms)
            if isinstance(asked, Wait):
                self.until = now + asked.seconds
            elif self._granted(job, asked.candidate):
                return

    def _granted(self, job: Job, candidate: Candidate) -> bool:
        """Ask the trace for machines, and tell the policy what it says."""
        place, now = self.candidates.index(candidate), job.now * SLOT
        if not job.there(place):
            self.policy.refused(now, candidate)
            return False
        self.policy.granted(now, candidate)
        job.start(place)
        self.leave = None
        return True

    def _gone(self, job: Job) -> bool:
        """Whether the machines were lost, or are left to look for spot."""
        assert job.place is not None
        now = job.now * SLOT
        if not job.there(job.place):
            self.policy.lost(now)
        elif job.place == job.dear and not job.starting and job.now >= self._look(job):
            self.policy.left(now)
        else:
            return False
        job.start(None)
        self.until = 0.0
        return True

    def _look(self, job: Job) -> float:
        """The slot in which to leave the machines on demand; asked when training begins there."""
        if self.leave is None:
            now, left = job.now * SLOT, job.left * SLOT
            seconds = self.policy.leave_after(now, left, self.candidates, self.terms)
            self.leave = inf if seconds is None else job.now + max(1, round(seconds / SLOT))
        return self.leave


Decide = Callable[[Job, int], None]


def play(up: np.ndarray, decide: Decide) -> Job:
    """One run to its end, in time or not."""
    job, end = Job(up), up.shape[1]
    while job.left > 0:
        decide(job, end)
        job.slot()
    return job


def policies(zones: int, end: int) -> dict[str, Decide]:
    """Of one run; ours keeps what it has learned in it."""
    return {"spot until forced": forced, "uniform progress": uniform, "xrun": Ours(zones, end)}


def over(world: World, slack: float, count: int) -> dict[str, list[float]]:
    """Each policy's cost over the optimum's, from `count` starts spread evenly over the trace."""
    end = int(WORK * slack)
    found: dict[str, list[float]] = {}
    for number in range(count):
        up = world.window(number * world.up.shape[1] // count, end)
        best = optimum(up)
        for name, decide in policies(len(up), end).items():
            job = play(up, decide)
            assert job.now <= end, f"{name} is late: {world.name}, {slack}, start {number}"
            found.setdefault(name, []).append(job.cost / best)
    return found


def late(count: int, seed: int = 0) -> int:
    """How many of so many runs with random starts and slacks from 1.02 to 2 end after the deadline,
    all sets in turn."""
    generator, known, missed = random.Random(seed), worlds(), 0
    for number in range(count):
        world = known[number % len(known)]
        end = int(WORK * generator.uniform(1.02, 2.0))
        up = world.window(generator.randrange(world.up.shape[1]), end)
        missed += play(up, Ours(len(up), end)).now > end
    return missed


Table = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Set -> slack -> policy -> the cost over the optimum's, of each start."""


def text(table: Table) -> str:
    """The table in Markdown: the mean, and in brackets the worst of the starts."""
    names = list(policies(1, WORK))
    lines = [f"| set | slack | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for world, slacks in table.items():
        for slack, found in slacks.items():
            cells = [f"{fmean(found[name]):.3f} ({max(found[name]):.2f})" for name in names]
            lines.append(f"| {world} | {slack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def means(table: Table, name: str, without: Sequence[str] = ()) -> list[float]:
    """One policy's mean of each set and slack."""
    kept = [slacks for world, slacks in table.items() if world not in without]
    return [fmean(found[name]) for slacks in kept for found in slacks.values()]


def measure(quick: bool) -> Iterator[Row]:
    """The table goes to standard error, its means into the row."""
    count, runs = (2, 100) if quick else (30, 10_000)
    table = {
        world.name: {str(slack): over(world, slack, count) for slack in SLACKS}
        for world in worlds()
    }
    print(text(table))
    own, missed = means(table, "xrun"), late(runs)
    peers = {name: fmean(means(table, name)) for name in policies(1, WORK) if name != "xrun"}
    also = {
        "late": missed,
        "runs_for_late": runs,
        "starts_of_each": count,
        "on_other_traces_than_chosen_on": fmean(means(table, "xrun", CHOSEN)),
        "worst_start": max(
            max(found["xrun"]) for slacks in table.values() for found in slacks.values()
        ),
        "worst_set_of_peers": {name: max(means(table, name)) for name in peers},
    }
    name = f"cost with a deadline, over the optimum's ({missed} of {runs} late)"
    met = max(own) <= WORST and not missed
    yield Row(15, name, fmean(own), TARGET, "lower", peers, spread(own), also, met)


if __name__ == "__main__":
    main(measure)
