"""Run ids are for ever: what counts for a digest and what does not, by which rule, and which runs a
recipe finds.

Covers `xrun.run.code_digest`.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT
from support.running import RECIPE, Project
from xrun import component
from xrun.recipe.load import load_recipe
from xrun.run.code_digest import REGISTER, bytes_digest, canonical, code_digest
from xrun.run.identity import NEWEST, identity
from xrun.run.plan import make_plan, older_rules, under_rule

SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for kind in ("models", "datasets")
    for path in (ROOT / kind).glob("*.py")
)
MODEL = '''
import torch
from torch import nn

SCALE = 0.1
"""How much of the noise is kept."""


class Noise(nn.Module):
    def forward(self, x):
        return x + SCALE * torch.randn_like(x)


def build(width: int = 8, dropout: float = 0.1):
    layers = nn.Linear(4, width), nn.GELU(), nn.Dropout(dropout), Noise(), nn.Linear(width, 3)
    return nn.Sequential(*layers)
'''
ALIKE = '''"""A model."""
import torch  # for its noise
from torch import nn
SCALE = 1e-1


class Noise(nn.Module):
    """Adds noise."""

    def forward(
        self, x,
    ):
        """(N, width) -> (N, width)."""
        # Not in place: x is needed for the gradient.
        return (x + (SCALE * torch.randn_like(x)))


def build(width: int=8, dropout: float=0.10):
    "Two layers."
    layers = (
        nn.Linear(4, width),
        nn.GELU(), nn.Dropout(dropout), Noise(), nn.Linear(width, 3)
    )

    return nn.Sequential(*layers)
'''


def run_of(root: Path, recipe: str = RECIPE, *overrides: str) -> str:
    """The id that a recipe of a project with this recipe has."""
    project = Project(root, recipe)
    project.write("models/line.py", MODEL)
    return project.plan(*overrides).run


def test_digits_keeps_its_id(tmp_path: Path) -> None:
    """A run of recipes/digits.yaml that was begun before ids had rules is found as digits-3763bb27,
    for ever; also after somebody has put a word into a docstring of the model that it uses."""
    for folder in ("recipes", "models", "datasets"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    recipe = tmp_path / "recipes" / "digits.yaml"
    before = make_plan(load_recipe(recipe), recipe, environ={})
    assert [plan.run for plan in older_rules(before)] == ["digits-3763bb27"]
    model = tmp_path / "models" / "vit.py"
    model.write_text(
        model.read_text().replace("A small vision transformer", "A very small vision transformer")
    )
    after = make_plan(load_recipe(recipe), recipe, environ={})
    assert [plan.run for plan in (after, *older_rules(after))] == [before.run, "digits-3763bb27"]
    model.write_text(model.read_text().replace("nn.GELU()", "nn.ReLU()"))
    other = make_plan(load_recipe(recipe), recipe, environ={})
    assert not {plan.run for plan in (other, *older_rules(other))} & {before.run, "digits-3763bb27"}


def test_comments_docstrings_and_layout_do_not_count(tmp_path: Path) -> None:
    """A component that is explained, laid out and written otherwise computes the same, and so the
    run is the same."""
    before = run_of(tmp_path)
    project = Project(tmp_path)
    project.write("models/line.py", ALIKE)
    assert project.plan().run == before
    assert under_rule(project.plan(), 1) != under_rule(project.plan(), NEWEST)


@pytest.mark.parametrize("place", SHIPPED)
def test_a_formatter_changes_no_digest(place: str) -> None:
    """What a formatter that is not ours makes of a file, in lines of any length, is the same code;
    so is what Python itself writes of the tree."""
    source = (ROOT / place).read_bytes()
    tree = canonical(ast.parse(source))
    command = [
        Path(sys.executable).with_name("ruff"),
        "format",
        "--isolated",
        "--line-length",
        "50",
        "-",
    ]
    formatted = subprocess.run(command, input=source, capture_output=True, check=True).stdout
    assert formatted != source
    assert canonical(ast.parse(formatted)) == tree
    assert canonical(ast.parse(ast.unparse(ast.parse(source)))) == tree


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 0.1", "SCALE = 0.2"),
        ("x + SCALE", "x - SCALE"),
        ("dropout: float = 0.1", "dropout: float = 0.2"),
        ("nn.GELU(), nn.Dropout(dropout)", "nn.Dropout(dropout), nn.GELU()"),
        ("randn_like(x)", "randn_like(x, dtype=None)"),
        ("SCALE = 0.1", "SCALE = '0.1'"),
        ("width: int = 8", "width: int = 8.0"),
        ("class Noise", "@torch.jit.ignore\nclass Noise"),
        ("        return x +", "        x = x\n        return x +"),
        ("(nn.Module)", "(nn.Module, metaclass=type)"),
    ],
)
def test_whatever_may_compute_differently_counts(tmp_path: Path, old: str, new: str) -> None:
    """A number, an operator, a default, an order, an argument, a type, a decorator, a statement:
    another run."""
    before = run_of(tmp_path)
    project = Project(tmp_path)
    assert old in MODEL
    project.write("models/line.py", MODEL.replace(old, new))
    assert project.plan().run != before


@pytest.mark.parametrize(
    "given",
    [
        "train.precision=fp32",
        "train.seed=0",
        "train.clip_grad_norm=null",
        "train.optimizer.weight_decay=0.0",
        "train.schedule={name: constant}",
        "train.schedule={}",
        "model.trust_remote_code=false",
        "model.args={dropout: 0.1}",
        "model.args={}",
        "dataset.args={n: 100, weighted: false}",
    ],
)
def test_keys_at_their_default_do_not_count(tmp_path: Path, given: str) -> None:
    """Whether a default is written out or not, in the recipe's own keys and in a component's
    arguments, the run is the same."""
    assert run_of(tmp_path, RECIPE, given) == run_of(tmp_path)


@pytest.mark.parametrize(
    "given",
    ["model.args={dropout: 0.2}", "model.args={width: 9}", "dataset.args={n: 101}", "train.seed=1"],
)
def test_what_is_not_the_default_counts(tmp_path: Path, given: str) -> None:
    assert run_of(tmp_path, RECIPE, given) != run_of(tmp_path)


def test_a_tuple_is_written_as_a_list(tmp_path: Path) -> None:
    """YAML has no tuples, so a default that is one is given by a list."""
    model = MODEL.replace("width: int = 8", "width: int = 8, size: tuple[int, ...] = (8, 8)")
    project = Project(tmp_path)
    project.write("models/line.py", model)
    run = project.plan().run
    assert project.plan("model.args={size: [8, 8]}").run == run
    assert project.plan("model.args={size: [8, 4]}").run != run


def test_a_default_of_another_type_is_another_value(tmp_path: Path) -> None:
    """1 and 1.0 are equal to Python and not always the same to a model."""
    project = Project(tmp_path)
    project.write("models/line.py", MODEL.replace("dropout: float = 0.1", "dropout: float = 0"))
    assert project.plan("model.args={dropout: 0.0}").run != project.plan().run
    assert project.plan("model.args={dropout: 0}").run == project.plan().run


def test_defaults_of_what_counts_never_change() -> None:
    """A key at its default is not in the digest, so its default is part of every run that does not
    give it: another default would be another run under the same id. What should be different by
    default gets a new key or a new name."""
    recipe = load_recipe(
        ROOT / "recipes" / "digits_mlp.yaml", ["train.optimizer=null", "train.schedule=null"]
    )
    assert recipe.train.optimizer.model_dump() == {
        "name": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "args": {},
    }
    assert recipe.train.schedule.model_dump() == {
        "name": "constant",
        "warmup_steps": 0,
        "final": 0.0,
    }
    defaults: dict[str, Any] = {
        "micro_batch": "auto",
        "precision": "fp32",
        "clip_grad_norm": None,
        "seed": 0,
        "ema": None,
        "init_from": None,
        "trust_remote_code": False,
        "args": {},
    }
    keys = {**type(recipe.model).model_fields, **type(recipe.train).model_fields}
    assert {name: keys[name].default for name in defaults} == defaults


@pytest.mark.parametrize("place", SHIPPED)
def test_what_is_shipped_computes_what_it_did(place: str) -> None:
    """A shipped component that computes differently gets a new name or a new argument. Where this
    fails for a file that computes what it did before, its new digest goes behind the others of its
    line in components/shipped.json; the first stays first."""
    register = json.loads(REGISTER.read_text())
    own = json.loads(json.dumps(register[place]))
    source = (ROOT / place).read_bytes()
    assert code_digest(place, source) == own["code"][0]
    assert bytes_digest(place, source + b"\n# another byte\n") == own["bytes"]
    assert bytes_digest("models/of_ones_own.py", source) != bytes_digest(
        "models/of_ones_own.py", source + b"\n"
    )


class Later:
    """A recipe as a later schema has it: its model may have the key `adapter`, whose default is
    null."""

    def __init__(self, recipe: Any, adapter: Any) -> None:
        self.recipe, self.adapter = recipe, adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recipe, name)

    def model_dump(self, mode: str) -> dict[str, Any]:
        whole = self.recipe.model_dump(mode)
        return {**whole, "model": {**whole["model"], "adapter": self.adapter}}

    def given(self) -> dict[str, Any]:
        given = self.recipe.given()
        return {
            **given,
            "model": {**given["model"], **({"adapter": self.adapter} if self.adapter else {})},
        }


@pytest.mark.parametrize("rule", [1, NEWEST])
def test_keys_that_come_later_leave_runs_their_ids(tmp_path: Path, rule: int) -> None:
    """A key that a later schema adds changes nothing while it is at its default; where it is given,
    the newest rule counts it, and an older one, which has no name for it, makes no id."""
    recipe = load_recipe(Project(tmp_path).recipe, [])
    before = identity(recipe, tmp_path, rule)
    later: Any = Later(recipe, None)
    assert before == identity(later, tmp_path, rule)
    given: Any = Later(recipe, {"r": 16})
    made = identity(given, tmp_path, rule)
    assert (made is None) == (rule == 1)
    assert made is None or made.mathematics["model"]["adapter"] == {"r": 16}


def test_a_rule_that_only_a_newer_xrun_knows(tmp_path: Path) -> None:
    """It makes nothing of a recipe, and nothing is guessed."""
    plan = Project(tmp_path).plan()
    assert identity(plan.load_recipe(), tmp_path, NEWEST + 1) is None
    assert under_rule(plan, NEWEST + 1) is None


def test_canonical_text_is_the_same_for_every_python() -> None:
    """Pinned: Python 3.11, 3.12 and 3.13 make this text of this file, and the ids of runs hang on
    it."""
    source = (
        b'"""Docs."""\n@a.b\ndef f(x: int = 1, *, y=None, **z) -> f"{x!r:>{y}}":\n    "Docs."\n   '
        b' return {**z, "k": (x, -1.5, b"b")}\n'
    )
    tree: Any = component.parse(Path("x.py"), source)
    assert (
        canonical(tree)
        == "(Module body= [ (FunctionDef args= (arguments args= [ (arg annotation= (Name id= int )"
        " arg= x ) ] defaults= [ (Constant int:1 ) ] kw_defaults= [ (Constant NoneType:None ) ]"
        " kwarg= (arg arg= z ) kwonlyargs= [ (arg arg= y ) ] ) body= [ (Return value= (Dict"
        " keys= [ None (Constant str:'k' ) ] values= [ (Name id= z ) (Tuple elts= [ (Name id= x"
        " ) (UnaryOp op= (USub ) operand= (Constant float:1.5 ) ) (Constant bytes:b'b' ) ] ) ] )"
        " ) ] decorator_list= [ (Attribute attr= b value= (Name id= a ) ) ] name= f returns="
        " (JoinedStr values= [ (FormattedValue conversion= 114 format_spec= (JoinedStr values= ["
        " (Constant str:'>' ) (FormattedValue conversion= -1 value= (Name id= y ) ) ] ) value="
        " (Name id= x ) ) ] ) ) ] )"
    )
