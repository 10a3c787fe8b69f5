"""`SkyCloud`: a plan runs as a managed job of SkyPilot, which starts it again after each
preemption.

Launching is safe to repeat. The job's name is the run's id, what is about to happen is written down
before it does, and a launcher looks for a job of that name, and for a request that the API server
still works on, before it asks for one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...backoff import Backoff
from ...bar import bar
from ...errors import CloudUnavailable, LaunchError, StoppedOnPurpose, XrunError
from ...run.folder import RunFolder
from ...run.plan import Plan
from ...run.record import RunRecord
from ..record import LaunchRecord, one_launcher, read_launch, write_launch
from ..secrets import secret_names, secret_values
from .client import check_system, skypilot
from .jobs import (
    Job,
    cancel_job,
    job_of,
    jobs,
    print_log,
    requests_for,
    submit,
    wait_until_begun,
    wait_until_ended,
)
from .launch import Launch, prepare
from .pool import Pool

SETTLE = 10.0
"""Seconds in which a request of a launcher that was killed while it sent it must show up at the API
server."""
_BACKOFF = Backoff(first=0.5, longest=0.5)
_ENDS = {"CANCELLED": StoppedOnPurpose.exit_code, "FAILED_NO_RESOURCE": CloudUnavailable.exit_code}


class SkyCloud:
    """Launches managed jobs, or finds them launched.

    `confirm` is asked about the very launch that follows, before anything is paid for; what it
    raises ends it.
    `say` takes lines for people. `any_memory`: also machines on which the step does not fit.
    `pool`: jobs are handed to its machines.
    """

    def __init__(
        self,
        *,
        confirm: Callable[[Launch], None] = lambda launch: None,
        detach: bool = False,
        say: Callable[[str], None] = print,
        environ: Mapping[str, str] = os.environ,
        settle: float = SETTLE,
        any_memory: bool = False,
        pool: Pool | None = None,
    ) -> None:
        self.any_memory, self.pool = any_memory, pool
        self.confirm, self.detach, self.say = confirm, detach, say
        self.environ, self.settle = environ, settle

    def run(self, plan: Plan) -> int:
        """See Cloud. Follows the log until the job has ended, unless `detach`."""
        folder = RunFolder(plan.folder)
        if finished(folder, plan):
            folder.record().check_exported(plan.run)
            self.say(f"{plan.run} is finished; `xrun report {plan.run}` tells how.")
            return 0
        while True:
            job, found = self.launch(plan)
            self.say(
                f"Run {plan.run}: managed job {job}.\n  log      xrun logs -f {plan.run}"
                f"\n  end it   xrun cancel {plan.run}"
            )
            if self.detach:
                return 0
            ended = self.follow(plan.run, job)
            if ended is None or ended.status == "SUCCEEDED":
                return 0
            record = record_of(folder)
            paused = ended.status not in _ENDS and any(
                each.is_paused for each in record.attempts[-1:]
            )
            step = plan.pause_step(record.steps_per_epoch)
            there = step is not None and record.newest_step >= step
            if found and paused and not there:
                self.say(f"The job {job} was for an earlier rung; {plan.run} needs another one.")
                continue
            reason = record.attempts[-1].reason if paused and there else ended.reason
            self.say(f"The job {job} has ended: {ended.status}. {reason}".strip())
            return _ENDS.get(ended.status) or last_code(record)

    def launch(self, plan: Plan) -> tuple[int, bool]:
        """The managed job of this run, launched now unless there is one, and whether there was.

        Raises:
            LaunchError: it cannot be launched; nothing is paid for.
        """
        folder = RunFolder(plan.folder)
        with one_launcher(folder, self.say):
            found = self.find(folder)
            if found is not None and found.status == "CANCELLING":
                raise LaunchError(
                    f"The job {found.id} of {plan.run} is being cancelled.",
                    "Try again when it has ended.",
                )
            if found is not None:
                self.say(f"{plan.run} is launched already.")
            job = found or self._submit(plan, folder)
            known = read_launch(folder) or LaunchRecord(plan.run, asked=time.time())
            write_launch(folder, replace(known, request=known.request or "unknown", job=job.id))
        return job.id, found is not None

    def find(self, folder: RunFolder) -> Job | None:
        """The job that runs this run now, whoever has launched it and however far that launcher
        came."""
        record, end = read_launch(folder), time.monotonic() + self.settle
        tries = 0
        while True:
            for request in requests_for(folder.run):
                self._await(request)
            job = only_one_job(folder.run)
            if job is not None or record is None or not record.uncertain or time.monotonic() > end:
                return job
            tries += 1
            time.sleep(_BACKOFF.seconds(tries))

    def follow(self, run: str, job: int) -> Job | None:
        """Print the job's log until it has ended; None where somebody has stopped that before."""
        try:
            while True:
                with bar(f"Waiting for machines for {run}") as shown:
                    wait_until_begun(run, job, shown.say)
                print_log(job, follow=True)
                if ended := wait_until_ended(run, job):
                    return ended
        except KeyboardInterrupt:
            self.say(
                f"\n{run} goes on without this terminal. Follow it: xrun logs -f {run}. End it:"
                f" xrun cancel {run}."
            )
            return None

    def _submit(self, plan: Plan, folder: RunFolder) -> Job:
        """Settle what is launched and ask about it; then write down what is about to be asked, ask,
        and write down what was answered."""
        check_system()
        secrets = secret_values(secret_names(plan.load_recipe()), self.environ)
        launch = prepare(plan, self.environ, any_memory=self.any_memory)
        self.confirm(launch)
        if self.pool is not None:
            launch = replace(launch, task=self.pool.job(launch))
        folder.write_plan(launch.plan)
        launch.write()
        task, offers = sky_task(launch.task, secrets), launch.offers
        record = LaunchRecord(
            plan.run,
            time.time(),
            cargo=str(launch.cargo.folder),
            price=offers.best.summary(),
            prices=tuple(offers.prices),
        )
        write_launch(folder, record)
        with bar("SkyPilot takes the project and starts the job"):
            request = submit(task, plan.run, self.pool.name if self.pool else None)
            write_launch(folder, replace(record, request=request))
            own = job_of(request)
        return only_one_job(plan.run) or ended_job(plan.run, own)

    def _await(self, request: str) -> None:
        """Wait for a request of another launcher; if it is refused, that was that launcher's
        news."""
        self.say("The API server still works on an earlier launch of this run; waiting for it.")
        try:
            job_of(request)
        except LaunchError:
            return


def record_of(folder: RunFolder) -> RunRecord:
    """What is committed of a run; nothing where that cannot be read now."""
    try:
        return folder.record()
    except XrunError:
        return RunRecord()


def last_code(record: RunRecord) -> int:
    """The code that a failed run's last attempt has recorded; 1 where it could record none."""
    return (record.attempts[-1].code if record.attempts else None) or 1


def only_one_job(run: str) -> Job | None:
    """The job that runs a run now. Launchers on two machines may have asked at the same moment:
    then the oldest job stays."""
    live = jobs(run, live=True)
    for job in live[:-1]:
        cancel_job(job.id)
    return live[-1] if live else None


def ended_job(run: str, number: int | None) -> Job:
    """A job that has ended before anybody could look."""
    job = next((each for each in jobs(run) if each.id == number), None)
    if job is None:
        raise LaunchError(
            f"SkyPilot launched no job for {run}.", "`sky api logs` tells what it did."
        )
    return job


def sky_task(config: Mapping[str, Any], secrets: Mapping[str, str]) -> Any:
    """SkyPilot's task with the secrets in it, validated against its schema."""
    with skypilot() as sky:
        return sky.Task.from_yaml_config({**config, "secrets": dict(secrets)})


def finished(folder: RunFolder, plan: Plan) -> bool:
    """Whether the run has nothing left to do; where that cannot be told now, the attempt will
    tell."""
    try:
        return folder.plan_file.exists() and not folder.record().is_left(plan)
    except XrunError:
        return False
