"""`make e2e`: a sweep on a pool of a real SkyPilot: two machines stay for three trials.

Covers `xrun.launcher.sky.pool`.
"""

from __future__ import annotations

import pytest

from cluster.site import Site
from cluster.swept import HERE, THERE, Sweep, sha256
from cluster.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

SHORT = (
    *("-s", "train.steps=60", "-s", "sweep.stop=null", "-s", "sweep.pool=2"),
    *("-s", "sweep.parameters={train.optimizer.lr: [1e-4, 1e-3, 1e-2]}"),
)


def test_the_trials_of_a_pool_are_those_of_this_machine(site: Site) -> None:
    """Each trial runs on one of two machines that are set up once, and ends with the bits that it
    has here. The pool is told of while it is there, and gone when the last trial is done."""
    here = Sweep(site, site.cluster.root / "pool-here", *HERE, *SHORT)
    there = Sweep(site, site.cluster.root / "pool-there", *THERE, *SHORT)
    quiet = here.start()
    command = there.start()
    runs = [row["run"] for row in there.table()]
    pool = runs and "machines pool swept-s"

    def committed() -> str | None:
        assert command.poll() is None, there.said()
        return next((run for run in runs if site.committed(run) >= 0), None)

    first = until(committed, "a trial that trains", 1200, every=1.0)
    assert f"  {pool}" in there.status()
    assert command.wait(timeout=1500) == 0, there.said()
    assert quiet.wait(timeout=600) == 0, here.log.read_text()
    assert there.table() == here.table()
    for run in runs:
        model = here.home / run / "model" / "model.safetensors"
        assert sha256(site.weights(run)) == sha256(model.read_bytes())
    said = there.log.read_text()
    assert "has ended." in said
    assert pool not in there.status()
    assert first
