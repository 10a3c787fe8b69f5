"""What is not installed here is said in one line, with the command that installs it; nothing is
imported to find out. What an installation without the extras says: tests/launcher/test_wheel.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from xrun.errors import LaunchError
from xrun.libraries import (
    LAUNCHING,
    TENSORBOARD,
    TRAINING,
    WANDB,
    Need,
    extras_of,
    how_to_install,
    is_here,
    require,
    what_is_missing,
)

ABSENT = Need("Counting", ("no_such_library",), "cloud")
TWO_ABSENT = Need("Weighing", ("json", "no_such_scale", "no_such_weight"))


def test_all_that_is_missing_is_one_sentence_and_one_command() -> None:
    assert what_is_missing(Need("Reading", ("json",))) == ""
    assert what_is_missing(ABSENT) == (
        "Counting needs no_such_library, which is not installed here. Install with:"
        " pip install 'xrun[cloud]'"
    )
    assert what_is_missing(ABSENT, TWO_ABSENT) == (
        "Counting needs no_such_library, Weighing needs no_such_scale and no_such_weight, which are"
        " not installed here. Install with: pip install 'xrun[cloud,train]'"
    )


def test_what_is_required_and_missing_ends_with_3() -> None:
    require(Need("Reading", ("json",)))
    with pytest.raises(LaunchError, match="no_such_library") as error:
        require(ABSENT)
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "need", [TRAINING, LAUNCHING, TENSORBOARD, WANDB], ids=lambda need: need.what
)
def test_the_extra_that_is_named_brings_what_is_missing(need: Need) -> None:
    assert [module for module in need.modules if need.extra not in extras_of(module)] == []


def test_a_module_is_found_under_the_name_of_its_package() -> None:
    assert extras_of("sklearn") == ("train",)
    assert extras_of("sky") == ("cloud",)
    assert extras_of("pytest") == extras_of("click") == extras_of("no_such_library") == ()


def test_a_folder_of_the_name_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_such_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_here("no_such_library")
    assert is_here("json")


def test_no_package_is_guessed() -> None:
    """For a library of ours the extra; for another one the recipe's key, and no `pip install`."""
    assert (
        how_to_install("sky") == how_to_install("uv") == "Install with: pip install 'xrun[cloud]'"
    )
    assert how_to_install("no_such_library.dnn") == (
        "Add the library that has `no_such_library` to `requirements:` of the recipe (its name on"
        " PyPI may differ)."
    )
