"""`Board`: where the trials of a sweep meet: a store of its own at the place of their states, under
the sweep's id. Each result is a commit that replaces the head before it, as those of a run are, so
of two trials that come at once one commits, and the other looks again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import clock
from ..backoff import Backoff
from ..errors import CheckpointCorrupt, LeaseLost
from ..run.plan import Plan
from ..run.record import new_id
from ..run.stores import BOARD, open_store
from ..store.protocol import Head, Store
from .standing import Result, Rules, Standing
from .trials import Trials

_TRIES = 200
"""So many other results may come first."""
_BACKOFF = Backoff(first=0.02, longest=0.5, spread=1.0)
_TIDY = 32
"""Commits after which old ones are deleted."""


class Board:
    """The board of a sweep, for one process. `plan` is that of a run beside which it lies, whose
    store's address everybody knows by now."""

    def __init__(
        self,
        trials: Trials,
        plan: Plan,
        *,
        reads: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        stop = trials.sweep.stop
        self.rules = Rules(
            trials=trials.count,
            rungs=len(trials.parts),
            mode=trials.mode,
            method=stop.method if stop else "",
            reduction=stop.reduction if stop else 1,
        )
        self.id, self.folder = trials.id, Path(plan.home) / trials.id
        self._about = {
            "metric": trials.metric,
            "mode": trials.mode,
            "trials": [dict(values) for values in trials.values],
            "rungs": self.rules.rungs,
            "method": self.rules.method,
            "reduction": self.rules.reduction,
        }
        own = replace(plan, run=trials.id)
        self._store: Store = open_store(own, new_id(clock.now()), create=not reads)
        self._sleep = sleep

    def standing(self) -> Standing:
        """What is committed. Raises StoreError, and CheckpointCorrupt if it is no board's."""
        return self._read(self._store.head())

    def post(self, trial: int, rung: int, result: Result) -> Standing:
        """Commit a trial's result at its rung, with what is decided by it; the standing afterwards.
        What is known already is not committed again. Raises StoreError."""
        return self.change(lambda before: before.with_result(trial, rung, result))

    def change(self, made: Callable[[Standing], Standing]) -> Standing:
        """Commit what is made of the standing, which may be asked for again where another commit
        came first; the standing afterwards. Raises StoreError, and what `made` raises."""
        tries = _BACKOFF.tries(LeaseLost, times=_TRIES, sleep=self._sleep)
        return tries(self._change, made)

    def _change(self, made: Callable[[Standing], Standing]) -> Standing:
        """Raises LeaseLost if somebody else has committed meanwhile."""
        head = self._store.head()
        before = self._read(head)
        after = made(before)
        if after != before:
            commit = self._store.commit({BOARD: {**self._about, **after.to_json()}}, head)
            if commit.number % _TIDY == 0:
                self._store.sweep()
        return after

    def _read(self, head: Head | None) -> Standing:
        if head is None:
            return Standing(self.rules)
        try:
            told: Any = head.record[BOARD]
            return Standing.from_json(self.rules, told)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointCorrupt(
                f"Commit {head.number} of the board {self.id} is not a sweep's: {error!r}.",
                "Move its store away; the trials' results are put on a new one from their runs.",
            ) from error
