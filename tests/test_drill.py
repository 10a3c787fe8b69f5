"""The drill: it must find nothing where nothing is wrong, and something where something is."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from support.running import DATASET, Project, ended, processes_of, until
from xrun.drill import Result, _compare_points


def test_a_good_recipe_is_equal(tmp_path: Path) -> None:
    """Three real SIGKILLs of the whole group, and every point and the final weights are the same to
    the last bit. Nothing is left of the two runs where nobody has named a folder for them."""
    project = Project(tmp_path)
    (scratch := tmp_path / "scratch").mkdir()
    done = project.xrun(
        "drill",
        "recipes/tiny.yaml",
        "-s",
        "train.steps=60",
        "--kills",
        "3",
        "--json",
        environ={"TMPDIR": str(scratch)},
    )
    assert done.code == 0, done.out + done.err
    result = json.loads(done.out)
    assert (result["equal"], result["folder"]) == (True, "")
    assert not list(scratch.glob("xrun-drill-*"))
    assert result["differences"] == []
    assert sum(result["kills"].values()) >= 1
    assert result["points"] == 61
    assert len(set(result["weights_sha256"])) == 1
    assert done.err.count("kill ") == sum(result["kills"].values())
    said = re.sub(r"\d+(\.\d+)?", "N", done.err)
    assert "N steps in N s; with N kills about N" in said
    place = next(iter(result["kills"]))
    assert f"kill N/N in {place}, N s after its start, at step N; about N" in said
    lives = re.findall(r"^Life \d of \d, to .*? \.\.\.", done.err, re.MULTILINE)
    ends = [f"be ended in {place} ..." for place in result["kills"]]
    assert {life.partition(", to ")[2] for life in lives} >= {*ends, "the end ..."}
    assert len(lives) >= 1 + sum(result["kills"].values())


def test_randomness_without_a_key_is_found(tmp_path: Path) -> None:
    """A dataset that draws from os.urandom cannot be resumed: the drill says DIFFERENT, names
    where, and exits 1."""
    project = Project(tmp_path)
    unkeyed = "self.x[i] + int.from_bytes(os.urandom(2)) / 65536"
    project.write(
        "datasets/points.py", DATASET.replace("self.x[i] + 0.01 * torch.randn(4)", unkeyed)
    )
    done = project.xrun("drill", "recipes/tiny.yaml", "--kills", "1")
    assert done.code == 1, done.out + done.err
    assert done.out.startswith("DIFFERENT:")
    assert "a random number from a generator of the component's own" in done.out
    assert "train/loss is" in done.out


def test_a_recipe_that_does_not_finish_is_no_proof(tmp_path: Path) -> None:
    """If the undisturbed run fails, the drill is an error that says why and where its output is,
    and not a result; that folder stays, though it is a temporary one."""
    project = Project(tmp_path)
    project.write("models/line.py", "def build(width: int = 8):\n    return width\n")
    (scratch := tmp_path / "scratch").mkdir()
    done = project.xrun(
        "drill", "recipes/tiny.yaml", "--kills", "1", environ={"TMPDIR": str(scratch)}
    )
    assert list(scratch.glob("xrun-drill-*/undisturbed/output.log"))
    assert done.code not in (0, 1)
    assert "ended with 2" in done.err
    assert "output.log" in done.err
    assert "Traceback" not in done.err


def test_ctrl_c_leaves_no_run_behind(tmp_path: Path) -> None:
    """The command ends, and with it the run that it has started."""
    project = Project(tmp_path)
    drills = tmp_path / "drills"
    arguments = ("recipes/tiny.yaml", "-s", "train.steps=100000", "--folder", str(drills))
    command = project.start("drill", *arguments)
    until(lambda: list(drills.glob("undisturbed/*/metrics.jsonl")), "the first step")
    command.send_signal(signal.SIGINT)
    assert ended(command, 30).code != 0
    until(lambda: not processes_of(drills), "the end of all processes", 10)


def test_every_kind_of_difference_counts() -> None:
    """A point that only one run has, another loss and other samples are differences; rounding is
    one unless sizes changed."""

    def found(
        one: dict[str, object] | None, other: dict[str, object] | None, bitwise: bool
    ) -> list[str]:
        result = Result("recipe", "folder", resized=not bitwise)
        _compare_points((3, "train"), one, other, bitwise, result)
        return result.differences

    point = {"train/loss": 1.0, "train/samples": "0a"}
    rounded = {"train/loss": 1.0 + 1e-7, "train/samples": "0a"}
    assert found(point, point, True) == []
    assert found(point, None, True) == ["step 3, train: only in the undisturbed run"]
    assert found(None, point, True) == ["step 3, train: only in the disturbed run"]
    assert found(point, rounded, True)
    assert not found(point, rounded, False)
    assert found(point, point | {"train/loss": 1.1}, False)
    assert found(point, point | {"train/samples": "0b"}, False)
    assert found(point, {"train/loss": 1.0}, False)
