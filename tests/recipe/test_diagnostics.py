"""Everything that is wrong is told at once, at the place where it was written. Covers
`xrun.recipe.diagnostics` and `xrun.recipe.secret_text`."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipes import (
    HEAD,
    SMALL,
    problems,
    refused,
    write,
)


def test_everything_is_found_at_once(tmp_path: Path) -> None:
    """Wrong values, unknown keys, broken rules and wrong components are told together, from top to
    bottom."""
    text = """\
name: Small
model: {name: mlp, args: {inputs: 64, classes: ten}}
dataset: {name: digit}
task: classification
hardware: {any_of: [{accelerators: A100, spot: true}]}
train:
  step: 10
  global_batch: 8
  sharding: fsdp
  reduction: exact
  precision: fp8
  precision: fp32
"""
    found = refused(write(tmp_path, text))
    assert [(problem.line, problem.column, problem.key) for problem in found] == [
        (1, 7, "name"),
        (2, 48, "model.args.classes"),
        (3, 17, "dataset.name"),
        (5, 48, "hardware.any_of.0.spot"),
        (7, 3, "train.step"),
        (10, 14, "train.reduction"),
        (11, 14, "train.precision"),
        (12, 3, "train.precision"),
    ]


def test_a_rule_is_not_asked_about_a_wrong_key(tmp_path: Path) -> None:
    """A misspelt `steps` is one problem, and not also the lack of `steps`."""
    assert [
        problem.key
        for problem in refused(write(tmp_path, HEAD + "train: {stesp: 3, global_batch: 8}\n"))
    ] == ["train.stesp"]


def test_a_misspelt_key_is_not_missing_too(tmp_path: Path) -> None:
    """Where a required key is misspelt, one problem says which is meant."""
    (found,) = refused(write(tmp_path, SMALL.replace("model:", "modle:", 1)))
    assert (found.key, found.hint) == ("modle", "Did you mean `model`?")


@pytest.mark.parametrize("typed", ["0,001", "1,05"])
def test_a_decimal_comma_is_one_problem(tmp_path: Path, typed: str) -> None:
    """YAML reads what follows it as another key; the number is said as it was written, with its
    point."""
    optimizer = f"optimizer: {{name: adamw, lr: {typed}, weight_decay: 0.1}}"
    text = HEAD + f"train: {{steps: 3, global_batch: 8, {optimizer}}}\n"
    (found,) = refused(write(tmp_path, text))
    assert (found.key, found.got) == ("train.optimizer.lr", typed)
    assert found.hint == f"Write `{typed.replace(',', '.')}`."


def test_a_number_after_a_comma_is_no_key(tmp_path: Path) -> None:
    """Of `lr: 1,5` the rest is a number, which is said with both ways out."""
    optimizer = "optimizer: {name: adamw, lr: 1,5}"
    (found,) = refused(
        write(tmp_path, HEAD + f"train: {{steps: 3, global_batch: 8, {optimizer}}}\n")
    )
    assert (found.key, found.what, found.got) == ("train.optimizer", "a key is text", "5")
    assert found.hint.endswith("a decimal number is written with a point and no comma.")


def test_secrets_are_never_printed(tmp_path: Path) -> None:
    """A token that somebody wrote into a recipe or an override does not appear in the problems."""
    token = "hf_" + "abcdefgh" * 4
    text = (
        SMALL
        + f"secrets: [{token}]\nenv: {{HF_TOKEN: {token}, X: {token}}}\nbudget: {token}\nchekpoint:"
        f" {token}\n"
    )
    assert token not in "\n".join(
        problems(tmp_path, text, f"secrets.0={token}", f"name={token}", f"task.{token}=1")
    )
