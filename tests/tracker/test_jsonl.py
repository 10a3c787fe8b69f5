"""The tracker that is always on: no point lost, none doubled, on real files and under a real
SIGKILL."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import SOURCES
from xrun.files import write_bytes
from xrun.run.points import parse, read_points
from xrun.tracker.jsonl import JsonlTracker
from xrun.tracker.protocol import Dropped


class Clock:
    """A second passes whenever somebody asks, or what a test says."""

    now = 100.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def attempt(
    folder: Path, step: int, clock: Clock | None = None, name: str = ""
) -> tuple[JsonlTracker, Dropped | None]:
    tracker = JsonlTracker(folder, clock or Clock())
    own = {"attempt": name} if name else {}
    return tracker, tracker.start({"run": "digits", **own}, step)


def logged(folder: Path) -> list[int]:
    return [point["step"] for point in read_points(folder / "metrics.jsonl")]


def test_points_come_back_as_they_were_logged(tmp_path: Path) -> None:
    """Every point is a line with its step, its values and the time."""
    tracker, dropped = attempt(tmp_path / "run", 0)
    tracker.log(1, {"train/loss": 0.5, "train/samples": "0a"})
    tracker.log(1, {"val/loss": 0.25})
    tracker.finish()
    assert dropped is None
    assert read_points(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.5, "train/samples": "0a", "time": 102.0},
        {"step": 1, "val/loss": 0.25, "time": 103.0},
    ]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"] == "digits"


def test_lines_are_what_json_writes(tmp_path: Path) -> None:
    """Whatever is logged, a line is byte for byte what `json.dumps` makes of the point."""
    odd = {"a": 1e-7, "b": -0.0, "e": 2**70, "f": 'ü"\n\\', "ü": True, "g": None, "h": [1]}
    tracker, _ = attempt(tmp_path, 0, Clock())
    tracker.log(1, odd)
    line = json.dumps({"step": 1, **odd, "time": 102.0}) + "\n"
    assert (tmp_path / "metrics.jsonl").read_text() == line


def test_numbers_that_json_does_not_have_are_strings_there_and_numbers_here(tmp_path: Path) -> None:
    """A line with NaN or an infinity is JSON for every reader, and xrun's own reads the numbers;
    lines of an older xrun have them bare."""
    tracker, _ = attempt(tmp_path, 0, Clock())
    tracker.log(1, {"a": float("nan"), "b": float("inf"), "c": [float("-inf")], "d": "0a"})
    tracker.finish()
    path = tmp_path / "metrics.jsonl"
    (line,) = path.read_text().splitlines()
    refused = pytest.fail
    found = json.loads(line, parse_constant=refused)
    assert found == {
        "step": 1,
        "a": "NaN",
        "b": "Infinity",
        "c": ["-Infinity"],
        "d": "0a",
        "time": 102.0,
    }
    with path.open("a") as file:
        file.write('{"step": 2, "a": NaN, "b": -Infinity, "time": 103.0}\n')
    first, second = read_points(path)
    assert math.isnan(first["a"])
    assert math.isnan(second["a"])
    assert (first["b"], second["b"]) == (math.inf, -math.inf)


def test_going_back_drops_what_is_computed_again(tmp_path: Path) -> None:
    """After resuming at an older step each step is there once, and what was dropped is told: its
    last step and its seconds."""
    clock = Clock()
    first, _ = attempt(tmp_path, 0, clock)
    for step in range(1, 8):
        first.log(step, {"loss": 1.0})
    second, dropped = attempt(tmp_path, 4, clock)
    assert dropped == Dropped(last=7, seconds=3.0)
    for step in range(5, 10):
        second.log(step, {"loss": 2.0})
    assert logged(tmp_path) == list(range(1, 10))
    assert [point["loss"] for point in read_points(tmp_path / "metrics.jsonl")] == [1.0] * 4 + [
        2.0
    ] * 5


def test_seconds_lost_are_not_seconds_away(tmp_path: Path) -> None:
    """Hours without a machine between two attempts are not counted as training that is done
    again."""
    clock = Clock()
    first, _ = attempt(tmp_path, 0, clock)
    first.log(1, {})
    clock.now += 7200
    second, dropped = attempt(tmp_path, 1, clock)
    assert dropped is None
    second.log(2, {})
    second.log(3, {})
    clock.now += 7200
    _, dropped = attempt(tmp_path, 1, clock)
    assert dropped == Dropped(last=3, seconds=2.0)


def test_resuming_at_step_0_loses_everything_since_the_start(tmp_path: Path) -> None:
    """Where no point is kept the seconds count from the attempt's start."""
    clock = Clock()
    first, _ = attempt(tmp_path, 0, clock)
    first.log(1, {})
    first.log(2, {})
    assert attempt(tmp_path, 0, clock)[1] == Dropped(last=2, seconds=2.0)
    assert logged(tmp_path) == []


def test_resuming_at_the_last_point_drops_nothing(tmp_path: Path) -> None:
    """An attempt that goes on where the one before ended changes no byte of what is there."""
    first, _ = attempt(tmp_path, 0)
    first.log(1, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    second, dropped = attempt(tmp_path, 1)
    second.log(2, {})
    assert dropped is None
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert logged(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "tail",
    [b'{"step": 3, "lo', b"\x00\x00\x00", b'{"step": 3}', b"[]\n", b'{"loss": 1}\n', b'{"st\n'],
)
def test_a_torn_last_line_counts_as_nothing(tmp_path: Path, tail: bytes) -> None:
    """Half a line is neither read nor glued to the next one."""
    first, _ = attempt(tmp_path, 0)
    first.log(1, {})
    first.log(2, {})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert logged(tmp_path) == [1, 2]
    second, _ = attempt(tmp_path, 2)
    second.log(3, {"loss": 3.0})
    assert logged(tmp_path) == [1, 2, 3]
    assert all(
        parse(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    )


def test_a_kill_loses_no_line_that_was_logged(tmp_path: Path) -> None:
    """A process killed in the middle of its logging leaves every point that `log` had returned
    for."""
    code = """
import sys
from pathlib import Path
from xrun.tracker.jsonl import JsonlTracker
tracker = JsonlTracker(Path(sys.argv[1]))
tracker.start({}, 0)
for step in range(1, 10**9):
    tracker.log(step, {"loss": 1 / step})
    print(step, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": SOURCES},
    )
    assert child.stdout is not None
    for _ in range(200):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    said = [int(line) for line in child.communicate(timeout=60)[0].split("\n") if line]
    seen = logged(tmp_path)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= max([200, *said[:-1]])


def test_the_newest_commit_is_remembered(tmp_path: Path) -> None:
    """Another process finds the last commit's step and head; before any commit there is none."""
    tracker, _ = attempt(tmp_path, 0)
    assert tracker.last_commit() is None
    tracker.committed(3, "head-3")
    tracker.committed(5, "head-5")
    assert JsonlTracker(tmp_path).last_commit() == (5, "head-5")


def test_an_attempt_that_was_believed_dead_logs_into_nothing(tmp_path: Path) -> None:
    """The file that people read has each step once and is its successor's, whoever writes last;
    the newest commit stays the successor's too."""
    zombie, _ = attempt(tmp_path, 0, name="a")
    for step in range(1, 6):
        zombie.log(step, {"train/loss": 1.0})
    zombie.committed(4, "head-4")
    successor, dropped = attempt(tmp_path, 4, name="b")
    assert dropped == Dropped(last=5, seconds=1.0)
    for step in range(5, 8):
        successor.log(step, {"train/loss": 2.0})
        zombie.log(step + 1, {"train/loss": 1.0})
    successor.committed(7, "head-7")
    zombie.committed(6, "head-6")
    zombie.finish()
    successor.finish()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"]) for line in lines] == [
        *((step, "a") for step in range(1, 5)),
        *((step, "b") for step in range(5, 8)),
    ]
    assert JsonlTracker(tmp_path).last_commit() == (7, "head-7")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "7", '{"step": 3}'])
def test_a_damaged_witness_says_nothing(tmp_path: Path, text: str) -> None:
    """A committed.json that cannot be read is no witness and no error."""
    (tmp_path / "committed.json").write_text(text)
    assert JsonlTracker(tmp_path).last_commit() is None


def test_a_full_disk_neither_ends_training_nor_loses_a_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While nothing can be written points wait, one warning says so, and with room again all of
    them are there in order."""
    tracker, _ = attempt(tmp_path, 0)
    room, tracker._file = tracker._file, os.open("/dev/full", os.O_WRONLY)
    tracker.log(1, {})
    tracker.log(2, {})
    reason = "No space left on device"
    said = f"{tmp_path}/metrics.jsonl cannot be written ({reason}); points wait in memory."
    assert [record.getMessage() for record in caplog.records] == [said]
    tracker.committed(2, "head")  # cannot be synced, which ends nothing either
    tracker._file = room
    tracker.log(3, {})
    tracker.finish()
    assert logged(tmp_path) == [1, 2, 3]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A reader that has the old file open still sees all of it, and no temporary file stays."""
    path = tmp_path / "value.json"
    write_bytes(path, b"old" * 1000)
    with path.open("rb") as old:
        write_bytes(path, b"new")
        assert old.read() == b"old" * 1000
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
