"""The house is as docs/architecture.md says: every module has its test, and what is to stand in one
place stands in one place.

Covers `xrun.entrypoint`, `xrun.attempt`, `xrun.arrive`, `xrun.tracker.wandb_sender` and
`xrun.tracker.wandb_witness`.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT, TESTS

pytestmark = pytest.mark.once

PACKAGE = ROOT / "runner" / "xrun"
SERVERS = ROOT / "servers" / "loopback"
MODULES = sorted(
    path
    for package in (PACKAGE, SERVERS)
    for path in package.rglob("*.py")
    if path.name != "__init__.py"
)
RECORD_KEYS = {
    "attempts",
    "checkpoints",
    "committed",
    "finished",
    "from_step",
    "last_save",
    "rejected",
    "resumed_step",
    "seconds_lost",
    "steps_recomputed",
    "usd_per_hour",
    "weights_sha256",
}


def name_of(path: Path) -> str:
    """`xrun.run.plan`, `loopback.hub`."""
    package = PACKAGE if path.is_relative_to(PACKAGE) else SERVERS
    return ".".join((package.name, *path.relative_to(package).with_suffix("").parts))


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Every module's code."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield name_of(path), ast.parse(path.read_text())


def literals(tree: ast.AST) -> Iterator[str]:
    """Every text in code, docstrings left out."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                child.value.value = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@functools.cache
def first_lines() -> str:
    """Of every test file."""
    trees = (ast.parse(test.read_text()) for test in TESTS.rglob("test_*.py"))
    return "\n".join(ast.get_docstring(tree) or "" for tree in trees)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_its_test(path: Path) -> None:
    """A test file of its name in the room of its name, or a test file whose first lines name it:
    ``Covers `xrun.room.module`.``"""
    room, _, _ = name_of(path).removeprefix("xrun.").replace("loopback", "servers").rpartition(".")
    own = TESTS / room.replace(".", "/") / f"test_{path.name}"
    assert own.exists() or f"`{name_of(path)}`" in first_lines()


def test_tests_lie_in_the_rooms_of_the_package() -> None:
    """And beside them only what belongs to no room."""
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    folders = {path.name for path in TESTS.iterdir() if any(path.rglob("*.py"))}
    assert folders - rooms == {"attack", "cluster", "fixtures", "servers", "support"}


def test_one_module_knows_the_environment() -> None:
    """The name of no variable of xrun's stands anywhere but in environment.py."""
    found = {name for name, tree in trees() for text in literals(tree) if "XRUN_" in text}
    assert found == {"xrun.environment"}


def test_no_module_outside_run_reads_a_record_by_its_keys() -> None:
    """Records are typed; their keys are run/'s."""
    found = []
    for name, tree in trees():
        for node in ast.walk(tree):
            key: ast.AST | None = None
            if isinstance(node, ast.Subscript):
                key = node.slice
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                key = node.args[0] if node.func.attr == "get" and node.args else None
            if isinstance(key, ast.Constant) and key.value in RECORD_KEYS:
                found.append(f"{name}:{key.lineno}: {key.value}")
    assert [place for place in found if not place.startswith("xrun.run.")] == []


@pytest.mark.parametrize(
    ("what", "where"),
    [
        (r"fcntl\.flock", {"xrun.lock"}),
        (r"tenacity", {"xrun.backoff", "xrun.store.hub.api"}),
        (r"""partition\("://"\)""", {"xrun.store.address"}),
        (
            r"Address\.parse",
            {"xrun.recipe.schema", "xrun.run.opened", "xrun.run.plan", "xrun.store.hub.store"},
        ),
    ],
)
def test_what_stands_in_one_place(what: str, where: set[str]) -> None:
    """Locks, retries (the Hub's patience names the library's type), and how an address is read."""
    assert {name_of(path) for path in MODULES if re.search(what, path.read_text())} == where


@pytest.mark.parametrize(
    ("old", "arguments", "said"),
    [
        ("xrun.entrypoint", ["nowhere/plan.json"], "nowhere/plan.json"),
        ("xrun.attempt", ["nowhere/plan.json", "a1"], "nowhere/plan.json"),
        ("xrun.arrive", ["nowhere"], "nowhere/plan.json"),
        ("xrun.tracker.wandb_sender", ["nowhere"], "There is no run nowhere"),
        ("xrun.tracker.wandb_witness", ["nowhere/plan.json"], "nowhere/plan.json"),
    ],
)
def test_what_is_started_by_name_keeps_its_old_name(
    old: str, arguments: list[str], said: str
) -> None:
    """Machines of running jobs start these: each leads to the module of today."""
    command = [sys.executable, "-W", "error", "-m", old, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "No module named" not in done.stderr
    assert said in done.stderr
