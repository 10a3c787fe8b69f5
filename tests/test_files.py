"""Small files are there as a whole, old or new, whoever is killed while they are replaced."""

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
from support.running import Project, until
from xrun.environment import cache_folder
from xrun.errors import StoreError
from xrun.files import json_text, needed, read_json, with_numbers, write_bytes, write_json

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
    assert read_json(tmp_path / "a.json", dict) == {"b": [1, None]}
    write_bytes(tmp_path / "a.json", b"{}")
    assert read_json(tmp_path / "a.json", dict) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_what_is_not_whole_says_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json", dict) is None


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to set: the folder itself says nothing to who has never heard of it. Another
    folder has its own way out."""
    monkeypatch.setenv("HOME", "/proc/nobody")
    named = r"^/proc/nobody: .*set HOME, or XDG_CACHE_HOME, to a"
    with pytest.raises(StoreError, match=named), needed(cache_folder()):
        cache_folder().mkdir(parents=True)
    with pytest.raises(StoreError) as refused, needed(Path("/proc/other")):
        Path("/proc/other").mkdir()
    assert "HOME, or" not in str(refused.value)


WITHOUT_RIGHTS = """
import ctypes, os, sys
for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (0o755, "and you may not write there: use a copy of your own, or export XRUN_HOME=~/runs."),
        (0o700, "and you may not read it: use a copy of your own, or ask for that (chmod o+rX)."),
    ],
)
def test_somebody_elses_folder_is_named_with_its_owner(
    tmp_path: Path, mode: int, told: str
) -> None:
    """In a project that belongs to another user, without root's right to overrule that."""
    project = Project(tmp_path / "a {project}")
    folder = project.root / "models"
    for each in (project.root, folder):
        os.chown(each, 1, -1)
    folder.chmod(mode)
    command = [sys.executable, "-c", WITHOUT_RIGHTS, "-m", "xrun", "recipes/tiny.yaml"]
    environ = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(
        command, cwd=project.root, env=environ, capture_output=True, text=True, check=False
    )
    there = folder if mode == 0o700 else project.root
    assert f"{there} belongs to daemon, {told} Nothing that was committed" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)


def test_json_is_json_whatever_the_numbers(tmp_path: Path) -> None:
    """NaN and infinities at any depth become the strings that Protobuf's JSON has for them, all
    else is as `json.dumps` writes it, and numbers can be read back."""
    values = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "one": 1.5, "word": "x"}
    odd = {"deep": [values, (math.nan,)], **values}
    spelled = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity", "one": 1.5, "word": "x"}
    assert json.loads(json_text(odd), parse_constant=pytest.fail) == {
        "deep": [spelled, ["NaN"]],
        **spelled,
    }
    plain = {"a": [1, None, "ü"], "b": {"c": 1e-7}}
    assert json_text(plain, indent=1) == json.dumps(plain, indent=1)
    back = with_numbers(spelled)
    assert math.isnan(back.pop("nan"))
    assert back == {name: value for name, value in values.items() if name != "nan"}
    write_json(tmp_path / "config.json", odd)
    assert (tmp_path / "config.json").read_text() == json_text(odd, indent=1) + "\n"
