"""The Python of a rehearsal has what a job's machine will have, and nothing else of this one's."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT
from xrun import environment
from xrun.errors import RehearsalFailed
from xrun.launcher.rehearsal.interpreter import Libraries, interpreter

pytestmark = pytest.mark.once

PINS = (ROOT / "runner/xrun/launcher/arrival/container.txt").read_text()
SEEN = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""


def seen(python: Path, *names: str) -> list[str]:
    """Which of these modules it can import."""
    done = subprocess.run([python, "-P", "-c", SEEN, *names], capture_output=True, check=True)
    return list(json.loads(done.stdout))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel of `here-only` 1.0, which is all that can be installed."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "here_only-1.0.dist-info"
    with zipfile.ZipFile(folder / "here_only-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("here_only.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: here-only\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.setenv(f"UV_{name}", value)
    return folder


def test_what_is_here_is_linked(tmp_path: Path) -> None:
    """All pins are importable, what they need besides as well, and what only this machine has is
    not: a job's machine would not have it either. Nothing is installed."""
    if not Libraries(PINS).are_here():
        pytest.skip("with other versions than the pinned ones")
    said: list[str] = []
    python = interpreter(Libraries(PINS), tmp_path / "links", said.append)
    ours = ("torch", "accelerate", "yaml", "PIL", "google.protobuf", "sklearn", "click")
    assert seen(python, *ours, "pytest", "hypothesis", "xrun") == list(ours)
    assert said == []
    assert not environment.cache_folder().exists()


def test_what_is_not_here_is_installed_once(tmp_path: Path, index: Path) -> None:
    """By two at once only by one of them; the second time nobody does; after an installation that
    was killed, anew."""
    libraries = Libraries("# pins\n", "here-only==1.0\n")
    said: list[str] = []
    found: list[Path] = []
    both = [
        threading.Thread(
            target=lambda: found.append(interpreter(libraries, tmp_path / "unused", said.append))
        )
        for _ in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert [line.split()[0] for line in said] == ["installing", "installed"]
    assert found[0] == found[1] == interpreter(libraries, tmp_path / "unused", said.append)
    assert len(said) == 2
    assert seen(found[0], "here_only", "torch") == ["here_only"]
    kept = environment.cache_folder() / "environments" / libraries.key
    assert found[0] == kept / "bin" / "python"
    (kept / "ready").unlink()
    (kept / "half").touch()
    assert interpreter(libraries, tmp_path / "unused", said.append) == found[0]
    assert (len(said), (kept / "half").exists()) == (4, False)


def test_what_cannot_be_installed_is_one_sentence(tmp_path: Path, index: Path) -> None:
    """With the exit code that a machine would have ended with; nothing is taken for whole."""
    libraries = Libraries("# pins\n", "here-only==2.0\n")
    for _ in range(2):
        with pytest.raises(RehearsalFailed, match=r"here-only==2\.0") as no:
            interpreter(libraries, tmp_path / "unused", lambda text: None)
        assert no.value.exit_code == 2
        assert "\n" not in str(no.value)


def test_an_installation_is_kept_by_what_was_asked_for() -> None:
    keys = {
        Libraries(*told).key
        for told in (("a==1",), ("a==2",), ("a==1", "b==1"), ("a==1", "b==2"), ("a==1",))
    }
    assert len(keys) == 4


def test_a_requirement_that_is_no_exact_version_is_not_here() -> None:
    """Only of exact ones it can be told without asking an installer."""
    version = ".".join(map(str, sys.version_info[:3]))
    assert not Libraries("", "click @ file:///somewhere.whl\n").are_here()
    assert not Libraries("", f"click==0.{version}\n").are_here()
    assert Libraries("# nothing\n").are_here()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_real_pins_are_installed(tmp_path: Path) -> None:
    """With a requirement that is not here; torch comes for processors where its index can be
    reached, and computes."""
    python = interpreter(Libraries(PINS, "einops==0.8.1\n"), tmp_path / "unused", print)
    code = "import torch, einops; print(torch.ones(2).sum().item(), einops.__version__)"
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2.0 0.8.1\n"
