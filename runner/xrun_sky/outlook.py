"""What the rest of a run will cost at best, and what is to be done for it: a dynamic program over
the work that is left and the slack.

Work is counted in the time that it takes on demand; slack is the time until the deadline less that
work. A machine's start takes `change`, of the slack and of money; waiting takes slack and costs
nothing. Spot machines are lost at a constant rate; then another place has one at once, or nothing
is to be had until an outage ends. On demand it cannot be seen whether it has ended: to look, the
machine is given up.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, inf

LOOKS = (1, 2, 3, 4, 6, 9, 12, 18, 24)
"""Units of time on demand after which one may look for spot machines again."""


@dataclass(frozen=True)
class Odds:
    """Per unit of time: the probability of a loss, of an end of an outage; the probability that a
    loss is followed by a machine elsewhere; the price of spot over that of on demand; units that a
    start takes."""

    lose: float
    back: float
    moves: float
    price: float
    change: float


class Outlook:
    """Expected costs, in units of time on demand, for all work and slack up to a number of units.

    Rows are work, columns slack; `waiting`, `going` and `looking` are what is asked.
    """

    def __init__(self, odds: Odds, work: int, slack: int) -> None:
        self.odds, self.slack = odds, slack
        falls = odds.lose * (1 - odds.moves)
        self.up = odds.back / (odds.back + falls)
        """The probability that spot machines are to be had where nobody has asked lately."""
        self._seen = [self.up * (1 - exp(-odds.back * units / self.up)) for units in LOOKS]
        zero = [0.0] * (slack + 1)
        self.nowhere: list[MutableSequence[float]] = [zero]
        self._to_spot: list[MutableSequence[float]] = [self._start(zero, odds.price)]
        self._to_dear: list[MutableSequence[float]] = [self._start(zero, 1.0)]
        self.dear = [zero]
        self._running, self._lost = [zero], [zero]
        for _ in range(work):
            self._row()
        self._running, self._lost, self.dear = [], [], []  # what is asked stands in the others
        for table in (self.nowhere, self._to_spot, self._to_dear):
            table[:] = [array("d", row) for row in table]

    def _start(self, row: list[float], price: float) -> list[float]:
        """What it costs to start a machine, and then as the row says."""
        change = self.odds.change
        cost, whole = change * price, int(change)
        if whole == change:
            return [cost + each for each in ([row[0]] * whole + row)[: self.slack + 1]]
        return [cost + at(row, s - change) for s in range(self.slack + 1)]

    def _row(self) -> None:
        """One more unit of work."""
        self._running.append(self._on_spot())
        self._to_spot.append(self._start(self._running[-1], self.odds.price))
        dear = self._on_demand()
        self.dear.append(dear)
        self._to_dear.append(self._start(dear, 1.0))
        nowhere, lost = self._without()
        self.nowhere.append(nowhere)
        self._lost.append(lost)

    def _on_spot(self) -> list[float]:
        """A unit of work on spot, at the end of which the machine may be lost."""
        lose, price = self.odds.lose, self.odds.price
        before, lost = self._running[-1], self._lost[-1]
        return [price + (1 - lose) * before[s] + lose * lost[s] for s in range(self.slack + 1)]

    def _on_demand(self) -> list[float]:
        """On demand to the end, or until the best time to look."""
        work, least = len(self.dear), ceil(2 * self.odds.change)
        never = [float(work)] * (self.slack + 1)
        looks = [never[least:]]
        for units, seen in zip(LOOKS, self._seen):  # noqa: B905  Python 3.9 has no `strict`
            if units >= work:
                break
            spot, dear = self._to_spot[work - units][least:], self._to_dear[work - units][least:]
            unseen = 1 - seen
            looks.append([units + seen * a + unseen * b for a, b in zip(spot, dear)])  # noqa: B905
        return never[:least] + (list(map(min, *looks)) if len(looks) > 1 else looks[0])

    def _without(self) -> tuple[list[float], list[float]]:
        """Nothing is to be had: wait a unit, or go on demand. And just after a loss."""
        odds, spot, dear = self.odds, self._to_spot[-1], self._to_dear[-1]
        back, stays = odds.back, 1 - odds.back
        first = min(self.slack + 1, ceil(1 + odds.change))
        nowhere = list(dear[:first])
        for s in range(first, self.slack + 1):
            waiting = back * spot[s - 1] + stays * nowhere[-1]
            nowhere.append(waiting if waiting < dear[s] else dear[s])
        moves, remains, enough = odds.moves, 1 - odds.moves, ceil(2 * odds.change)
        elsewhere = nowhere[:enough] + list(spot[enough:])
        lost = [moves * a + remains * b for a, b in zip(elsewhere, nowhere)]  # noqa: B905  see above
        return nowhere, lost

    def waiting(self, work: int, slack: int) -> float:
        """The cost of waiting a unit where nothing is to be had; infinite without the slack."""
        if slack < 1 + self.odds.change:
            return inf
        back = self.odds.back
        came, still = self._to_spot[work][slack - 1], self.nowhere[work][slack - 1]
        return back * came + (1 - back) * still

    def going(self, work: int, slack: int) -> float:
        """The cost of going on demand."""
        return self._to_dear[work][slack]

    def looking(self, work: int, slack: int, units: int) -> float:
        """On demand: the cost of looking for spot machines after so many units; 0 for never."""
        if not units or units >= work or slack < 2 * self.odds.change:
            return float(work)
        return units + self._look(self._seen[LOOKS.index(units)], work - units, slack)

    def leaving(self, work: int, slack: int) -> float:
        """On demand for want of time, and not of spot machines: the cost of looking for them at
        once."""
        return self._look(self.up, work, slack)

    def _look(self, seen: float, work: int, slack: int) -> float:
        spot, dear = self._to_spot[work][slack], self._to_dear[work][slack]
        return seen * spot + (1 - seen) * dear


def at(row: list[float], place: float) -> float:
    """The value between two columns; left of the first it is the first."""
    if place <= 0:
        return row[0]
    low = int(place)
    part = place - low
    return row[low] + part * (row[low + 1] - row[low]) if part else row[low]


@lru_cache(maxsize=128)
def outlook(odds: Odds, work: int, slack: int) -> Outlook:
    """The table, made once for alike odds; half a megabyte each."""
    return Outlook(odds, work, slack)
