"""The benchmarks run: one cheap row in a process of its own, as `make bench` runs all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.paths import ROOT, SOURCES


@pytest.mark.once
def test_a_row_is_measured_and_kept(tmp_path: Path) -> None:
    """Row 6, quickly: a line of the table on standard output, a line of JSON in `latest.jsonl`, and
    one with the machine."""
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    command = [sys.executable, "-m", "benchmarks", "6", "--quick", "--results", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| 6 | ")
    (row,) = (json.loads(line) for line in (tmp_path / "latest.jsonl").read_text().splitlines())
    assert row["row"] == 6
    assert row["value"] > 0
    assert row["better"] == "lower"
    assert row["command"] == "python -m benchmarks 6"
    assert row["spread"][0] <= row["value"] <= row["spread"][1]
    dated = [path for path in tmp_path.glob("*.jsonl") if path.name != "latest.jsonl"]
    assert len(dated) == 1
    assert json.loads(dated[0].read_text())["machine"]["cores"] == os.cpu_count()


@pytest.mark.once
def test_without_a_choice_all_rows_are_measured() -> None:
    """As `make bench` asks, but for simulations, which have names; a row that does not exist is
    named beside those that do."""
    code = (
        "import sys; from benchmarks.__main__ import FILES, NAMES, arguments;"
        " print(arguments(sys.argv[1:]).rows == [r for r in FILES if r not in NAMES.values()])"
    )
    ask = [sys.executable, "-c", code]
    everything = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True)
    assert everything.stdout == "True\n"
    wrong = subprocess.run([*ask, "99"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "there is no row 99: 1, 2, 3" in wrong.stderr


@pytest.mark.once
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which it would begin")
def test_without_a_gpu_nothing_of_it_begins(tmp_path: Path) -> None:
    """`make gpu` says in one sentence what it lacks, and ends before it does anything."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": SOURCES}
    of_make = ("MAKEFLAGS", "MAKELEVEL")  # of the `make test` that has started this
    environment = {name: value for name, value in environment.items() if name not in of_make}
    done = subprocess.run(
        ["make", "-s", "gpu"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"make gpu: torch {torch.__version__} sees no GPU here (no driver")
    assert (done.stdout, [line for line in rest if not line.startswith("make:")]) == ("", [])


@pytest.mark.once
def test_progress_can_be_shown_beside_a_loop() -> None:
    """As rows 1 and 2 show it; a process that is nobody's child has nothing to wait for."""
    code = (
        "from benchmarks.lab import _show, lab\n"
        "with lab() as own: _show(own.plan('loop', 'loop'), 0)"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.once
def test_lines_that_hang_on_cuda() -> None:
    """What speaks of it, stands below such a condition, or behind one that leaves; not what is
    beside it, nor texts and imports."""
    source = """
import torch.cuda
def f(device, tensor):
    '''On CUDA or not.'''
    plain = 1
    if device.type == "cuda":
        plain = 2
    else:
        plain = 3
    other = 4
    if tensor.is_cpu:
        return other
    return tensor.numel()
"""
    command = [
        sys.executable,
        "-c",
        "from benchmarks.unseen import *; print(sorted(cuda_lines(sys.stdin.read())))",
    ]
    done = subprocess.run(
        command, cwd=ROOT, input=source, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [6, 7, 9, 11, 12, 13]
