"""Small files are there as a whole, old or new, whoever is killed while they are replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import SOURCES
from support.running import until
from xrun.files import read_json, write_bytes, write_json

WRITER = """
import sys
from pathlib import Path
from xrun.files import write_json
number = 0
while True:
    number += 1
    write_json(Path(sys.argv[1]), {"number": number, "text": "x" * 100_000})
"""


def test_a_reader_and_a_kill_find_a_whole_file(tmp_path: Path) -> None:
    """A reader at any moment, and what is left after a SIGKILL at any moment."""
    path = tmp_path / "state.json"
    seen = set()
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, env={"PYTHONPATH": SOURCES}) as writer:
            until(path.exists, "the first file")
            for _ in range(200):
                seen.add(json.loads(path.read_text())["number"])
            os.kill(writer.pid, signal.SIGKILL)
        assert len(json.loads(path.read_text())["text"]) == 100_000
    assert len(seen) > 1, "it was replaced while it was read"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    write_bytes(tmp_path / "a.json", b"{}")
    assert read_json(tmp_path / "a.json") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_what_is_not_whole_says_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
