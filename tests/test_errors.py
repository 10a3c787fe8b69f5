"""Errors: an exit code for every kind, sentences with a way out, and who was probably meant."""

from __future__ import annotations

import pytest

from xrun import errors
from xrun.errors import Problem, RecipeError, XrunError, did_you_mean, nearest

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_every_kind_has_an_exit_code_of_the_table() -> None:
    """And says what it means for the attempt."""
    codes = {kind.__name__: kind.exit_code for kind in KINDS if issubclass(kind, XrunError)} | {
        "Stopped": errors.Stopped.exit_code
    }
    assert set(codes.values()) <= {1, 2, 3, 4, 5, 6, 7, 75}
    missing = [name for name in codes if name not in (errors.__doc__ or "")]
    assert not missing, "the table has every one"
    assert not issubclass(errors.Stopped, Exception), "`except Exception` lets it pass"


def test_a_problem_stands_where_it_was_written() -> None:
    """File, line, column, key, what is wrong, what was got, and the way out."""
    whole = Problem("r.yaml", 3, 7, "train.steps", "must be a whole number", "'x'", "Use digits.")
    assert str(whole) == ("r.yaml:3:7: train.steps: must be a whole number (got 'x'). Use digits.")
    assert str(Problem("r.yaml", 0, 0, "", "it is empty")) == "r.yaml: it is empty."
    assert str(RecipeError([whole, whole])).count("\n") == 1


def test_a_sentence_has_one_full_stop() -> None:
    """Also where it ends with what a library said, which had one; an ellipsis stays."""
    assert str(XrunError("It is no HTTP: no such protocol..", "Look.")) == (
        "It is no HTTP: no such protocol. Look."
    )
    assert str(XrunError("Waiting...")) == "Waiting..."


@pytest.mark.parametrize(
    ("word", "meant"), [("clasification", "classification"), ("HUB", "hub"), ("zebra", None)]
)
def test_who_was_probably_meant(word: str, meant: str | None) -> None:
    known = ["classification", "hub", "local"]
    assert nearest(word, known) == meant
    assert did_you_mean(word, known) == (f"Did you mean `{meant}`?" if meant else "")
