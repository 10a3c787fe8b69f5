"""The run's points in the store: a bare machine gets the whole log back, in few pieces, and nothing
twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from xrun.run import points
from xrun.run.record import Piece, RunRecord
from xrun.store.directory.store import DirectoryStore


class Machine:
    """A folder with a log, and commits of it as an attempt makes them."""

    def __init__(self, root: Path, store: DirectoryStore) -> None:
        self.path, self.store = root / "metrics.jsonl", store
        self.head = store.head() or store.commit(RunRecord().to_json(), None)

    def log(self, first: int, last: int) -> None:
        """Points of the steps from `first` to `last`."""
        with self.path.open("a") as file:
            for step in range(first, last + 1):
                file.write(json.dumps({"step": step, "train/loss": 1 / (step + 1)}) + "\n")

    def commit(self, step: int) -> None:
        """A checkpoint of `step`, whose record names the points up to it."""
        self.keep(points.extended(self.store, self.path, self.pieces, step))
        self.store.sweep()

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Commit that the log consists of these."""
        record = RunRecord(points=tuple(pieces))
        self.head = self.store.commit(record.to_json(), self.head)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What the store has of the log."""
        return RunRecord.of(self.head).points

    def restore(self, step: int) -> tuple[Piece, ...]:
        """What a machine does that goes on from `step`."""
        return points.restore(self.store, self.path, self.pieces, step)

    def steps(self) -> list[int]:
        """What the log holds."""
        return [json.loads(line)["step"] for line in self.path.read_text().splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "state", "run", "a1", "me")


@pytest.fixture
def machine(tmp_path: Path, store: DirectoryStore) -> Machine:
    (tmp_path / "first").mkdir()
    return Machine(tmp_path / "first", store)


def test_a_bare_machine_gets_the_log_back(
    machine: Machine, store: DirectoryStore, tmp_path: Path
) -> None:
    """Every point up to the committed step, byte for byte; the ones that were logged after it are
    not there yet."""
    for step in range(10, 101, 10):
        machine.log(step - 9, step + 3 if step == 100 else step)
        machine.commit(step)
    bare = Machine(tmp_path / "second", store)
    bare.restore(100)
    assert bare.steps() == list(range(1, 101))
    assert machine.path.read_bytes().startswith(bare.path.read_bytes())
    assert points.stored(store, machine.pieces, 100) == points.read_points(bare.path)


def test_points_that_came_during_the_save_wait_for_the_next_commit(machine: Machine) -> None:
    """Training goes on while a save is written: what it logs meanwhile belongs to the next commit,
    once."""
    machine.log(1, 25)
    machine.commit(10)
    assert [piece.last for piece in machine.pieces] == [10]
    machine.commit(20)
    machine.commit(20)
    machine.path.unlink()
    machine.restore(20)
    assert machine.steps() == list(range(1, 21))


def test_few_pieces_however_many_commits(machine: Machine) -> None:
    """Two hundred commits leave eight pieces, and each point was sent a few times."""
    sent = 0
    for step in range(1, 201):
        machine.log(step, step)
        machine.commit(step)
        sent += machine.pieces[-1].file.size
    size = machine.path.stat().st_size
    assert len(machine.pieces) <= 9
    assert sum(piece.file.size for piece in machine.pieces) == size
    assert sent < 9 * size


def test_going_back_to_an_older_step_cuts_the_log_there(machine: Machine) -> None:
    """The newest checkpoint was damaged: the log ends at the older one's step, and goes on from
    there without a gap."""
    for step in (10, 20, 30):
        machine.log(step - 9, step)
        machine.commit(step)
    machine.path.unlink()
    kept = machine.restore(20)
    assert machine.steps() == list(range(1, 21))
    assert all(piece.last <= 20 for piece in kept)
    machine.keep(kept)
    machine.log(21, 30)
    machine.commit(30)
    machine.path.unlink()
    machine.restore(30)
    assert machine.steps() == list(range(1, 31))


def test_what_this_machine_logged_after_the_step_stays_for_the_count(machine: Machine) -> None:
    """The tracker cuts it, and says how many steps are computed again."""
    machine.log(1, 17)
    machine.commit(10)
    machine.restore(10)
    assert machine.steps() == list(range(1, 18))


def test_lost_points_never_stop_a_training(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged piece costs the points from there on, with a warning."""
    machine.log(1, 100)
    machine.commit(100)
    machine.log(101, 101)
    machine.commit(101)
    last = machine.pieces[-1].file
    (machine.store.root / last.copies[0]).write_bytes(b"x" * last.size)
    machine.path.unlink()
    assert [piece.last for piece in machine.restore(101)] == [100]
    assert machine.steps() == list(range(1, 101))
    assert "Points after step 100 are lost" in caplog.text


def test_a_torn_line_is_nobodys_point(machine: Machine) -> None:
    """A kill in the middle of a line leaves half of it; it is neither sent nor restored."""
    machine.log(1, 3)
    with machine.path.open("a") as file:
        file.write('{"step": 4, "tr')
    machine.commit(4)
    machine.path.unlink()
    machine.restore(4)
    assert machine.steps() == [1, 2, 3]


def train(step: int, attempt: str = "") -> dict[str, Any]:
    """A point of training, of this attempt or of nobody's."""
    return {"step": step, "train/loss": 1.0, **({"attempt": attempt} if attempt else {})}


def evaluated(step: int, attempt: str) -> dict[str, Any]:
    return {"step": step, "val/loss": 1.0, "attempt": attempt}


@pytest.mark.parametrize(
    ("logged", "counting"),
    [
        ([train(1), train(2), train(2)], [0, 1, 2]),  # of an older xrun all count
        ([train(1, "a"), train(2, "a"), train(3, "b")], [0, 1, 2]),
        ([train(1, "a"), train(2, "b"), train(2, "a"), train(3, "b")], [0, 1, 3]),
        ([train(1, "a"), train(2, "a"), train(3, "a"), train(2, "b")], [0, 3]),
        ([train(1), train(2), train(2, "b"), train(3)], [0, 2, 3]),
        ([train(2, "a"), evaluated(2, "b"), train(3, "b")], [0, 1, 2]),
        ([train(2, "a"), evaluated(2, "a"), evaluated(2, "b")], [0, 2]),
        ([train(1, "a"), train(2, "b"), train(1, "c"), train(3, "b"), train(2, "c")], [2, 4]),
    ],
)
def test_points_of_an_attempt_whose_successor_has_begun_do_not_count(
    tmp_path: Path, logged: list[dict[str, Any]], counting: list[int]
) -> None:
    """Neither those that it logs after that, nor those that its successor has computed again; for
    every reader, whether it reads the whole file or its end."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(point) + "\n" for point in logged))
    expected = [logged[place] for place in counting]
    assert points.read_points(path) == expected
    assert points.last_point(path) == [each for each in expected if "train/loss" in each][-1]


def test_a_piece_with_points_that_do_not_count_is_made_anew(
    machine: Machine, store: DirectoryStore, tmp_path: Path
) -> None:
    """The log is restored without them, and the next commit's pieces are slices of it."""

    def write(*logged: dict[str, Any]) -> None:
        with machine.path.open("a") as file:
            file.writelines(json.dumps(point) + "\n" for point in logged)

    write(*(train(step, "a") for step in range(1, 40)))
    machine.commit(39)
    write(train(40, "b"), train(40, "a"), train(41, "b"))
    machine.keep([*machine.pieces, *points.extended(store, machine.path, machine.pieces, 41)[1:]])
    bare = Machine(tmp_path / "second", store)
    bare.keep(bare.restore(41))
    assert bare.steps() == list(range(1, 42))
    bare.log(42, 44)
    bare.commit(44)
    third = Machine(tmp_path / "third", store)
    third.restore(44)
    assert third.steps() == list(range(1, 45))


def test_the_newest_values_need_no_more_than_their_lines(tmp_path: Path) -> None:
    """Of a long log the end is parsed, and of each kind of point that is not there the last one:
    damaged lines in between are never looked at."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "val/loss": 9.0, "train/loss": 1.0}, {"step": 2, "val/loss": 3.0}]
    lines += [{"step": step, "train/loss": 1 / step} for step in range(3, 10_000)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert points.seen_in(path).newest == {"val/loss": 3.0, "train/loss": 1 / 9999}
    assert points.seen_in(tmp_path / "nothing") == points.Seen()
    path.write_text("")
    assert points.seen_in(path).newest == {}


def test_a_short_last_step_is_not_the_usual_speed() -> None:
    """A point counts as often as it has steps: the last one is about the last step alone."""
    told = [(40, 300.0), (80, 306.0), (81, 12.0)]
    some = [{"step": step, "speed/samples_per_second": value} for step, value in told]
    assert points.usual_speed(some) == {"samples_per_second": 300.0}
    assert points.usual_speed(some[:2]) == {"samples_per_second": 303.0}
    assert points.usual_speed(some[2:]) == {"samples_per_second": 12.0}


@pytest.mark.parametrize("steps", [20, 60_000])
def test_the_usual_speed_is_that_of_the_whole_log(tmp_path: Path, steps: int) -> None:
    """Neither of its end, where a last step is told by itself, nor of a machine that was slow for a
    while; of memory the most. Of a long log no more than some places are read."""
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, steps + 1):
            slow = step > 0.7 * steps
            speed = {"speed/step_seconds": 9.0 if slow else 1 + step % 3 / 10}
            memory = {"speed/memory_gib": 3.0 if slow else 2.0}
            file.write(json.dumps({"step": step, "train/loss": 1 / step, **speed, **memory}) + "\n")
    seen = points.seen_in(path)
    assert points.usual_speed(seen.some) == {"step_seconds": 1.2, "memory_gib": 3.0}
    assert len(seen.some) <= 2_000
    found = [each["step"] for each in seen.some]
    assert found == sorted(found)
    assert (found[0] <= steps / 1_000 + 1, found[-1] >= 0.999 * steps) == (True, True)
    assert points.usual_speed([]) == {}
