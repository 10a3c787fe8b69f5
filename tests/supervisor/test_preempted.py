"""A pod's attempt is asked to save before the pod goes: real processes, real signals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.running import PER_STEP, Project, record, steps_of, until
from xrun import environment
from xrun.supervisor.preempted import REASON, attempts_of, main


def test_the_attempt_saves_and_is_waited_for(tmp_path: Path) -> None:
    """When it returns the state is committed, with the reason; the job comes back by exit 75."""
    project = Project(tmp_path)
    plan = project.plan()
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    (project.home / plan.run).mkdir(parents=True)
    path = project.home / plan.run / "plan.json"
    path.write_text(plan.to_json())
    attempt = subprocess.Popen(
        [*environment.PYTHON, "-m", "xrun.supervisor.entrypoint", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    until((tmp_path / "held").exists, "the hold")
    assert attempts_of(path) == [attempt.pid]
    assert main(str(path)) == 0
    assert attempts_of(path) == []
    said = attempt.communicate()[1]
    assert attempt.returncode == 75, said
    assert f"{REASON}: saving, then stopping." in said
    last = record(project.run)["attempts"][-1]
    assert (last["code"], last["kind"], last["reason"]) == (75, "stopped", REASON)
    assert max(steps_of(project.run)) == 8, "the step at hand"
    assert list(path.parent.glob("stop-*")) == []


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_process_that_does_not_end_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """And another plan's attempts are let alone."""
    path, other = tmp_path / "plan.json", tmp_path / "other.json"
    words = [sys.executable, "-c", STUBBORN, "xrun.supervisor.entrypoint"]
    processes = [
        subprocess.Popen([*words, str(each)], stdout=subprocess.PIPE) for each in (path, other)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        assert main(str(path), seconds=0.3) == 0
        assert [process.poll() for process in processes] == [None, None]
        written = {each.name for each in tmp_path.glob("stop-*")}
        assert written == {f"stop-{processes[0].pid}.json"}
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_where_nothing_runs_it_ends_at_once(tmp_path: Path) -> None:
    assert main(str(tmp_path / "plan.json")) == 0
