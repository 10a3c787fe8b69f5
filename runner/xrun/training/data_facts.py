"""`Data`: what an attempt trains on, compared with what the attempts before it have trained on.

A dataset names its version as well as it can, and some do it by what is another in each process (a
`hash()`, a time). So before data are refused a fresh process builds them again, and a revision that
is not the same there says nothing. It is `python -m xrun.training.data_facts`.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import environment
from ..data.stream import is_stream
from ..errors import CheckpointError
from ..run.checkpoint import MOVES, SPLITS, DataFacts, data_differences
from ..run.plan import Plan
from .instances import revision_of, splits_of
from .start import Start
from .world import World

log = logging.getLogger("xrun")


@dataclass(frozen=True)
class Data:
    """An attempt's data; `changed` says in what they are not those of the steps before."""

    facts: DataFacts
    changed: Mapping[str, str]

    def __str__(self) -> str:
        return "; ".join(f"{split}: {what}" for split, what in self.changed.items())


def facts_of(splits: Mapping[str, Any]) -> DataFacts:
    """How many samples or shards each split has that a run uses, and which revision of them."""
    return {name: _facts(splits[name]) for name in SPLITS if splits.get(name) is not None}


def agreed_data(plan: Plan, start: Start, splits: Mapping[str, Any], world: World) -> Data:
    """The data as the first process has them, which all of them know then.

    Raises:
        CheckpointError: they are not those of the checkpoint that the attempt goes on from, and
            nobody has said that this is meant.
    """
    return world.from_first(lambda: _compared(plan, start, facts_of(splits)))


def _compared(plan: Plan, start: Start, now: DataFacts) -> Data:
    before = start.trained_on
    now = _silenced(now, [name for name in now if before.get(name, {}).get("revision") == MOVES])
    if not data_differences(before, now):
        return Data(now, {})
    now = _without_moving(now, _from_a_fresh_process(plan))
    data = Data(now, data_differences(before, now))
    step = start.checkpoint.step if start.checkpoint else 0
    if not data.changed:
        log.warning("The dataset's revision is another one in each process, so it says nothing.")
    elif not plan.other_data:
        raise CheckpointError(
            f"The data are not those that the run {plan.run} was trained on: {data}.",
            "Bring them back, start another run with --again, or go on with --other-data: the run"
            f" is marked as not exact from step {step} on.",
        )
    else:
        log.warning("From step %d on the run is not exact: other data (%s).", step, data)
    return data


def _facts(split: Any) -> dict[str, Any]:
    size = {"shards": getattr(split, "num_shards", 1)} if is_stream(split) else {}
    return {**(size or {"samples": len(split)}), "revision": revision_of(split)}


def _without_moving(now: DataFacts, again: DataFacts) -> DataFacts:
    """The facts without revisions that are others in another process, though the size is the
    same."""

    def moves(name: str) -> bool:
        known, other = now[name], again.get(name, now[name])
        same_size = {**known, "revision": None} == {**other, "revision": None}
        return same_size and known["revision"] != other["revision"]

    return _silenced(now, [name for name in now if moves(name)])


def _silenced(now: DataFacts, names: Sequence[str]) -> DataFacts:
    """The facts without these splits' revisions."""
    return {
        name: {**facts, "revision": MOVES} if name in names else facts
        for name, facts in now.items()
    }


def _from_a_fresh_process(plan: Plan) -> DataFacts:
    """The facts as another process sees them; nothing where it cannot tell."""
    command = [*environment.PYTHON, "-m", "xrun.training.data_facts"]
    done = subprocess.run(
        command, input=plan.to_json(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {}
    told: DataFacts = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    """Print the facts of the data of the plan on standard input, in the last line."""
    plan = Plan.from_json(sys.stdin.read())
    print("\n" + json.dumps(facts_of(splits_of(plan))))


if __name__ == "__main__":
    main()
