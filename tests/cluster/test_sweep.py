"""`make soak`: a sweep whose trials are managed jobs of a real SkyPilot, under kills of everything
that takes part in it.

Covers `xrun.launcher.sky.cloud`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from datetime import UTC, datetime

import pytest

from cluster.processes import arguments, descendants
from cluster.site import Site
from cluster.swept import HERE, THERE, Sweep, sha256
from cluster.waiting import until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

LETHAL = ("rank", "machine", "machine with notice")
"""Kills after which a trial needs another attempt."""
RUNG, END, LEFT = 100, 300, 30
"""Steps, and so many that a trial must have before it when it is hit."""


class Kills:
    """Kills of what a sweep on the cluster consists of. Each hits a trial in an attempt that was
    not hit before, in the middle of its steps."""

    def __init__(self, sweep: Sweep, runs: list[str], chance: random.Random) -> None:
        self.sweep, self.cluster, self.site = sweep, sweep.site.cluster, sweep.site
        self.runs, self.chance = runs, chance
        self.hit: set[str] = set()
        self.command = sweep.start()

    def __call__(self, kind: str) -> str:
        """Wait for a trial that trains, and kill; which run was hit."""
        run = until(self._trains, "a trial that trains", 3600, every=0.3, alive=self._goes_on)
        {
            "rank": self._rank,
            "machine": lambda run: self.cluster.preempt(run, notice=False),
            "machine with notice": lambda run: self.cluster.preempt(run, notice=True),
            "command of a trial": self._command_of_a_trial,
            "launcher": self._launcher,
        }[kind](run)
        return run

    def _trains(self) -> str | None:
        there = {name: self._attempt(name) for name in self.runs}
        free = [name for name, attempt in there.items() if attempt and attempt not in self.hit]
        if not free:
            return None
        run = self.chance.choice(free)
        self.hit.add(there[run] or "")
        return run

    def _attempt(self, run: str) -> str | None:
        """The attempt that is in the middle of a run's steps now."""
        record = self.site.record(run)
        attempts, checkpoints = record.get("attempts"), record.get("checkpoints")
        if not attempts or not checkpoints or attempts[-1].get("ended"):
            return None
        step, attempt = checkpoints[-1]["step"], str(checkpoints[-1]["attempt"])
        trains = 0 <= step <= RUNG - LEFT or RUNG < step <= END - LEFT
        return attempt if trains and attempt == attempts[-1]["id"] else None

    def _goes_on(self) -> None:
        code = self.command.poll()
        assert code is None, f"the sweep ended with {code}: {self.sweep.log.read_text()}"

    def _rank(self, run: str) -> None:
        """The process that trains, on the trial's machine, and one that is started ahead of the
        next attempt."""
        there = self.cluster.processes_of(self.cluster.machine(run))
        ranks = [pid for pid in there if "xrun.training.rank" in arguments(pid)]
        assert ranks
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)

    def _command_of_a_trial(self, run: str) -> None:
        """One that the launcher has started, and that follows a job."""
        following = until(self._following, "a trial's command", 600, alive=self._goes_on)
        os.kill(self.chance.choice(following), signal.SIGKILL)

    def _following(self) -> list[int]:
        below = descendants(self.command.pid)
        return [pid for pid in below if "--trial" in arguments(pid)]

    def _launcher(self, run: str) -> None:
        """The sweep's own command, which is typed again."""
        self.command.kill()
        self.command.communicate()
        self.command = self.sweep.start()


def test_a_sweep_of_jobs_under_kills_keeps_the_trials_and_bits_of_a_quiet_one(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six trials by halving: results, survivors and weights are those of the same sweep on this
    machine, though a rank, machines, a trial's command and the launcher are killed. In which order,
    and which of the trials that train then, is drawn anew each day."""
    here = Sweep(site, site.cluster.root / "here", *HERE)
    there = Sweep(site, site.cluster.root / "there", *THERE)
    quiet = here.start()
    runs = [row["run"] for row in there.table()]
    began, seed = time.monotonic(), datetime.now(UTC).toordinal()
    chance = random.Random(seed)
    kills = Kills(there, runs, chance)
    kinds = [*LETHAL, "command of a trial", "launcher"]
    chance.shuffle(kinds)
    hit = [(kind, kills(kind)) for kind in kinds]
    assert kills.command.wait(timeout=3600) == 0, there.log.read_text()
    took = time.monotonic() - began
    assert quiet.wait(timeout=3600) == 0, here.log.read_text()
    found = there.table()
    assert found == here.table()
    survivors = [row["run"] for row in found if row["state"] == "finished"]
    assert len(survivors) == 2
    for run in survivors:
        model = here.home / run / "model" / "model.safetensors"
        assert sha256(site.weights(run)) == sha256(model.read_bytes())
    lives = {run: len(site.record(run)["attempts"]) for run in runs}
    ended = Counter(run for kind, run in hit if kind in LETHAL)
    for run in runs:
        assert lives[run] >= 1 + ended[run] + (run in survivors), (hit, lives)
    jobs = [job for job in site.cluster.jobs() if job.job_name in runs]
    assert len(jobs) >= len(runs) + len(survivors)
    assert sum(job.recovery_count for job in jobs) >= len(LETHAL)
    with capsys.disabled():
        print(f"\nseed {seed}: {took:.0f} s; hit, in this order:")
        print(*(f"  {kind} of {run}" for kind, run in hit), sep="\n")
