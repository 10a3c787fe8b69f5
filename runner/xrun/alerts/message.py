"""What people are told of a run's events: what happened, what it means, what it has cost, what to
type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from xrun_sky.stay import LEFT

from .. import clock
from ..run import spending
from ..run.plan import Plan
from ..run.record import AttemptRecord, RunRecord
from ..run.report import duration_words

_LONGEST = 600
"""Characters of what a component has raised: people read it on a phone."""


@dataclass(frozen=True)
class Message:
    """One message about one event; what has the same `once` is the same event of a run, and what
    has the same `id` of all runs."""

    event: str
    title: str
    body: str
    once: str = ""
    id: str = ""

    def to_json(self) -> dict[str, str]:
        """For the process that sends it."""
        return asdict(self)


@dataclass
class Messages:
    """The messages of one attempt. `record` is the newest that is known, this attempt's part in it
    last, once it has the lease; `reached` the newest step of the attempts before, as far as
    anybody here knows it."""

    plan: Plan
    attempt: str
    record: RunRecord = field(default_factory=RunRecord)
    reached: int = 0
    now: Callable[[], float] = clock.now

    def begun(self, step: int, steps: int) -> Message:
        """The attempt trains: for a command's first one that it has started at this step, for a
        later one that the run has recovered."""
        *before, now = self.record.attempts
        of = f" of {steps}" if steps else ""
        if not before or before[-1].command != now.command:
            what = f"Training goes on at step {step}{of}" if step else "Training has begun"
            return self._message("started", f"trains in {_place(now)}", f"{what}.", now.command)
        last = before[-1]
        between = duration_words(self.now() - last.last_known)
        lost = f"{_end(last)} at step {max(self.reached, step)}"
        on = f"the run went on at step {step}{of} in {_place(now)} after {between}"
        text = f"{lost}, and {on}. There is nothing to do."
        return self._message("recovered", f"goes on at step {step}{of}", text)

    def preempted(self, reason: str, step: int, committed: int) -> Message:
        """The machine goes away."""
        what = f"{reason}. {_committed(committed)} What has been trained since is being saved"
        means = (
            "the run goes on by itself on another machine"
            if self.plan.on_clouds
            else "run the same command again to go on"
        )
        return self._message("preempted", f"is preempted at step {step}", f"{what}; {means}.")

    def leaves(self, step: int, committed: int) -> Message:
        """The attempt goes to other machines, as xrun's plugin in SkyPilot has planned it."""
        text = (
            f"Other machines cost less, or keep the deadline. {_committed(committed)} What has been"
            " trained since is being saved; the run goes on by itself."
        )
        return self._message("preempted", f"leaves its machine at step {step}", text)

    def stalled(self, sentence: str, committed: int) -> Message:
        """The training processes give no sign of life and were ended."""
        what = f"{sentence} The ranks were ended and are started again. {_committed(committed)}"
        means = "If it happens again, look at their stacks in the log."
        return self._message("stalled", "hangs", f"{what} {means}", log=True)

    def budget(self, sentence: str) -> Message:
        """A limit of the recipe has ended the run."""
        what = f"{sentence} {_committed(self.record.newest_step)} The run has stopped."
        key = "usd" if "budget.usd" in sentence else "hours"
        way = f"To go on with a larger one: xrun resume {self._address} -s budget.{key}=..."
        limits = self.plan.limits
        once = f"{limits.usd} {limits.hours}"
        return self._message("budget", "has spent its budget", f"{what} {way}", once)

    def finished(self) -> Message:
        """The run has come to its end."""
        end = self.record.finished
        assert end is not None, "only what is finished is told as such"
        scores = [f"{n} {v:.4g}" for n, v in sorted(end.metrics.items()) if n.startswith("val/")]
        what = f"Step {end.step} was the last{': ' + ', '.join(scores) if scores else ''}."
        there = self.plan.model_address or self.plan.folder / "model"
        return self._message("finished", "is finished", f"{what} The model: {there}", str(end.step))

    def failed(self, what: str, hint: str = "") -> Message:
        """The run has ended, and nothing starts it again."""
        told = f"{what[:_LONGEST].rstrip('.')}. {hint[:_LONGEST]}".strip()
        kept = _committed(self.record.newest_step)
        means = f"{kept} The run does not start again by itself."
        return self._message("failed", "has failed", f"{told} {means}", log=True)

    @property
    def _address(self) -> str:
        """How the run is called from other machines, as far as they can reach it."""
        return str(self.plan.place) if self.plan.address.durable else self.plan.run

    def _message(
        self, event: str, title: str, text: str, once: str | None = None, *, log: bool = False
    ) -> Message:
        usd = spending.dollars(self.record.attempts, self.now())
        cost = [f"${usd:.2f} so far."] if usd is not None else []
        ways = [f"xrun report {self._address}", *([f"xrun logs {self._address}"] if log else [])]
        body = "\n".join([text, *cost, *ways])
        run, about = self.plan.run, f"{event} {once or self.attempt}"
        return Message(event, f"xrun: {run} {title}", body, about, f"{run} {about}")


def _committed(step: int) -> str:
    return f"Step {step} is committed." if step >= 0 else "Nothing is committed yet."


def _place(attempt: AttemptRecord) -> str:
    """Where an attempt runs: its cloud and zone, on a machine of one's own the machine's name."""
    known = (attempt.cloud, attempt.zone or attempt.region, attempt.accelerators)
    there = " ".join(part for part in known if part)
    return there if attempt.cloud else attempt.host or "an unknown place"


def _end(attempt: AttemptRecord) -> str:
    """How an attempt came to its end that another one follows by itself."""
    reason = f" ({attempt.reason})" if attempt.reason and attempt.ended is not None else ""
    if not attempt.was_preempted:
        return f"The attempt in {_place(attempt)} failed{reason}"
    if attempt.reason == LEFT:
        return f"It left its machine in {_place(attempt)} for another one"
    if attempt.cloud:
        return f"It lost its machine in {_place(attempt)}{reason}"
    return f"It was ended from outside on {_place(attempt)}{reason}"
