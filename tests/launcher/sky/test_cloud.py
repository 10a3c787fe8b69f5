"""A launch that is repeated, or killed anywhere, ends with one job; on SkyPilot's real API server,
which counts.

Covers `xrun.launcher.sky.jobs`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deadly_proxy import DeadlyProxy
from support.launchers import Launchers
from support.sky_home import ApiServer, SkyHome
from xrun.launcher.record import read_launch
from xrun.run.folder import RunFolder

# A job's files are sent with rsync.
pytestmark = [pytest.mark.cloud, pytest.mark.e2e]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyHome]:
    """A person with an API server. Nebius' library is not installed, so SkyPilot asks for a machine
    again and again: a job lives until it is cancelled. (AWS's is, for the tests of buckets: there
    a job ends at once, for want of credentials.)"""
    home = SkyHome(tmp_path_factory.mktemp("sky"), "jobs: {controller: {consolidation_mode: true}}")
    with ApiServer(home):
        yield home


@pytest.fixture(scope="module")
def proxy(home: SkyHome) -> Iterator[DeadlyProxy]:
    with DeadlyProxy(int(home.environment["SKYPILOT_API_SERVER_LOCAL_PORT"])) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def launchers(
    home: SkyHome, proxy: DeadlyProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Launchers]:
    with Launchers(home, tmp_path_factory.mktemp("projects"), proxy.url) as launchers:
        yield launchers


def record_of(project: Path, run: str) -> int | None:
    record = read_launch(RunFolder(project / "runs" / run))
    return record.job if record else None


def test_launching_twice_pays_once(launchers: Launchers, proxy: DeadlyProxy) -> None:
    """The second launch finds the first one's job; the record says what was seen when it was
    launched."""
    proxy.arm()
    project = launchers.project("twice")
    first = launchers.start(project, "twice")
    assert launchers.wait(first) == 0, launchers.said(first)
    second = launchers.start(project, "twice")
    assert launchers.wait(second) == 0, launchers.said(second)
    ((job, _, live),) = launchers.jobs("twice")
    assert live
    assert f"managed job {job}" in launchers.said(first)
    assert "launched already" in launchers.said(second)
    record = json.loads((project / "runs/twice/launch.json").read_text())
    assert record["job"] == job
    assert record["price"]["usd_per_hour"] == 23.6
    assert record["price"]["date"]
    launchers.cancel("twice")


def test_a_program_pays_for_nothing_without_a_yes(home: SkyHome, launchers: Launchers) -> None:
    """`xrun.start` says the price first."""
    project = launchers.project("program")
    program = "import xrun; xrun.start('recipes/small.yaml', {'name': 'program'})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env=home.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "would be launched on nebius" in said
    assert "an hour, and nobody has agreed to that. Say yes=True to agree;" in said
    [run] = (project / "runs").iterdir()
    assert launchers.jobs(run.name) == []


def test_waiting_for_machines_is_told(home: SkyHome, launchers: Launchers) -> None:
    """By the job's state, until it has some or has ended."""
    assert launchers.launch(launchers.project("waits"), "waits") == 0
    ((job, _, _),) = launchers.jobs("waits")
    code = "import sys; from xrun.launcher.sky.jobs import wait_until_begun as wait\n"
    code += "wait('waits', int(sys.argv[1]), lambda text: print(text, flush=True))"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(job)],
        env=home.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stdout is not None
        said = waiting.stdout.readline()
        assert said.startswith(f"Waiting for machines for waits: the job {job} is ")
        launchers.cancel("waits")
        waiting.stdout.read()
    assert waiting.returncode == 0


def test_two_launchers_at_once_make_one_job(launchers: Launchers, proxy: DeadlyProxy) -> None:
    proxy.arm()
    project = launchers.project("both")
    both = [launchers.start(project, "both") for _ in range(2)]
    assert [launchers.wait(each) for each in both] == [0, 0]
    ((job, _, _),) = launchers.jobs("both")
    assert record_of(project, "both") == job
    assert any("Another process launches both now" in launchers.said(each) for each in both)
    launchers.cancel("both")


def survives(
    launchers: Launchers, proxy: DeadlyProxy, run: str, at: int | str, *, heard: bool
) -> str:
    """A launcher killed at its call `at`, then the same command again: one job, and the record
    knows it.

    Returns the call, or "" if the launcher was done before it.
    """
    project = launchers.project(run)
    victim = launchers.start(project, run)
    proxy.arm(victim, at, heard=heard)
    ended, calls = launchers.wait(victim), list(proxy.calls)
    assert ended in (-9, 0), launchers.said(victim)
    proxy.arm()
    again = launchers.start(project, run)
    assert launchers.wait(again) == 0, launchers.said(again)
    jobs = launchers.jobs(run)
    assert len(jobs) == 1, (at, heard, calls[-1], jobs, launchers.said(again))
    assert record_of(project, run) == jobs[0][0]
    launchers.cancel(run)
    return calls[-1] if ended else ""


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
def test_a_launcher_killed_at_the_call_that_pays(
    launchers: Launchers, proxy: DeadlyProxy, heard: bool
) -> None:
    """Before the server hears of the job, and when it has heard and the launcher does not know: one
    job in the end."""
    assert survives(launchers, proxy, f"pays-{heard}".lower(), "POST /jobs/launch", heard=heard)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_launcher_killed_at_each_of_its_calls(launchers: Launchers, proxy: DeadlyProxy) -> None:
    """50 launchers, killed at the first call, the second, ... the last, and from the first on
    again: no orphan, no double."""
    at, heard = 1, False
    for number in range(50):
        call = survives(launchers, proxy, f"soak-{number}", at, heard=heard)
        print(
            f"{number + 1}: {call or 'not killed'}{' heard' if heard else ''}: one job", flush=True
        )
        at, heard = (1, False) if not call else (at + heard, not heard)
