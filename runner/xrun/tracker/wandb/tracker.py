"""`WandbTracker`: one run at Weights & Biases, by the verbs of every tracker, and what only W&B
shows of it.

What is said goes out through the library, in its own time; whoever has to know whether it arrived
asks the server (`api`). Only a process that may wait and may be ended uses it: `sending`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import clock
from ...run.receipt import Receipt, receipt_of
from ...run.record import AttemptRecord
from .api import RunPath, RunStatus, Unreachable, base_url, create_run, run_status
from .library import open_run
from .rows import BEFORE_ALL, Rows, last_key

COMMIT_STEP, COMMIT_HEAD, COMMIT_STORE = "xrun/commit_step", "xrun/commit_head", "xrun/commit_store"
"""Where a run's summary has its last commit."""
_ATTEMPTS = 100
"""So many of the newest attempts are told of."""


class WandbTracker:
    """The run at `address`, whose state is at `store`; the library may write into `folder`, and
    sends every so many `seconds`, by way of `server` if that is not W&B's. `running`: its last
    attempt is, so its machine costs until now."""

    def __init__(
        self,
        address: RunPath,
        folder: Path,
        *,
        tags: Sequence[str] = (),
        store: str = "",
        seconds: float = 5.0,
        server: str = "",
        running: bool = True,
    ) -> None:
        self.address, self.folder, self.running = address, folder, running
        self.tags, self.store, self.seconds = tags, store, seconds
        self.server = server or base_url()
        self.rows = Rows(BEFORE_ALL, ())
        self.attempts: Sequence[AttemptRecord] = ()
        self.status: RunStatus | None = None
        """What the server had when it began."""
        self.run: Any = None
        """The library's, once it has begun."""

    def start(
        self, config: Mapping[str, Any], step: int, attempts: Sequence[AttemptRecord] = ()
    ) -> None:
        """See Tracker. W&B cannot drop what is after `step`: those points keep the values that it
        got first, and are passed over when they are logged again.

        Raises:
            Unreachable: it does not work now.
            Refused: the key is not valid, or not for this.
            Deleted: the run's id was used before.
        """
        self.status = status = run_status(self.address)
        if status is None:
            create_run(self.address)
        run = open_run(self.address, self.folder, config, self.tags, self.seconds, self.server)
        if run.starting_step != (status.next_step if status else 0):
            raise Unreachable("somebody else writes to this run")
        seen = last_key(status.last) if status else BEFORE_ALL
        self.run, self.rows = run, Rows(seen, attempts)
        self.address = RunPath(run.entity, self.address.project, self.address.run)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """See Tracker; a step is sent when a later one is there, as training and evaluation may
        share one."""
        point = {"step": step, "time": clock.now(), **values}
        for row in self.rows.add([point]):
            self.run.log(row)

    def committed(self, step: int, head: str) -> None:
        """See Tracker."""
        self.run.summary.update(
            {
                COMMIT_STEP: step,
                COMMIT_HEAD: head,
                COMMIT_STORE: self.store or "local",
                **(self._costs() if self.attempts else {}),
            }
        )

    def last_commit(self) -> tuple[int, str] | None:
        """See Tracker; the server is asked, and nothing has to have begun. Raises what `start`
        raises."""
        return commit_of(run_status(self.address))

    def finish(self, code: int = 0) -> None:
        """See Tracker; `code` is the exit code of the attempt that ends. Waits for the server for
        as long as it takes."""
        self.complete()
        self.close(code)

    def complete(self) -> bool:
        """Send the step that a later point might still belong to; says whether there was one."""
        rows = list(self.rows.rest())
        for row in rows:
            self.run.log(row)
        return bool(rows)

    def close(self, code: int) -> None:
        """End the run there, with a step that is not complete kept back."""
        self.run.finish(exit_code=0 if code == 0 else 1)

    def tell_attempts(self, attempts: Sequence[AttemptRecord]) -> None:
        """What the run's page says of its attempts, and of what they have cost until now."""
        self.attempts = attempts
        self.run.summary.update(
            {
                "xrun/attempts": [attempt.to_json() for attempt in attempts[-_ATTEMPTS:]],
                "xrun/preemptions": sum(attempt.was_preempted for attempt in attempts),
                "xrun/steps_recomputed": sum(each.steps_recomputed or 0 for each in attempts),
                "xrun/receipt": [asdict(line) for line in self._receipt().lines[-_ATTEMPTS:]],
                **self._costs(),
            }
        )

    def _receipt(self) -> Receipt:
        run, now = self.address.run, clock.now()
        return receipt_of(run, self.attempts, now, running=self.running)

    def _costs(self) -> dict[str, Any]:
        return {f"xrun/{name}": value for name, value in self._receipt().summary().items()}

    def preempting(self) -> None:
        """The machine is about to go."""
        self.run.mark_preempting()


def commit_of(status: RunStatus | None) -> tuple[int, str] | None:
    """Step and head id of the last commit that a run's summary has."""
    if status is None or COMMIT_STEP not in status.summary:
        return None
    return int(status.summary[COMMIT_STEP]), str(status.summary.get(COMMIT_HEAD, ""))
