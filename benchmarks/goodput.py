"""Row 9: how much of a spot machine's time becomes committed training, replayed on published traces with xrun's own policy.

Replayed is a clock, not a copy of the policy: `SaveSchedule` says when a save is due and `mean_uptime` what it may expect, as a
run asks them, and `StopFlag` how long a notice leaves. The oracle knows when the machine will be taken away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from benchmarks.result import Row, main, spread
from xrun.checkpointer import Checkpointer
from xrun.every import Every
from xrun.interval import SaveSchedule, mean_uptime
from xrun.stop import StopFlag

TRACES = Path(__file__).parent / "data" / "spot-traces"
PROVISION, RESUME, STALL, UPLOAD, LAST_UPLOAD = 180.0, 30.0, 0.1, 30.0, 10.0
"""Seconds: from a machine's offer to its first process; from there to the first step; what a save takes from training; until it
is committed; the same when nothing trains meanwhile."""
NOTICE = 30.0


@dataclass
class Replay:
    """One job on one trace: its clock and what its run knows of its attempts."""

    policy: str
    notice: float = 0.0
    now: float = 0.0
    ran: float = 0.0
    losses: int = 0
    useful: float = 0.0
    last_save: float = 0.0
    started: bool = False

    def window(self, start: float, end: float) -> None:
        """One machine, from its offer to its loss."""
        self.now = start + PROVISION
        began = self.now
        self.now += RESUME if self.started else 0.0
        if self.now < end:
            committed = self._oracle(end) if self.policy == "oracle" else self._train(began, end)
            self.useful += committed
            self.started = self.started or committed > 0
        self.ran += max(0.0, end - began)

    def _oracle(self, end: float) -> float:
        """One save, committed when the machine goes."""
        return max(0.0, end - self.now - STALL - LAST_UPLOAD)

    def _train(self, began: float, end: float) -> float:
        """Seconds of training that are committed when the machine goes."""
        before, losses = self.ran, self.losses
        schedule = SaveSchedule(
            Every.parse(self.policy), 1, uptime=lambda: mean_uptime(before + self.now - began, losses), clock=lambda: self.now
        )
        worked = committed = saved = 0.0
        busy = 0.0
        while True:
            due = max(schedule.last_time + schedule.seconds(), busy)
            until = min(due, end - self.notice)
            if busy and busy <= until:
                committed, busy = saved, 0.0
                schedule.measured(STALL, UPLOAD + STALL)
                continue
            worked, self.now = worked + max(0.0, until - self.now), max(self.now, until)
            if due >= end - self.notice:
                break
            if not schedule.due(1):
                self.now += 1e-6  # the interval has grown since it was asked
                continue
            schedule.started()
            saved, busy = worked, self.now + STALL + UPLOAD
            self.now += STALL
        if not self.notice:
            self.losses += 1
            return committed
        return self._leave(schedule, worked, committed, end, busy, saved)

    def _leave(self, schedule: SaveSchedule, worked: float, committed: float, end: float, busy: float, saved: float) -> float:
        """The notice comes and the loop leaves at once, as `Training._leave` does: with a last save if one fits as measured.

        What is on its way is committed first. Nothing trains meanwhile, so it goes on as much faster as the last upload is faster
        than the others. An attempt that ends by itself counts as stopped, not as lost.
        """
        stop = StopFlag(clock=lambda: self.now)
        stop.set("notice", end - self.now)
        need = Checkpointer.seconds_to_save(cast("Checkpointer", SimpleNamespace(schedule=schedule, busy=bool(busy))))
        fits = need < stop.seconds_left()
        if busy:
            self.now += (busy - self.now) * LAST_UPLOAD / UPLOAD
            committed = saved if stop.seconds_left() >= 0 else committed
        return worked if fits and stop.seconds_left() >= STALL + LAST_UPLOAD else committed


def windows(path: Path) -> list[tuple[float, float]]:
    """When as many machines as the trace's folder says were available at once, in seconds."""
    trace = json.loads(path.read_text())
    gap, need = trace["metadata"]["gap_seconds"], int(re.search(r"(\d+)-node", str(path)).group(1))  # type: ignore[union-attr]
    found, start = [], None
    for tick, count in enumerate([*trace["data"], -1]):
        if count >= need and start is None:
            start = tick
        elif count < need and start is not None:
            found.append((start * gap, tick * gap))
            start = None
    return found


def useful_share(policy: str, notice: float = 0.0) -> tuple[float, list[float]]:
    """Committed training over available time: of all traces together, and of each."""
    useful = available = 0.0
    each = []
    for path in sorted(TRACES.rglob("*.json")):
        replay = Replay(policy, notice)
        own = windows(path)
        for start, end in own:
            replay.window(start, end)
        total = sum(end - start for start, end in own)
        useful, available = useful + replay.useful, available + total
        if total:
            each.append(replay.useful / total)
    return useful / available, each


def measure(quick: bool) -> Iterator[Row]:
    oracle, best = useful_share("oracle")
    policies = {"every 2 h": ("2h", 0.0), "every 30 min": ("30m", 0.0), "every 30 min, notice": ("30m", NOTICE)}
    peers = {name: useful_share(*how)[0] / oracle for name, how in ({} if quick else policies).items()}
    auto, each = useful_share("auto")
    warned, _ = useful_share("auto", NOTICE)
    beside = [mine / theirs for mine, theirs in zip(each, best, strict=True)]
    also = {
        "with_notice": warned / oracle, "with_notice_target": 0.999,
        "committed_share": auto, "committed_share_with_notice": warned, "committed_share_oracle": oracle, "traces": len(each),
    }  # fmt: skip
    name = f"goodput on 34 spot traces without notice, over an oracle's (with a notice: {warned / oracle:.4f}, target 0.999)"
    yield Row(9, name, auto / oracle, 0.993, "higher", peers, spread(beside), also, warned / oracle >= 0.999)


if __name__ == "__main__":
    main(measure)
