"""What git says of a project."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_says(root: Path, *arguments: str, seconds: float = 60) -> bytes:
    """What git prints about a folder. Raises OSError and SubprocessError."""
    # A repository's own settings may name a program for git to run.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=seconds).stdout


def git_answer(root: Path, *arguments: str) -> str:
    """The same as text; "" where git does not answer within ten seconds, or is not there."""
    try:
        return git_says(root, *arguments, seconds=10).decode(errors="replace").strip()
    except (OSError, subprocess.SubprocessError):
        return ""
