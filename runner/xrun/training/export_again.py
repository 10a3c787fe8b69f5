"""The model of a finished run once more, from its last commit. It trains nothing and takes no GPU.

`xrun export-model` starts it: `python -m xrun.training.export_again` with a plan on standard input.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import clock, streams
from ..bar import bar
from ..errors import LaunchError, StoreError, XrunError
from ..run import spending
from ..run.logs import aside
from ..run.plan import Plan
from ..run.record import Finished, RunRecord
from ..run.stores import open_store
from ..store.protocol import KeepsHistory
from .failure import failure_of

_HERE: Mapping[str, Any] = {
    "sharding": "none",
    "compile": False,
    "precision": "fp32",
    "num_workers": 0,
    "activation_checkpointing": False,
}
"""What a recipe says of its machines, for one process that only loads weights."""


def export_again(plan: Plan) -> Finished:
    """Export a plan's run and commit that: for the attempt that has the run, which is over.

    Raises:
        XrunError: as `finish`; LaunchError where nothing is committed.
    """
    from .build import build_lease, build_setting, build_started, build_trained
    from .finish import finish

    head = open_store(plan, "reader", create=False).head()
    if head is None:
        raise LaunchError(f"Nothing of the run {plan.run} is committed.")
    store, record = open_store(plan, head.attempt), RunRecord.of(head)
    recipe = {**plan.recipe, "train": {**plan.recipe["train"], **_HERE}}
    here = replace(plan, recipe=recipe, processes=1, other_data=True)
    setting = build_setting(here, head.attempt, store)
    model, lease = build_trained(setting), build_lease(setting)
    # Nobody trains, so that the hours until now are none of the run's.
    (*_, life) = spending.lives(record.attempts, clock.now(), running=False)
    lease.record = lease.record.with_last(ended=life.ended)
    # The card, and whoever reads it, are told of the run's own recipe.
    told = replace(setting, plan=plan)
    rebuild, before = functools.partial(build_started, setting), record.finished
    early = {"waited": before.waited, "reason": before.reason} if before else {}
    finished = finish(told, model, lease, rebuild, record.steps_per_epoch, early)
    assert finished is not None, "this is the first process"
    lease.finish(finished)
    with contextlib.suppress(StoreError):  # nothing of a finished run depends on it
        if isinstance(store, KeepsHistory):
            store.drop_history()
    return finished


def main() -> int:
    """Returns the exit code, and says what is wrong."""
    streams.patient()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        plan = Plan.from_json(sys.stdin.read())
        with bar(f"Making the model of {plan.run}"):
            export_again(plan)
    except Exception as error:
        failure = failure_of(error, None)
        if failure.traceback:
            print(aside(traceback.format_exc()), file=sys.stderr)
        known = isinstance(error, XrunError)
        print(f"xrun: {error if known else failure.message}", file=sys.stderr, flush=True)
        return failure.code or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
