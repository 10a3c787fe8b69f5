"""Everything that is wrong is told at once, at the place where it was written. Covers
`xrun.recipe.diagnostics` and `xrun.recipe.secret_text`."""

from __future__ import annotations

from pathlib import Path

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
