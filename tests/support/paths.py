"""Where things lie in this checkout."""

from __future__ import annotations

import os
from pathlib import Path

import xrun

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
FIXTURES = TESTS / "fixtures"
RECIPES = ROOT / "recipes"
SOURCES = str(Path(xrun.__file__).parents[1])
"""For the PYTHONPATH of a process that uses this very package."""
WITH_SUPPORT = f"{SOURCES}{os.pathsep}{TESTS}"
"""Likewise, of one that is a test's own."""


def write(path: Path, text: str) -> Path:
    """A file of a project, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
