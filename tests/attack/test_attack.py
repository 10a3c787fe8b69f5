"""The machine that looks for faults finds none in a few dozen fixed seeds, plays again what it
found once, and finds one where there is one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attack.pool import Try
from support.paths import WITH_SUPPORT
from support.running import Done


def attack(*arguments: str) -> Done:
    """The command, two tries at once."""
    command = [sys.executable, "-m", "attack", "--workers", "2", *arguments]
    environ = {**os.environ, "PYTHONPATH": WITH_SUPPORT}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def case(**changes: Any) -> dict[str, Any]:
    """A plain case, but for these keys."""
    train = {"steps": 3, "micro_batch": 2, "global_batch": 4, "seed": 0}
    plain = {
        "task": "classification",
        "takes": "pair",
        "gives": "logits",
        "blocks": ["linear"],
        "data": {"n": 24, "val": 7, "weighted": False},
        "train": {**train, "optimizer": {"name": "sgd", "lr": 0.05}},
        "auto": False,
        "every": 1,
        "kills": [],
    }
    return plain | changes


@pytest.mark.once
def test_fixed_seeds_find_nothing(tmp_path: Path) -> None:
    """The first seeds, of all kinds: right losses, right weights, no traceback."""
    done = attack("--first", "0", "--tries", "70", "--folder", str(tmp_path))
    assert done.code == 0, done.out + done.err


def test_what_was_found_once_stays_found(tmp_path: Path) -> None:
    """Every case that went wrong once is right now."""
    done = attack("--found", "--folder", str(tmp_path))
    assert done.code == 0, done.out + done.err


def test_a_wrong_result_is_found_and_repeated_by_its_line(tmp_path: Path) -> None:
    """Weights that do not follow from the seed are one line, whose command finds them again."""
    (tmp_path / "cases.json").write_text(
        json.dumps([{"kind": "model", "case": case(blocks=["unkeyed"])}])
    )
    done = attack("--cases", str(tmp_path / "cases.json"), "--folder", str(tmp_path))
    assert done.code == 1, done.out + done.err
    assert re.search(r"^model: the loss of step 1 is \S+, not \S+ -- ", done.out, re.MULTILINE)
    [found] = json.loads((tmp_path / "wrong.json").read_text())
    assert found["case"] == case(blocks=["unkeyed"])


def test_a_seed_draws_the_same_try() -> None:
    """The same seed is the same kind and the same case, in every process."""
    assert json.loads(attack("--seed", "8", "--drawn").out) == vars(Try(8).drawn())


@pytest.mark.soak
def test_an_hour_finds_nothing(tmp_path: Path) -> None:
    """An hour of all kinds, from seeds that nobody chose."""
    command = [sys.executable, "-m", "attack", "--minutes", "60", "--folder", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": WITH_SUPPORT}
    assert subprocess.run(command, env=environ, check=False).returncode == 0
