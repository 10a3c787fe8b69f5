"""What is said is best effort: real processes whose streams are closed, full, left or not read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.paths import SOURCES
from xrun.streams import PATIENCE_SECONDS

SAYS = "print('x' * 100_000); print('ä\\udcff'); import sys; print('y', file=sys.stderr)"
DONE = "open('done', 'x')"


def program(folder: Path, kind: str, redirection: str, says: str = SAYS) -> int:
    """The exit code of a Python program that chooses this kind of streams, speaks, and leaves a
    file; by way of a shell, which closes and redirects."""
    code = f"from xrun import streams; streams.{kind}(); {says}; {DONE}"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, code],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": SOURCES, "PYTHONIOENCODING": "ascii"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )
    return done.returncode


@pytest.mark.parametrize("kind", ["patient", "deaf"])
@pytest.mark.parametrize(
    "redirection",
    [">/dev/full 2>&1", "<&- >&- 2>&-", ">&-", "</dev/null >&0 2>&0", ">said"],
    ids=["full", "closed", "stdout closed", "not for writing", "no such characters"],
)
def test_nothing_that_is_said_ends_a_process(tmp_path: Path, kind: str, redirection: str) -> None:
    """Also what its encoding lacks."""
    assert program(tmp_path, kind, redirection) == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("kind", ["patient", "deaf", "polite"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path, kind: str) -> None:
    """What is opened next does not get what is printed."""
    says = "f = open('next', 'w'); f.write('own'); f.flush(); print('said', flush=True)"
    assert program(tmp_path, kind, "<&- >&- 2>&-", says) == 0
    assert (tmp_path / "next").read_text() == "own"


def test_a_reader_that_left_ends_a_polite_process_quietly(tmp_path: Path) -> None:
    """As `| head` does; another failure is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from xrun import streams; streams.polite(); {SAYS}; {DONE}"],
        cwd=tmp_path,
        env={"PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0
    assert not (tmp_path / "done").exists()
    assert program(tmp_path, "polite", ">/dev/full 2>/dev/null") != 0


def test_a_reader_that_does_not_read_is_waited_for_once(tmp_path: Path) -> None:
    """A pipe that is full holds a patient process up for a second, however much it has to say; what
    fits comes whole and in order."""
    says = "import time; a = time.monotonic(); [print(i) for i in range(100_000)]"
    code = f"{says}; open('took', 'w').write(str(time.monotonic() - a))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from xrun import streams; streams.patient(); {code}"],
        cwd=tmp_path,
        env={"PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.wait(timeout=60) == 0
    took = float((tmp_path / "took").read_text())
    assert PATIENCE_SECONDS <= took < PATIENCE_SECONDS + 10
    lines = process.communicate()[0].split(b"\n")
    assert lines[:1000] == [b"%d" % number for number in range(1000)]


def test_what_is_said_is_there_before_what_comes_next(tmp_path: Path) -> None:
    """A thread of its own changes no order where somebody reads."""
    code = (
        "import os, sys; from xrun import streams; streams.patient()\n"
        "for i in range(500): print(i); os.write(1, b'.'); print('e', file=sys.stderr)"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    assert done.stdout == b"".join(b"%d\n.e\n" % number for number in range(500))
    assert time.monotonic() - began < 30
