"""One rank's life: what it leaves behind for the entrypoint."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from support.paths import SOURCES
from support.running import PER_STEP, Project, until
from xrun.files import read_json
from xrun.run.folder import RunFolder


def test_a_failure_is_written_down(tmp_path: Path) -> None:
    """A later exception of a component leaves one sentence for the entrypoint, and its traceback in
    the rank's log, which a person who watches does not have to read."""
    project = Project(tmp_path)
    project.trap("raise", call=3 * PER_STEP, stays=True)
    done = project.attempt("checkpoint.every=100 steps")
    assert done.code == 2
    assert "RuntimeError: the component is broken" in done.err
    assert "Traceback" not in done.err
    assert "Full traceback:" in done.err
    (end,) = project.run.path.glob("logs/*/end-0.json")
    told = (read_json(end, dict) or {})["failure"]
    assert (told["code"], told["end"], told["traceback"], told["step"]) == (1, "own", True, 2)
    assert "Traceback" in end.with_name("rank0.log").read_text()


def test_an_error_with_a_way_out_has_no_traceback(tmp_path: Path) -> None:
    """An error that a person can act on is one sentence, also in the rank's log."""
    project = Project(tmp_path)
    project.trap("nan", call=1)
    done = project.attempt()
    assert done.code == 6
    assert "Lower train.optimizer.lr" in done.err
    assert "Traceback" not in done.err + project.run.log_text(None, 0)


def test_a_rank_without_a_lease_trains_nothing(tmp_path: Path) -> None:
    """A rank whose attempt does not hold the lease ends with 4, and nothing is written to the
    store."""
    project = Project(tmp_path)
    plan = project.plan()
    folder = RunFolder(plan.folder)
    path = folder.write_plan(plan)
    folder.logs("nobody").mkdir(parents=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": SOURCES,
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "xrun.training.rank", str(path), "nobody"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 4, done.stderr
    assert not folder.state.exists()
    end = read_json(folder.logs("nobody") / "end-0.json", dict)
    assert "taken over" in end["failure"]["message"]


def test_ctrl_c_alone_does_not_end_a_rank(tmp_path: Path) -> None:
    """SIGINT reaches every process of a terminal; a rank ignores it, since the entrypoint says what
    it means."""
    import os
    import threading

    project = Project(tmp_path)
    project.trap("hold", call=3 * PER_STEP)

    def interrupt() -> None:
        os.kill(
            int(
                until(
                    lambda: (tmp_path / "held").exists() and (tmp_path / "held").read_text(),
                    "the hold",
                )
            ),
            signal.SIGINT,
        )
        (tmp_path / "go").touch()

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = project.attempt()
    thread.join()
    assert done.code == 0, done.err
