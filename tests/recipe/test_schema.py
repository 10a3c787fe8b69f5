"""What a recipe promises: every rule is refused with its sentence, at the key where the person can
act.

Covers `xrun.recipe.interval`, `xrun.recipe.metrics` and `xrun.recipe.rules`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from support.paths import FIXTURES, RECIPES, SOURCES
from xrun.errors import RecipeError
from xrun.recipe.interval import Every
from xrun.recipe.load import load_recipe
from xrun.recipe.rules import ACCELERATORS, CLOUDS, RULES
from xrun.recipe.schema import Recipe
from xrun.recipe.secret_text import without_secrets

WRITTEN = FIXTURES / "recipes"
BROKEN = {
    case["case"]: case for case in yaml.safe_load((WRITTEN / "broken_rules.yaml").read_text())
}


def problems(folder: Path, text: str) -> list[str]:
    """What `xrun check` says about a recipe, without the file's name."""
    path = folder / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    return [str(problem).removeprefix(f"{path}:") for problem in error.value.problems]


@pytest.mark.parametrize("case", BROKEN)
def test_broken_rule_has_its_sentence(tmp_path: Path, case: str) -> None:
    """A recipe that breaks a rule is refused at the key where the person can act, with exactly this
    sentence."""
    found = problems(tmp_path, BROKEN[case]["recipe"])
    assert [line.replace(str(tmp_path), "FOLDER") for line in found] == BROKEN[case]["problems"]


def small(**changes: object) -> Recipe:
    base = {
        "name": "x",
        "model": {"name": "m"},
        "dataset": {"name": "d"},
        "task": "model",
        "train": {"steps": 8, "global_batch": 8},
    }
    return Recipe.model_validate(base | changes)


def test_defaults() -> None:
    """A recipe without hardware trains here in one process; nothing is spent, tracked or sent."""
    recipe = small()
    assert recipe.hardware.local is not None
    assert (recipe.hardware.local.processes, recipe.hardware.any_of, recipe.hardware.worlds) == (
        1,
        (),
        (1,),
    )
    assert recipe.checkpoint.every.auto
    assert not recipe.checkpoint.durable
    assert recipe.train.micro_batches == 8


def test_local_is_a_shorthand() -> None:
    """`hardware: local` is one process on this machine."""
    assert small(hardware="local") == small(hardware={"local": {"processes": 1}}) == small()


@pytest.mark.parametrize(
    ("text", "nodes", "accelerator", "count", "processes", "world"),
    [("A100:8", 2, "A100", 8, 8, 16), ("A100", 1, "A100", 1, 1, 1), (None, 4, None, 0, 1, 4)],
)
def test_candidate(
    text: str | None, nodes: int, accelerator: str | None, count: int, processes: int, world: int
) -> None:
    """A candidate has one process per accelerator, or one per node without."""
    hardware = {"any_of": [{"accelerators": text, "nodes": nodes, "spot": False}]}
    one = small(
        hardware=hardware, train={"steps": 8, "global_batch": 16}, checkpoint={"store": "hub"}
    ).hardware.any_of[0]
    assert (one.accelerator, one.count, one.processes, one.world) == (
        accelerator,
        count,
        processes,
        world,
    )


def test_recipe_is_frozen() -> None:
    """Nothing changes a recipe once it is read."""
    recipe = small()
    with pytest.raises(ValidationError):
        recipe.train.steps = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.checkpoint.every.steps = 3  # type: ignore[misc]


def test_recipe_travels_as_json() -> None:
    """A recipe written as JSON and read again is the same recipe."""
    every = {"every": "1.5h", "keep_every": "100 steps"}
    recipe = small(
        checkpoint={"store": "hub", **every},
        hardware={"any_of": [{"accelerators": "A100:8", "clouds": ["gcp"]}]},
    )
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("auto", "auto", None),
        ("10m", "seconds", 600.0),
        ("90s", "seconds", 90.0),
        ("2h", "seconds", 7200.0),
        ("1.5h", "seconds", 5400.0),
        ("500 steps", "steps", 500),
        ("1 step", "steps", 1),
        ("1 epoch", "epochs", 1),
        ("3 epochs", "epochs", 3),
    ],
)
def test_every_reads_and_prints(text: str, unit: str, value: float | None) -> None:
    """An interval knows its unit and prints itself as it was written."""
    every = Every.parse(text)
    assert (every.unit, str(every), every.auto) == (unit, text, unit == "auto")
    assert value is None or getattr(every, unit) == value


def test_every_is_compared_by_value() -> None:
    """Singular and plural are the same interval."""
    assert Every.parse("1 epoch") == Every.parse("1 epochs") != Every.parse("1 step")


@given(st.text(max_size=20) | st.from_regex(r"[0-9. ]{0,5}(steps?|epochs?|[smh])?", fullmatch=True))
def test_every_takes_nothing_else(text: str) -> None:
    """A text is an interval that prints itself back, or it is refused."""
    try:
        every = Every.parse(text)
    except ValueError:
        return
    assert str(every) == text
    assert every.auto or max(every.seconds or 0, every.steps or 0, every.epochs or 0) > 0


@pytest.mark.parametrize(
    ("metric", "mode", "better"),
    [
        ("loss", None, "min"),
        ("perplexity", None, "min"),
        ("accuracy", None, "max"),
        ("val/f1", None, "max"),
        ("f1_micro", None, "max"),
        ("average_precision", None, "max"),
        ("miou", None, "max"),
        ("top3", None, "max"),
        ("rmse", None, "min"),
        ("loss", "max", "max"),
    ],
)
def test_better(metric: str, mode: str | None, better: str) -> None:
    """Where `mode` is not given, the metric's name tells which is better."""
    evaluate = {"metric": metric, "mode": mode}
    assert (
        small(train={"steps": 8, "global_batch": 8, "evaluate": evaluate}).train.evaluate.better
        == better
    )


@pytest.mark.parametrize(
    "store",
    [
        "local",
        "./runs",
        "../x",
        "/data",
        "~/runs",
        "$HOME/runs",
        "data/runs",
        "hub",
        "hub://a/b",
        "hub-bucket://a/b.c",
    ],
)
def test_stores(store: str) -> None:
    """The Hub is durable, and this machine is not."""
    assert small(checkpoint={"store": store}).checkpoint.durable == store.startswith("hub")


@pytest.mark.parametrize("name", ["sgd", "SGD", "AdamW", "rmsprop", "SomethingNewInTorch"])
def test_optimizers_in_any_case(name: str) -> None:
    """Case does not matter, and a name that is near no known one may be a class of a newer
    torch."""
    assert (
        small(
            train={"steps": 8, "global_batch": 8, "optimizer": {"name": name}}
        ).train.optimizer.name
        == name
    )


def test_every_rule_says_what_it_holds() -> None:
    """docs/recipes.md lists the rules by their docstrings."""
    assert all(check.__doc__ and check.__doc__.strip().endswith(".") for _, check in RULES)


def test_known_names_are_unique() -> None:
    """A name stands once, so that did-you-mean has one answer."""
    assert len(set(ACCELERATORS)) == len(ACCELERATORS)
    assert len(set(CLOUDS)) == len(CLOUDS)


@pytest.mark.parametrize(
    "secret",
    ["hf_abcdefghijklmnop", "0123456789abcdef0123456789abcdef01234567", "ghp_0123456789abcdef0123"],
)
def test_tokens_are_not_shown(secret: str) -> None:
    """What looks like a token is never printed."""
    assert without_secrets(f"a {secret} b") == "a *** b"


def test_import_is_light() -> None:
    """Reading recipes needs click, pydantic and PyYAML, and nothing that trains."""
    heavy = "torch numpy accelerate wandb sky transformers datasets huggingface_hub"
    code = (
        f"import sys, xrun.recipe.load, xrun.component; print([m for m in '{heavy}'.split() if m in"
        " sys.modules])"
    )
    folder = Path(SOURCES)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("where", ["s3://bucket/models", "hub-bucket://a/b", "./models", "here"])
def test_a_model_is_published_on_the_hub_only(where: str) -> None:
    """Anywhere else is refused, with what to write."""
    with pytest.raises(RecipeError, match="publish: a model is published in a repository") as seen:
        load_recipe(RECIPES / "digits.yaml", [f"publish={where}"])
    assert "Write `hub` or `hub://owner/name`" in str(seen.value)
    for known in ("hub", "hub://owner/name"):
        assert str(load_recipe(RECIPES / "digits.yaml", [f"publish={known}"]).publish) == known
