"""Row 9: how much of a spot machine's time becomes committed training, replayed on published traces
with xrun's own policy.

Replayed is a clock, not a copy of the policy: `SaveSchedule` says when a save is due, `mean_uptime`
what it may expect, and after a notice `StopFlag` and `LastSave` when to stop training, as a run
asks them. The oracle knows when the machine goes.

Then with bytes priced: what the machines cost for committed training, over all that is paid, where
each save sends `STATE` bytes out of a cloud that bills them; over an oracle's, which sends once for
each machine. Beside it what `auto` would be that does not look at the price.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.result import Row, main, spread
from xrun.checkpoint.schedule import SaveSchedule
from xrun.machine.stop import SPARE_SECONDS, StopFlag
from xrun.recipe.interval import Every
from xrun.run.saving import mean_uptime, usd_per_byte, worth
from xrun.store.address import Address

TRACES = Path(__file__).parent / "data" / "spot-traces"
PROVISION, RESUME, STALL, UPLOAD, LAST_UPLOAD = 180.0, 30.0, 0.1, 30.0, 10.0
"""Seconds: from a machine's offer to its first process; from there to the first step; what a save
takes from training; until it is committed; the same when nothing trains meanwhile."""
NOTICE, STEP = 30.0, 0.5
"""Seconds: what a notice leaves until the machine goes; a step, after which the loop looks."""
STATE, MACHINE, CLOUD = 1.5e9, 3.0, "gcp"
"""Bytes of a save, dollars for an hour of the machine, and the cloud whose egress is billed."""


@dataclass
class Replay:
    """One job on one trace: its clock and what its run knows of its attempts."""

    policy: str
    notice: float = 0.0
    now: float = 0.0
    ran: float = 0.0
    losses: int = 0
    useful: float = 0.0
    last_saves: list[float] = field(default_factory=list)
    started: bool = False
    worth: float = 0.0
    """Seconds of the machine for a save's price, as the schedule is told."""
    sent: int = 0

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
        self.sent += 1
        return max(0.0, end - self.now - STALL - LAST_UPLOAD)

    def _train(self, began: float, end: float) -> float:
        """Seconds of training that are committed when the machine goes."""
        before, losses = self.ran, self.losses
        schedule = SaveSchedule(
            Every.parse(self.policy),
            1,
            uptime=lambda: mean_uptime(before + self.now - began, losses),
            clock=lambda: self.now,
            alone=max(self.last_saves[-3:], default=0.0),
            worth=lambda: self.worth / STATE,
        )
        saves = _Saves(schedule)
        while True:
            due = max(schedule.last_time + schedule.seconds(), saves.busy)
            saves.train(self, min(due, end - self.notice))
            if due >= end - self.notice:
                break
            if schedule.due(1):
                saves.begin(self)
            else:
                self.now += 1e-6  # the interval has grown since it was asked
        if self.notice:
            return self._leave(saves, end)
        self.losses += 1
        return saves.committed

    def _leave(self, saves: _Saves, end: float) -> float:
        """The notice has come: train until the last save has to begin, as `Training._must_leave`
        says, and make it.

        Nothing trains beside it, so what is still on its way goes on as much faster as the last
        upload is faster than the others. An attempt that ends by itself counts as stopped, not as
        lost.
        """
        stop = StopFlag(clock=lambda: self.now)
        stop.set("notice", self.notice - SPARE_SECONDS)
        while not stop.is_due(saves.schedule.last_save(saves.busy > self.now).lead + STEP):
            saves.train(self, self.now + STEP)
            if not saves.busy and saves.schedule.due(1, stop.seconds_left()):
                saves.begin(self)
        if saves.schedule.last_save(bool(saves.busy)).least >= stop.seconds_left() + SPARE_SECONDS:
            return saves.committed
        if saves.busy:
            self.now += (saves.busy - self.now) * LAST_UPLOAD / UPLOAD
            saves.committed = saves.saved if self.now <= end else saves.committed
        self.sent += 1
        self.now += STALL + LAST_UPLOAD
        if self.now > end:
            self.losses += 1
            return saves.committed
        self.last_saves.append(STALL + LAST_UPLOAD)
        return saves.worked


@dataclass
class _Saves:
    """The saves of one attempt: seconds of training that are done, that are in the newest save, and
    that are committed."""

    schedule: SaveSchedule
    worked: float = 0.0
    saved: float = 0.0
    committed: float = 0.0
    busy: float = 0.0

    def train(self, replay: Replay, until: float) -> None:
        """Go on until then; a save that is on its way may be committed meanwhile."""
        if self.busy and self.busy <= until:
            self._train(replay, self.busy)
            self.committed, self.busy = self.saved, 0.0
            self.schedule.measured(STALL, UPLOAD + STALL, STATE)
        self._train(replay, until)

    def _train(self, replay: Replay, until: float) -> None:
        self.worked += max(0.0, until - replay.now)
        replay.now = max(replay.now, until)

    def begin(self, replay: Replay) -> None:
        """Start a save, which takes a moment from training."""
        replay.sent += 1
        self.schedule.started()
        self.saved, self.busy = self.worked, replay.now + STALL + UPLOAD
        replay.now += STALL


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


@dataclass(frozen=True)
class Paid:
    """What all traces together cost: `share` of it, in money, is for committed training."""

    share: float
    gigabytes_per_hour: float
    usd_per_hour: float


def paid(policy: str, told: bool, notice: float = 0.0) -> Paid:
    """With a save's bytes priced, of which the schedule is `told` or not."""
    usd = STATE * usd_per_byte(CLOUD, Address.parse("hub"))
    useful = hours = 0.0
    sent = 0
    for path in sorted(TRACES.rglob("*.json")):
        replay = Replay(policy, notice, worth=worth(usd, MACHINE) if told else 0.0)
        for start, end in windows(path):
            replay.window(start, end)
            hours += (end - start) / 3600
        useful, sent = useful + replay.useful / 3600, sent + replay.sent
    share = useful * MACHINE / (hours * MACHINE + sent * usd)
    return Paid(share, sent * STATE / 1e9 / hours, sent * usd / hours)


def measure(quick: bool) -> Iterator[Row]:
    oracle, best = useful_share("oracle")
    policies = {
        "every 2 h": ("2h", 0.0),
        "every 30 min": ("30m", 0.0),
        "every 30 min, notice": ("30m", NOTICE),
    }
    peers = {
        name: useful_share(*how)[0] / oracle for name, how in ({} if quick else policies).items()
    }
    auto, each = useful_share("auto")
    warned, _ = useful_share("auto", NOTICE)
    beside = [mine / theirs for mine, theirs in zip(each, best, strict=True)]
    also = {
        "with_notice": warned / oracle,
        "with_notice_target": 0.999,
        "committed_share": auto,
        "committed_share_with_notice": warned,
        "committed_share_oracle": oracle,
        "traces": len(each),
        **priced(),
    }
    name = (
        "goodput on 34 spot traces without notice, over an oracle's (with a notice:"
        f" {warned / oracle:.4f}, target 0.999)"
    )
    yield Row(
        9,
        name,
        auto / oracle,
        0.993,
        "higher",
        peers,
        spread(beside),
        also,
        warned / oracle >= 0.999,
    )


def priced() -> dict[str, float]:
    """With bytes priced, each over the oracle."""
    found: dict[str, float] = {}
    for name, notice in (("priced", 0.0), ("priced_with_notice", NOTICE)):
        best = paid("oracle", told=True)
        for how, policy, told in (("", "auto", True), ("_unaware", "auto", False)):
            own = paid(policy, told, notice)
            found |= {
                f"{name}{how}": own.share / best.share,
                f"{name}{how}_gb_per_hour": own.gigabytes_per_hour,
                f"{name}{how}_usd_per_hour": own.usd_per_hour,
            }
    return found


if __name__ == "__main__":
    main(measure)
