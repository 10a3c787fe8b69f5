"""A lock -> a Python with these very versions: the one that runs now where it has them, else one
beside it, which is kept by what it holds."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blake3 import blake3

from .. import environment
from ..bar import bar
from ..errors import EX_TEMPFAIL, LaunchError, RehearsalFailed
from ..files import needed
from ..lock import locked
from ..run.locked import Lock
from ..terminal import without_colours
from .arrival.failure import REQUIREMENTS, failure_of
from .requirements import find_uv

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_VERSION = re.compile(r"[0-9][\w.+!-]*", re.ASCII)
OWN = "xrun"
"""The package that makes the run again; it is the one that runs now."""


def others_here(lock: Lock) -> dict[str, str]:
    """The packages of a lock that are here in another version or not at all; which build of one it
    is (`2.13.0+cu126`) the machine says."""
    return {
        name: wanted
        for name, wanted in lock.packages.items()
        if name != OWN and _plain(_here(name)) != _plain(wanted)
    }


def python_of(lock: Lock, say: Callable[[str], None]) -> Path:
    """The interpreter.

    Raises:
        LaunchError: it needs another Python, or a version is not to be had.
        CloudUnavailable: no package index answers.
    """
    wanted = others_here(lock)
    if not wanted:
        return Path(environment.PYTHON[0])
    _check_python(lock)
    _check_names(wanted)
    lines = "".join(f"{name}=={_plain(number)}\n" for name, number in sorted(wanted.items()))
    key = blake3(f"{sys.prefix}\0{sys.version}\0{lines}".encode()).hexdigest()[:16]
    kept = environment.cache_folder() / "locked" / key
    with needed(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.with_suffix(".lock")):
            if not (kept / "ready").exists():
                say(f"  installing {', '.join(lines.split())} into {kept}")
                with bar(f"Installing {len(wanted)} packages"):
                    _install(lines, kept)
                (kept / "ready").touch()
    return kept / "bin" / "python"


def _check_names(wanted: Mapping[str, str]) -> None:
    """A stranger's lock names packages and versions, and nothing else that an installer reads."""
    for name, number in wanted.items():
        if not (_NAME.fullmatch(name) and _VERSION.fullmatch(number)):
            raise LaunchError(
                f"The lock names no valid version of the package {name!r} (got {number!r}).",
                "The lock is damaged, or xrun did not write it.",
            )


def _check_python(lock: Lock) -> None:
    wanted, here = lock.python.split(".")[:2], platform.python_version().split(".")[:2]
    if lock.python and wanted != here:
        number = ".".join(wanted)
        raise LaunchError(
            f"The run was made with Python {lock.python}, and xrun runs with"
            f" {platform.python_version()} here, so its versions cannot be installed.",
            f"Install xrun with Python {number} (`uv tool install --python {number} ...`), or take"
            " what is here with --here.",
        )


def _install(lines: str, kept: Path) -> None:
    """An environment whose own packages come before those of the one that runs now."""
    shutil.rmtree(kept, ignore_errors=True)
    uv = find_uv()
    _run([uv, "venv", "--quiet", "--python", environment.PYTHON[0], str(kept)])
    places = {"base": str(kept), "platbase": str(kept)}
    site = Path(sysconfig.get_path("purelib", "venv", places))
    present = sysconfig.get_path("purelib")
    (site / "_below.pth").write_text(f"import site; site.addsitedir({present!r})\n")
    wanted = kept / "wanted.txt"
    wanted.write_text(lines)
    python = str(kept / "bin" / "python")
    how = ("--quiet", "--no-deps", "--only-binary", ":all:", "--python", python)
    _run([uv, "pip", "install", *how, "-r", str(wanted)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        failure = failure_of(without_colours(done.stderr), REQUIREMENTS)
        raise RehearsalFailed(
            f"The environment of the run cannot be built: {failure.line.rstrip('.')}.",
            "Try again." if failure.passing else "Take what is installed here with --here.",
            EX_TEMPFAIL if failure.passing else LaunchError.exit_code,
        )


def _here(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _plain(number: str) -> str:
    return number.partition("+")[0]


def told(others: Mapping[str, str]) -> list[str]:
    """What is other here than in a lock, as `einops 0.8.0 -> 0.8.1`."""
    return [f"{name} {old} -> {_here(name) or 'not here'}" for name, old in sorted(others.items())]
