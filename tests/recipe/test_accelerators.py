"""Accelerators of a node: `A100:8` is read once and written as it was."""

from __future__ import annotations

import pytest

from xrun.recipe.accelerators import Accelerators, unserved
from xrun.recipe.rules import ACCELERATORS


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("A100:8", "A100", 8), ("A100", "A100", 1), ("tpu-v5-8", "tpu-v5-8", 1)],
)
def test_a_name_and_a_count(text: str, name: str, count: int) -> None:
    read = Accelerators.parse(text)
    assert (read.name, read.count, str(read)) == (name, count, text)


@pytest.mark.parametrize("text", ["", ":8", "A100:0", "A100:", "A100:8:1", "A 100", "A100:x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a name and a count"):
        Accelerators.parse(text)


def test_one_is_one_however_it_is_written() -> None:
    assert Accelerators.parse("L4") == Accelerators.parse("L4:1")
    assert str(Accelerators("L4")) == "L4:1"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("V100 V100-32GB v100 P100 P4 P4000 K80 M60 M4000 GTX1080 TITAN-V", "before Turing"),
        ("MI100 MI25 MI300X MI355X Radeon-PRO-V520", "ROCm"),
        ("tpu-v5p-8 tpu-v6e-1 TPU", "TPUs"),
        ("Trainium Trainium2 Inferentia2", "Trainium"),
        ("Gaudi2 Habana-Gaudi", "Gaudi"),
        ("T4g", "ARM"),
    ],
)
def test_what_no_build_of_torch_serves(names: str, kind: str) -> None:
    """In any spelling, with a sentence that says what they are."""
    for name in names.split():
        assert kind in unserved(name), name


def test_what_skypilot_knows_and_torch_serves() -> None:
    """Every name that a recipe may hold, from Turing to Blackwell."""
    assert {name for name in ACCELERATORS if unserved(name)} == set()
    assert {"T4", "A100", "L4", "RTX6000", "RTX-6000-Ada", "GH200", "H200", "B300"} <= {
        *ACCELERATORS
    }
