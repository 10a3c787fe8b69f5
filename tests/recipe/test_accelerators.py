"""Accelerators of a node: `A100:8` is read once and written as it was."""

from __future__ import annotations

import pytest

from xrun.recipe.accelerators import Accelerators


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
