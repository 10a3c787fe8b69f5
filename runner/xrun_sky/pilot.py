"""`Pilot`: a run's policy with what it has to remember, in a file that outlives the process that
hosts it.

It knows no SkyPilot: `strategy` asks it, does what it says, and tells it what came of that.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from .assignment import Assignment, Place
from .policy import Candidate, Launch, Policy, Terms, Wait
from .remains import Head
from .stay import LEFT, Stay
from .weather import Weather

_KEPT = ("rate", "done", "spent", "asked", "leave_at")
_KEPT_SINCE = ("alone_since", "told", "barren", "barren_hours", "barren_usd", "rests_until")
"""What files that an older plugin has written lack."""
COME_BACK, NEVER_BEGAN = 75, 76
"""The exit codes of an attempt that wants to go on, here or elsewhere, and of machines on which
none has begun (xrun.errors)."""


class Pilot:
    """A run's decisions. Everything that changes it is in the file before it is acted on; times are
    seconds since 1970."""

    def __init__(self, assignment: Assignment, job: int, folder: Path) -> None:
        self.assignment = assignment
        self.path = folder / f"{assignment.run}-{job}.json"
        self.policy = Policy(Weather())
        self.rate = assignment.rate
        self.done = 0.0
        """Seconds of work for speed 1 since the launch, by the time that machines were there."""
        self.spent = 0.0
        """Dollars since the launch."""
        self.asked = 0.0
        """When the machines that are there now were asked for."""
        self.leave_at: float | None = None
        """When those are to be left, by what was known then."""
        self.stay: Stay | None = None
        """What their attempt decides by, once it knows more; told as they are asked for."""
        self.alone_since: float | None = None
        """Since when the run has asked for machines and had none."""
        self.told = False
        """Whether people were told of that."""
        self.barren: list[float] = []
        """When the machines were asked for on which no attempt has begun, the newest in a row."""
        self.barren_hours, self.barren_usd = 0.0, 0.0
        """Of all machines since the newest attempt on which none has begun, for its receipt."""
        self.rests_until = 0.0
        """Until when no machines are asked for, because of those."""
        self._read()

    def candidates(self, prices: Sequence[float | None]) -> list[Candidate]:
        """The places at the prices of now, one for each; None where nobody knows it."""
        pairs = zip(self.assignment.places, prices)  # noqa: B905  Python 3.9 has no `strict`
        return [_candidate(place, usd or place.usd_per_hour) for place, usd in pairs]

    def place_of(self, candidate: Candidate) -> Place:
        """The place that a candidate is."""
        names = (_candidate(place, 0.0).name for place in self.assignment.places)
        return self.assignment.places[list(names).index(candidate.name)]

    def ends(self, now: float, codes: Sequence[int]) -> str:
        """Whether the job ends because no attempt has begun on these machines, nor on those before
        them; then why, and what to do. Asked again of the same machines it says the same."""
        if NEVER_BEGAN not in codes:
            return ""
        rests, budget = self.assignment.rests, self.assignment.budget_usd
        if self.asked not in self.barren:
            self.barren.append(self.asked)
            self.rests_until = now + sum(rests[len(self.barren) - 1 :][:1])
            self._keep()
        spent = budget is not None and self.spent + self._cost(now) >= budget
        if len(self.barren) <= len(rests) and not spent:
            return ""
        count = len(self.barren)
        came = f"{count} times in a row machines" if count > 1 else "Machines"
        why = ", and budget.usd is used up" if spent else ""
        return (
            f"{came} have come on which no attempt could begin{why}, so the job ends here"
            f" and costs nothing more. `xrun logs {self.assignment.run}` says what has failed on"
            " the last ones; when that is mended, the same command goes on."
        )

    def gone(self, now: float, head: Head | None, codes: Sequence[int] = ()) -> str:
        """The machines are not there any more, after these exit codes; what that means, or "" if
        there were none."""
        on = self.policy.on
        if on is None:
            return ""
        lasted = max(0.0, now - self.policy.since)
        if head is not None and head.rate and head.began >= self.asked:
            self.rate = head.rate / on.speed
        self.spent += self._cost(now)
        if self.asked in self.barren or (head is not None and head.began < self.asked):
            self.barren_hours += max(0.0, now - self.asked) / 3600
            self.barren_usd += self._cost(now)
        else:
            self.barren_hours, self.barren_usd = 0.0, 0.0
        if self.asked in self.barren:
            self.policy.failed(now)
            self.leave_at = None
            self._keep()
            return f"No attempt has begun on {_text(on)} in {_span(lasted)}"
        self.done += max(0.0, lasted - self.assignment.changeover) * on.speed
        self.barren, self.rests_until = [], 0.0
        said = head is not None and head.began >= self.asked and head.reason == LEFT
        told = self.leave_at is not None and now >= self.leave_at
        meant = COME_BACK in codes and (said or told)
        if meant:
            self.policy.left(now)
        else:
            self.policy.lost(now)
        self.leave_at = None
        self._keep()
        return f"{_text(on)} {'was given back' if meant else 'is gone'} after {_span(lasted)}"

    def next(self, now: float, head: Head | None, candidates: Sequence[Candidate]) -> Launch | Wait:
        """What to do now; see `Policy.next`."""
        left, terms = self.left(now, head), self.terms()
        rest = min(self.rests_until - now, self.policy.spare(now, left, candidates, terms))
        if rest > 0:  # which is no time in which there were no machines
            self.policy.idle_since = None
            return Wait(rest)
        step = self.policy.next(now, left, candidates, terms)
        if self.alone_since is None:
            self.alone_since = now
        if isinstance(step, Launch):
            self.asked = now
            before = Policy.from_json(self.policy.to_json())
            self.stay = Stay(before, step.candidate, tuple(candidates), terms)
            until = self.stay.until(now + terms.changeover, left)
            self.leave_at = None if until == inf else until
        self._keep()
        return step

    def granted(self, now: float, candidate: Candidate) -> None:
        """The machines that were asked for are there."""
        self.policy.granted(now, candidate)
        self.alone_since, self.told = None, False
        self._keep()

    def refused(self, now: float, candidate: Candidate) -> None:
        """There were none."""
        self.policy.refused(now, candidate)
        self.leave_at = None
        self._keep()

    def news(self, now: float) -> str:
        """What people are to hear, once for each time without machines that lasts longer than the
        recipe lets it; "" else."""
        longest, since = self.assignment.max_wait, self.alone_since
        if self.told or longest is None or since is None or now - since <= longest:
            return ""
        self.told = True
        self._keep()
        return (
            f"No machine has been available for {_span(now - since)}, longer than hardware.max_wait"
            f" ({_span(longest)}). The job keeps asking, and the run goes on by itself once there"
            " is one; nothing is paid for until then."
        )

    def left(self, now: float, head: Head | None) -> float:
        """Seconds of work for speed 1 until the run has finished, at least a changeover.

        By what is committed; else by what was left at the launch less the time since; else, where
        nobody knows how fast the run is, by half of the time that it has altogether; infinite where
        it has no deadline either.
        """
        told = self.assignment
        if head is not None and self.rate and (steps := self._steps(head)):
            left = (steps - head.step) / self.rate
        elif told.left is not None and self.rate:
            left = told.left / self.rate - self.done
        elif told.deadline is not None:
            left = (told.deadline - told.launched) / 2 - self.done
        else:
            left = inf
        return max(told.changeover, left)

    def terms(self) -> Terms:
        """What the run was promised, and what is left of its budget."""
        told = self.assignment
        budget = None if told.budget_usd is None else max(0.0, told.budget_usd - self.spent)
        return Terms(
            changeover=told.changeover,
            deadline=told.deadline,
            max_wait=told.max_wait,
            budget_usd=budget,
            retry=told.retry,
        )

    def why(self, now: float, head: Head | None, step: Launch | Wait) -> str:
        """A decision in one line, for the job's log."""
        left = self.left(now, head)
        known = "work left not known" if left == inf else f"{_span(left)} of work left"
        until = self.assignment.deadline
        time = "" if until is None else f", {_span(until - now)} until the deadline"
        if isinstance(step, Wait):
            what = "before others are asked for" if now < self.rests_until else "for machines"
            return f"waiting {_span(step.seconds)} {what} ({known}{time})"
        there = step.candidate
        leave = "" if self.leave_at is None else f"; to be left in {_span(self.leave_at - now)}"
        cost = f"${there.usd_per_hour:.2f} an hour"
        return f"asking for {_text(there)}, {cost} ({known}{time}{leave})"

    def _cost(self, now: float) -> float:
        """Dollars of the machines that are there, so far."""
        on = self.policy.on
        return max(0.0, now - self.asked) * on.usd_per_hour / 3600 if on is not None else 0.0

    def _steps(self, head: Head) -> int | None:
        told = self.assignment
        if told.steps is not None or not told.epochs or not head.steps_per_epoch:
            return told.steps
        return told.epochs * head.steps_per_epoch

    def _keep(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(self.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)

    def to_json(self) -> dict[str, Any]:
        """What has to outlive this process."""
        kept = {name: getattr(self, name) for name in (*_KEPT, *_KEPT_SINCE)}
        return {"policy": self.policy.to_json(), **kept}

    def _read(self) -> None:
        """Go on with this job's file, or with what an earlier job of the run has seen of places."""
        told = _read(self.path)
        if told is not None:
            self.policy = told.pop("policy")
            vars(self).update(told)
            return
        others = self.path.parent.glob(f"{self.assignment.run}-*.json")
        known = [path for path in others if path.stem.rpartition("-")[0] == self.assignment.run]
        for path in sorted(known, key=lambda each: each.stat().st_mtime, reverse=True):
            if (before := _read(path)) is not None:
                weather = replace(before["policy"].weather, outage_since=None)
                self.policy = Policy(weather, last_lost=before["policy"].last_lost)
                return


def _read(path: Path) -> dict[str, Any] | None:
    """A file's state; None if it is not there, or is no such file any more."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        told = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: told[name] for name in _KEPT}
        since = {name: told[name] for name in _KEPT_SINCE if name in told}
        return {**kept, **since, "policy": Policy.from_json(told["policy"])}
    return None


def _candidate(place: Place, usd: float) -> Candidate:
    return Candidate(place.infra, place.spot, usd, place.speed, place.shape)


def _text(candidate: Candidate) -> str:
    kind = "spot" if candidate.spot else "on demand"
    return f"{candidate.shape} in {candidate.place} ({kind})"


def _span(seconds: float) -> str:
    sign, minutes = "-" if seconds < 0 else "", abs(seconds) / 60
    if minutes < 2:
        return f"{sign}{abs(seconds):.0f} s"
    return f"{sign}{minutes:.0f} min" if minutes < 120 else f"{sign}{minutes / 60:.1f} h"
