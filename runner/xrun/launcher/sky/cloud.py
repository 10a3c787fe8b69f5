"""`SkyCloud`: a plan runs as a managed job of SkyPilot, which starts it again after each
preemption.

Launching is safe to repeat. The job's name is the run's id, what is about to happen is written down
before it does, and a launcher looks for a job of that name, and for a request that the API server
still works on, before it asks for one.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CloudUnavailable, LaunchError, StoppedOnPurpose, XrunError
from ...run.folder import RunFolder, is_finished, write_plan
from ...run.plan import Plan
from .. import bundle as cargo
from ..offers import Offers
from ..record import LaunchRecord, one_launcher, read_launch, write_launch
from ..secrets import secret_names, secret_values
from ..throughput import known_throughput
from . import jobs as sky_jobs
from .client import skypilot
from .jobs import Job
from .offers import find_offers
from .task import launch_command, task_config, task_yaml

SETTLE = 10.0
"""Seconds in which a request of a launcher that was killed while it sent it must show up at the API
server."""
_ENDS = {"CANCELLED": StoppedOnPurpose.exit_code, "FAILED_NO_RESOURCE": CloudUnavailable.exit_code}


class SkyCloud:
    """Launches managed jobs, or finds them launched.

    `confirm` is asked with the offers before anything is paid for; what it raises ends the launch.
    `say` takes lines for people.
    """

    def __init__(
        self,
        *,
        confirm: Callable[[Offers], None] = lambda offers: None,
        detach: bool = False,
        say: Callable[[str], None] = print,
        environ: Mapping[str, str] = os.environ,
        settle: float = SETTLE,
    ) -> None:
        self.confirm, self.detach, self.say, self.environ, self.settle = (
            confirm,
            detach,
            say,
            environ,
            settle,
        )

    def run(self, plan: Plan) -> int:
        """See Cloud. Follows the log until the job has ended, unless `detach`."""
        folder = RunFolder(plan.folder)
        if finished(folder, plan):
            self.say(f"{plan.run} is finished; `xrun report {plan.run}` tells how.")
            return 0
        job = self.launch(plan)
        self.say(
            f"Run {plan.run}: managed job {job}.\n  log      xrun logs -f {plan.run}\n  end it  "
            f" xrun cancel {plan.run}"
        )
        return 0 if self.detach else self.follow(folder, job)

    def launch(self, plan: Plan) -> int:
        """The managed job of this run, launched now unless there is one.

        Raises:
            LaunchError: it cannot be launched; nothing is paid for.
        """
        folder = RunFolder(plan.folder)
        with one_launcher(folder, self.say):
            job = self.find(folder)
            if job is None:
                job = self._submit(plan, folder)
            elif job.status == "CANCELLING":
                raise LaunchError(
                    f"The job {job.id} of {plan.run} is being cancelled.",
                    "Try again when it has ended.",
                )
            else:
                self.say(f"{plan.run} is launched already.")
            known = read_launch(folder) or LaunchRecord(plan.run, asked=time.time())
            write_launch(
                folder, dataclasses.replace(known, request=known.request or "unknown", job=job.id)
            )
        return job.id

    def find(self, folder: RunFolder) -> Job | None:
        """The job that runs this run now, whoever has launched it and however far that launcher
        came."""
        record, end = read_launch(folder), time.monotonic() + self.settle
        while True:
            for request in sky_jobs.requests_for(folder.run):
                self._await(request)
            job = only_one_job(folder.run)
            if job is not None or record is None or not record.uncertain or time.monotonic() > end:
                return job
            time.sleep(0.5)

    def follow(self, folder: RunFolder, job: int) -> int:
        """Print the job's log until it has ended; the exit code of the run."""
        run = folder.run
        try:
            sky_jobs.print_log(job, follow=True)
        except KeyboardInterrupt:
            self.say(
                f"\n{run} goes on without this terminal. Follow it: xrun logs -f {run}. End it:"
                f" xrun cancel {run}."
            )
            return 0
        ended = sky_jobs.wait_until_ended(run, job)
        if ended.status == "SUCCEEDED":
            return 0
        self.say(f"The job {job} has ended: {ended.status}. {ended.reason}".strip())
        return _ENDS.get(ended.status) or last_code(folder)

    def _submit(self, plan: Plan, folder: RunFolder) -> Job:
        """Write down what is about to be asked, ask, write down what was answered."""
        secrets = secret_values(secret_names(plan.load_recipe()), self.environ)
        offers = find_offers(plan, known_throughput(plan))
        self.confirm(offers)
        write_plan(folder, plan)
        packed, config = pack_job(plan, offers, self.environ)
        task = sky_task(config, secrets)
        prices = tuple(dataclasses.asdict(price) for price in offers.prices)
        record = LaunchRecord(
            plan.run, time.time(), cargo=str(packed), price=offers.best.summary(), prices=prices
        )
        write_launch(folder, record)
        request = sky_jobs.submit(task, plan.run)
        write_launch(folder, dataclasses.replace(record, request=request))
        own = sky_jobs.job_of(request)
        return only_one_job(plan.run) or ended_job(plan.run, own)

    def _await(self, request: str) -> None:
        """Wait for a request of another launcher; if it is refused, that was that launcher's
        news."""
        self.say("The API server still works on an earlier launch of this run; waiting for it.")
        try:
            sky_jobs.job_of(request)
        except LaunchError:
            return


def last_code(folder: RunFolder) -> int:
    """The code that a failed run's last attempt has recorded; 1 where it could record none."""
    try:
        head = folder.head()
    except XrunError:
        return 1
    attempts = head.record.get("attempts", []) if head else []
    return (attempts[-1].get("code") if attempts else None) or 1


def only_one_job(run: str) -> Job | None:
    """The job that runs a run now. Launchers on two machines may have asked at the same moment:
    then the oldest job stays."""
    live = sky_jobs.jobs(run, live=True)
    for job in live[:-1]:
        sky_jobs.cancel_job(job.id)
    return live[-1] if live else None


def ended_job(run: str, number: int | None) -> Job:
    """A job that has ended before anybody could look."""
    job = next((each for each in sky_jobs.jobs(run) if each.id == number), None)
    if job is None:
        raise LaunchError(
            f"SkyPilot launched no job for {run}.", "`sky api logs` tells what it did."
        )
    return job


def pack_job(
    plan: Plan, offers: Offers, environ: Mapping[str, str] = os.environ
) -> tuple[Path, dict[str, Any]]:
    """The run's cargo, and the task that takes it along; secrets are names without values."""
    candidate = plan.load_recipe().hardware.any_of[offers.best.candidate]
    packed = cargo.pack(plan, offers.prices, candidate.setup)
    return packed, task_config(plan, offers, packed, environ)


def job_text(plan: Plan, offers: Offers) -> str:
    """The task as YAML, also written to the run's folder, and the command that launches it from
    there."""
    _, config = pack_job(plan, offers)
    path = plan.folder / "job.yaml"
    path.write_text(task_yaml(config))
    return f"{task_yaml(config)}\n# {launch_command(config, str(path))}"


def sky_task(config: Mapping[str, Any], secrets: Mapping[str, str]) -> Any:
    """SkyPilot's task with the secrets in it, validated against its schema."""
    with skypilot() as sky:
        return sky.Task.from_yaml_config({**config, "secrets": dict(secrets)})


def finished(folder: RunFolder, plan: Plan) -> bool:
    """Whether the run has nothing left to do; where that cannot be told now, the attempt will
    tell."""
    try:
        head = folder.head() if (folder.path / "plan.json").exists() else None
    except XrunError:
        return False
    return head is not None and is_finished(plan, head.record)
