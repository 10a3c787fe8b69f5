"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import xrun


@pytest.mark.parametrize("name", xrun.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    """What `xrun.__all__` promises is there, and importing a module of the same name would not hide
    it."""
    assert getattr(xrun, name) is getattr(xrun, name)
    assert name == "errors" or find_spec(f"xrun.{name}") is None


def test_public_names_are_sorted_and_unknown_ones_are_refused() -> None:
    """The list reads like an index, and a typing error is an AttributeError."""
    assert xrun.__all__ == sorted(xrun.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lunch'"):
        xrun.lunch  # noqa: B018  asking is the test


def test_importing_the_package_imports_nothing_else() -> None:
    """`import xrun` costs nothing until a name is asked for."""
    code = "import sys, xrun; print(sorted(m for m in sys.modules if m.startswith('xrun')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['xrun']"
