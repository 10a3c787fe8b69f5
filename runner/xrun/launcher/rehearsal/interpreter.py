"""A Python with the libraries that a job's machine will have, and with nothing else of this one's.

Where the interpreter that runs now has them all, its files are linked and nothing is installed.
Elsewhere they are installed once, and kept by what was asked for.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from blake3 import blake3

from ... import environment
from ...bar import Bar, bar
from ...errors import EX_TEMPFAIL, RehearsalFailed
from ...files import needed
from ...lock import locked
from ..arrival.failure import PINS, failure_of
from ..arrival.has_pins import missing

_TORCH = "https://download.pytorch.org/whl/cpu"
"""Builds of torch without CUDA, which is gigabytes that nothing here can use."""
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Libraries:
    """What is to be there: the pins of every job, and what the recipe adds, in exact versions."""

    pins: str
    requirements: str = ""

    @property
    def key(self) -> str:
        """By which an installation is kept."""
        parts = (self.pins, self.requirements, sys.version, platform.machine())
        return blake3("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def names(self) -> list[str]:
        """The packages by name."""
        lines = f"{self.pins}\n{self.requirements}".splitlines()
        return [line.partition("==")[0].strip() for line in lines if _is_pin(line)]

    def are_here(self) -> bool:
        """Whether the interpreter that runs now has them all."""
        lines = [line for line in self.requirements.splitlines() if line.strip()]
        plain = all(_is_pin(line) or line.startswith("#") for line in lines)
        return plain and not missing(f"{self.pins}\n{self.requirements}")


def _is_pin(line: str) -> bool:
    return re.fullmatch(r"[\w.-]+==[\w.+!-]+\s*", line) is not None


def interpreter(libraries: Libraries, folder: Path, say: Callable[[str], None]) -> Path:
    """Its path. `folder` is for one that is made of links, and is not there yet.

    Raises:
        RehearsalFailed: the libraries cannot be installed.
        StoreError: there is no place to keep them.
    """
    if (found := installed(libraries, folder)) is not None:
        return found
    kept = _kept(libraries)
    with needed(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.with_suffix(".lock")):
            if not (kept / "ready").exists():
                _install(libraries, kept, say)
                (kept / "ready").touch()
    return kept / "bin" / "python"


def installed(libraries: Libraries, folder: Path) -> Path | None:
    """The same, where nothing would have to be installed; None elsewhere."""
    if libraries.are_here() and (found := _closure(libraries.names)) is not None:
        return _linked(found, folder)
    kept = _kept(libraries)
    return kept / "bin" / "python" if (kept / "ready").exists() else None


def _kept(libraries: Libraries) -> Path:
    return environment.cache_folder() / "environments" / libraries.key


def _closure(names: Sequence[str]) -> list[Distribution] | None:
    """These packages and all that they need here, as they are installed; None if somebody has
    installed one in a way that does not tell its files."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    waiting, found = [*names], dict[str, Distribution]()
    while waiting:
        name = canonicalize_name(waiting.pop())
        try:
            package = found.get(name) or distribution(name)
        except PackageNotFoundError:  # what the environment does without
            continue
        if name not in found:
            found[name] = package
            needs = (Requirement(line) for line in package.requires or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate()]
    return list(found.values()) if all(each.files for each in found.values()) else None


def _linked(packages: Sequence[Distribution], folder: Path) -> Path:
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    places = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", places))
    for package in packages:
        for name in sorted(_tops(package)):
            if not os.path.lexists(site / name):
                (site / name).symlink_to(Path(str(package.locate_file(name))).resolve())
    return folder / "bin" / "python"


def _tops(package: Distribution) -> set[str]:
    """What a package has put into site-packages."""
    tops = {file.parts[0] for file in package.files or []}
    return {name for name in tops - {"..", "__pycache__"} if not name.endswith(".pth")}


def _install(libraries: Libraries, kept: Path, say: Callable[[str], None]) -> None:
    """Into an environment that is made anew; a killed installation left no mark that it is
    whole."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    files = []
    for name, text in (("pins.txt", libraries.pins), ("requirements.txt", libraries.requirements)):
        if text:
            (kept / name).write_text(text)
            files += ["-r", str(kept / name)]
    say(f"  installing {len(libraries.names)} packages into {kept}, once for these versions")
    began = time.monotonic()
    with bar(f"Installing {len(libraries.names)} packages") as shown:
        for command, more in _commands(kept, files):
            _run(command, more, shown)
    say(f"  installed in {time.monotonic() - began:.0f} s")


def _commands(kept: Path, files: Sequence[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """What makes the environment, each with what it is told besides; by uv where there is one, as
    on a job's machine."""
    mirror = sys.platform == "linux" and _answers(_TORCH)
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path("~/.local/bin").expanduser()))
    python = str(kept / "bin" / "python")
    if uv:
        how = ["--quiet", "--allow-existing", "--python", environment.PYTHON[0]]
        yield [uv, "venv", *how, str(kept)], {}
        backend = {"UV_TORCH_BACKEND": "cpu"} if mirror else {}
        yield [uv, "pip", "install", "--python", python, *files], backend
        return
    has_pip = importlib.util.find_spec("pip") is not None  # a new one takes seconds to be made
    how = ["--without-pip"] if has_pip else []
    yield [*environment.PYTHON, "-m", "venv", *how, str(kept)], {}
    own = [*environment.PYTHON, "-m", "pip", "--python", python]
    pip = own if has_pip else [python, "-m", "pip"]
    known = os.environ.get("PIP_EXTRA_INDEX_URL", "")
    index = {"PIP_EXTRA_INDEX_URL": f"{_TORCH} {known}".strip()} if mirror else {}
    yield [*pip, "install", "--disable-pip-version-check", *files], index


def _answers(address: str) -> bool:
    """Whether a network leads there: pip would ask a dead address for each package."""
    try:
        with urllib.request.urlopen(f"{address}/", timeout=_ANSWER_SECONDS):  # noqa: S310  https
            return True
    except (OSError, ValueError):
        return False


def _run(command: Sequence[str], more: dict[str, str], shown: Bar) -> None:
    """An installer to its end; its last line is shown meanwhile."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environ | more,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.strip():
                shown.say(line.strip()[:100])
    if process.returncode:
        failure = failure_of("".join(lines), PINS)
        raise RehearsalFailed(
            f"The libraries that the run needs could not be installed: {failure.line}.",
            "Try again." if failure.passing else "Change the recipe's requirements.",
            EX_TEMPFAIL if failure.passing else 2,
        )
