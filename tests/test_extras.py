"""What to type where a module is missing: xrun's own extra, or the recipe's `requirements`."""

from __future__ import annotations

import tomllib
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT
from xrun.extras import EXTRAS, how_to_install

pytestmark = pytest.mark.once


@pytest.mark.parametrize("extra", ["train", "cloud"])
def test_every_library_of_an_extra_is_known(extra: str) -> None:
    """By the names under which it is imported; and no other."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {
        canonicalize_name(Requirement(text).name)
        for text in written["optional-dependencies"][extra]
    }
    bring = packages_distributions()
    named = {
        canonicalize_name(name)
        for module, of in EXTRAS.items()
        if of == extra
        for name in bring[module]
    }
    assert named == listed


def test_no_package_is_guessed() -> None:
    """For a library of ours the extra; for another one the recipe's key, and no `pip install`."""
    assert "`pip install 'xrun[train]'`" in how_to_install("torch.nn")
    assert "`pip install 'xrun[cloud]'`" in how_to_install("sky")
    assert how_to_install("cv2.dnn") == (
        "Add the library that has `cv2` to `requirements:` of the recipe (its name on PyPI may"
        " differ)."
    )
