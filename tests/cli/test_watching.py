"""A run is watched and its log followed from another terminal while it is trained here, killed in
between. Covers `xrun.cli.watching` and `xrun.run.following`.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
from pathlib import Path

from support.running import PER_STEP, Project, children, ended, until
from xrun.launcher.local import only_one
from xrun.run.following import follow


def test_a_run_is_followed_through_a_kill_to_its_end(tmp_path: Path) -> None:
    """`logs -f` prints every attempt's log to the run's last line, `watch` what happens; both end
    with the run, with 0."""
    project = Project(tmp_path)
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    command = project.start("recipes/tiny.yaml")
    until((tmp_path / "held").exists, "the hold")
    run = project.run.run
    with (tmp_path / "log").open("w") as log, (tmp_path / "seen").open("w") as lines:
        followed = project.start("logs", "-f", run, stdout=log)
        watched = project.start("watch", run, "--every", "0.1", stdout=lines)
    until(lambda: "Starting at step 0" in (tmp_path / "log").read_text(), "the first attempt's log")
    until(lambda: f"{run} running: step 7" in (tmp_path / "seen").read_text(), "the state")
    [supervisor] = children(command.pid)
    os.kill(supervisor, signal.SIGKILL)
    assert ended(command).code == 0
    for each in (followed, watched):
        done = ended(each)
        assert (done.code, done.err) == (0, "")
    told = (tmp_path / "log").read_text()
    assert "Going on from step 5." in told
    logs = sorted((project.run.path / "logs").glob("*/rank0.log"))
    assert len(logs) == 2
    assert told == "".join(path.read_text() for path in logs)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert [line for line in seen if line.startswith("attempt 1 ended (outside")]
    assert seen[-1].startswith(f"{run} finished: step 20, loss ")
    again = project.xrun("logs", "-f", run)
    assert again.out == logs[-1].read_text(), "of one that has ended, the newest attempt's"


def test_the_exit_code_of_watch_is_the_runs(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = project.xrun("recipes/tiny.yaml", "-s", "train.optimizer.lr=1e30")
    assert done.code == 6
    assert project.xrun("watch", project.run.run).code == 6


def test_on_a_terminal_one_line_is_drawn_over(tmp_path: Path) -> None:
    """It fits the terminal's width, and ends with a new line."""
    project = Project(tmp_path)
    assert project.xrun("recipes/tiny.yaml", "-s", "train.steps=5").code == 0
    main, side = pty.openpty()
    process = project.start("watch", project.run.run, stdout=side, environ={"COLUMNS": "40"})
    os.close(side)
    text = b""
    try:
        while piece := os.read(main, 4096):
            text += piece
    except OSError:  # how a terminal says that nobody writes any more
        pass
    assert ended(process).code == 0
    assert text.startswith(b"\r\x1b[2K" + project.run.run.encode())
    assert len(text.strip()) - len(b"\x1b[2K") <= 39
    assert text.endswith(b"\n")
    os.close(main)


def test_what_is_torn_is_told_whole(tmp_path: Path) -> None:
    """A character of several bytes that is half there waits for its other half."""
    project = Project(tmp_path)
    plan = project.plan()
    folder = project.home / plan.run / "logs" / "20260101T000000-a"
    folder.mkdir(parents=True)
    log = folder / "rank0.log"
    log.write_bytes("é".encode()[:1])
    (project.home / plan.run / "plan.json").write_text(plan.to_json())
    runs, looks = contextlib.ExitStack(), list[float]()
    runs.enter_context(only_one(project.run))

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            log.write_bytes("é and more\n".encode())
        else:
            runs.close()

    assert "".join(follow(project.run, 0, wait)) == "é and more\n"
    assert len(looks) == 2
