"""What a person sees while an attempt trains; the clock is given, the files are real."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from xrun.machine.heartbeat import Heartbeat, heartbeat_file
from xrun.run.folder import RunFolder
from xrun.supervisor.progress import Progress


class Clock:
    """A clock that stands where it was set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def watch(folder: Path, stream: io.StringIO) -> tuple[Progress, Clock]:
    """Progress of a run of 100 steps with 8 samples each."""
    clock = Clock()
    (folder / "logs" / "a").mkdir(parents=True)
    progress = Progress(RunFolder(folder), "a", 8, stream, clock)
    configure(folder, 100)
    return progress, clock


def configure(folder: Path, steps: int) -> None:
    """What an attempt writes before its first step."""
    (folder / "config.json").write_text(json.dumps({"steps": steps}))


def log(folder: Path, step: int, more: Mapping[str, float] = MappingProxyType({})) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "train/loss": 0.5, **more}) + "\n")


def test_whole_lines_are_passed_on_once(tmp_path: Path) -> None:
    """What the first rank prints appears once, and a line that is still being written only when it
    is whole."""
    stream = io.StringIO()
    progress, clock = watch(tmp_path, stream)
    rank = tmp_path / "logs" / "a" / "rank0.log"
    rank.write_text("one\ntw")
    progress.update()
    assert stream.getvalue() == "one\n"
    rank.write_text("one\ntwo\n")
    clock.now = 1.0
    progress.update()
    progress.close()
    assert stream.getvalue() == "one\ntwo\n"


def test_what_a_component_prints_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    """Escape sequences are spelled; the bar, which is our own, is drawn as ever."""
    stream = Terminal()
    progress, _ = watch(tmp_path, stream)
    (tmp_path / "logs" / "a" / "rank0.log").write_text("\x1b[2J\u202egnp.exe\n")
    log(tmp_path, 47)
    progress.update()
    progress.close()
    assert stream.getvalue().startswith("\\u001b[2J\\u202egnp.exe\n")
    assert "\r" in stream.getvalue()
    assert "47/100" in stream.getvalue()


def test_an_evaluation_is_told(tmp_path: Path) -> None:
    """The steps stand still meanwhile: what the run does, and how far it is, is said."""
    stream = io.StringIO()
    progress, clock = watch(tmp_path, stream)
    log(tmp_path, 47)
    heart = Heartbeat(heartbeat_file(tmp_path / "logs" / "a", 0))
    heart.beat(12, 630)
    progress.update()
    heart.beat()
    clock.now = 20.0
    progress.update()
    assert stream.getvalue() == (
        "step 47/100: loss 0.5, evaluating batch 12 of 630, nothing committed yet\n"
        "step 47/100: loss 0.5, nothing committed yet\n"
    )


def test_another_machine_s_commit_is_not_forgotten(tmp_path: Path) -> None:
    """An attempt on a machine that has never seen the run says which step is committed, until it
    commits one itself."""
    stream = io.StringIO()
    progress, _ = watch(tmp_path, stream)
    progress.resumed = 45
    log(tmp_path, 47)
    progress.update()
    assert stream.getvalue() == "step 47/100: loss 0.5, step 45 committed\n"


def test_a_line_now_and_then_without_a_terminal(tmp_path: Path) -> None:
    """Without a terminal there is a line at most every ten seconds, with step, loss, speed, time
    left and age of the commit."""
    stream = io.StringIO()
    progress, clock = watch(tmp_path, stream)
    for step in range(1, 22):
        clock.now = float(step)
        log(tmp_path, step)
        progress.update()
    lines = stream.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "step 1/100",
        "step 11/100",
        "step 21/100",
    ]
    assert lines[-1] == "step 21/100: loss 0.5, 8 samples/s, 01:19 left, nothing committed yet"
    (tmp_path / "committed.json").touch()
    clock.now = 40.0
    progress.update()
    assert "committed 0 s ago" in stream.getvalue().splitlines()[-1]


def test_looking_is_rare(tmp_path: Path) -> None:
    """The files are looked at a few times a second, however often the entrypoint asks."""
    stream = io.StringIO()
    progress, clock = watch(tmp_path, stream)
    progress.update()
    (tmp_path / "logs" / "a" / "rank0.log").write_text("one\n")
    clock.now = 0.1
    progress.update()
    assert stream.getvalue() == ""
    clock.now = 0.3
    progress.update()
    assert stream.getvalue() == "one\n"


def test_what_the_ranks_measure_stands_beside_the_loss(tmp_path: Path) -> None:
    """Not every point has it: the newest that is there counts."""
    stream = io.StringIO()
    progress, clock = watch(tmp_path, stream)
    log(tmp_path, 1)
    progress.update()
    speed = {
        "speed/samples_per_second": 4.0,
        "speed/tokens_per_second": 4321.0,
        "speed/step_seconds": 2.0,
        "speed/data_wait_seconds": 0.5,
        "speed/mfu": 0.4321,
        "speed/memory_gib": 1.25,
        "speed/gpu_utilization": 97.0,
    }
    log(tmp_path, 11, speed)
    log(tmp_path, 12)
    clock.now = 11.0
    progress.update()
    assert stream.getvalue().splitlines()[-1] == (
        "step 12/100: loss 0.5, 8 samples/s, 4321 tokens/s, 43.2 % MFU, 1.25 GiB, GPU 97 %,"
        " 25 % waiting for data, 01:28 left, nothing committed yet"
    )


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal there is a bar, lines of the rank stand above it, and it ends at the newest
    step."""
    stream = Terminal()
    progress, clock = watch(tmp_path, stream)
    log(tmp_path, 1)
    progress.update()
    (tmp_path / "logs" / "a" / "rank0.log").write_text("step 50: val/loss 0.1\n")
    log(tmp_path, 100)
    clock.now = 1.0
    progress.update()
    progress.close()
    shown = stream.getvalue()
    assert "step 50: val/loss 0.1\n" in shown
    assert "100/100" in shown.splitlines()[-1]


def test_nothing_to_show_is_no_error(tmp_path: Path) -> None:
    """Before the rank has written anything there is nothing to say, and nothing fails."""
    stream = io.StringIO()
    progress = Progress(RunFolder(tmp_path), "a", 8, stream, Clock())
    progress.update()
    progress.close()
    assert stream.getvalue() == ""


def test_points_without_a_configuration_are_no_error(tmp_path: Path) -> None:
    """A run whose config.json is damaged or gone still shows what its rank says."""
    stream = io.StringIO()
    progress, clock = watch(tmp_path, stream)
    (tmp_path / "config.json").write_text("{")
    log(tmp_path, 1)
    (tmp_path / "logs" / "a" / "rank0.log").write_text("one\n")
    progress.update()
    (tmp_path / "config.json").unlink()
    clock.now = 1.0
    progress.update()
    progress.close()
    assert "one\n" in stream.getvalue()


def test_an_attempt_before_has_nothing_to_show(tmp_path: Path) -> None:
    """What an attempt before has logged is not shown until this one begins, and then with this
    one's number of steps."""
    configure(tmp_path, 12)
    os.utime(tmp_path / "config.json", ns=(1, 1))
    log(tmp_path, 12)
    stream, clock = io.StringIO(), Clock()
    progress = Progress(RunFolder(tmp_path), "a", 8, stream, clock)
    progress.update()
    assert stream.getvalue() == ""
    configure(tmp_path, 20)
    clock.now = 1.0
    progress.update()
    assert stream.getvalue().startswith("step 12/20:")
