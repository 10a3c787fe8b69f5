"""The two halves stay apart, imports go in the direction of the arrows, and asking for help loads
nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.paths import ROOT

PACKAGE = ROOT / "runner" / "xrun"
XRUN = Path(sys.executable).with_name("xrun")
HEAVY = {
    "torch",
    "accelerate",
    "wandb",
    "sky",
    "transformers",
    "datasets",
    "numpy",
    "huggingface_hub",
}

# The arrows of docs/architecture.md: each file or folder of the package, and what it may import of
# the others.
ARROWS = {
    "errors": "",
    # what both halves read
    "stop": "errors",
    "every": "errors",
    "part": "",
    "recipe_rules": "errors every",
    "recipe": "errors every part recipe_rules",
    "components": "",
    "component": "errors components",
    "plan": "errors recipe every component components",
    "store": "errors",
    "tracker": "errors stop plan",
    "attempt_logs": "errors store",
    "run_folder": "errors plan store tracker attempt_logs",
    "progress": "errors run_folder",
    "nodes": "",
    "metadata": "",
    "spending": "metadata nodes",
    "stop_request": "errors plan run_folder store",
    "heartbeat": "",
    # the launcher half
    "yaml_nodes": "errors",
    "recipe_problems": "errors part recipe recipe_rules yaml_nodes",
    "recipe_file": (
        "errors part recipe recipe_rules recipe_problems every yaml_nodes component components"
    ),
    "cloud": "errors plan run_folder stop",
    "job": "errors plan run_folder cloud",
    "online": "errors plan recipe",
    "prices": "",
    "throughput": "errors plan run_folder",
    "offers": "recipe prices throughput",
    "offer_table": "offers",
    "skypilot": "errors",
    "sky_offers": "errors plan recipe prices throughput offers skypilot",
    "own_wheel": "components",
    "cargo": "errors plan prices own_wheel",
    "secret_values": "errors recipe tracker",
    "sky_task": "errors plan recipe offers cargo secret_values",
    "sky_jobs": "errors skypilot",
    "launch_record": "run_folder tracker",
    "sky_cloud": (
        "errors plan run_folder throughput offers sky_offers cargo secret_values sky_task skypilot"
        " sky_jobs launch_record"
    ),
    "cancel": "errors run_folder sky_jobs stop_request",
    "cloud_status": "errors run_folder spending throughput sky_jobs launch_record",
    "status_text": "cloud_status",
    "drill": "errors recipe_file recipe plan store tracker run_folder progress cloud job",
    "template": "errors recipe component components",
    "cli": (
        "errors recipe_file recipe component plan run_folder tracker online progress cloud job"
        " drill template throughput cancel offer_table sky_offers sky_jobs launch_record sky_cloud"
        " cloud_status status_text"
    ),
    "__main__": "cli",
    # the container half
    "world": "errors",
    "sampler": "",
    "randomness": "sampler",
    "objective": "errors",
    "optimizer": "errors recipe",
    "loader": "errors sampler randomness objective",
    "stream": "errors sampler randomness",
    "running_statistics": "errors sampler world",
    "reduction": "errors sampler loader world running_statistics",
    "evaluate": "errors recipe sampler randomness loader stream objective world stop heartbeat",
    "micro_batch": "errors recipe sampler loader stream objective optimizer world",
    "sharding": "errors world",
    "warm_start": "errors",
    "tensor_file": "errors",
    "state": "errors objective tensor_file",
    "interval": "errors every stop",
    "checkpoint": "errors tensor_file state store",
    "point_log": "errors store",
    "snapshot": "tensor_file",
    "checkpointer": (
        "errors tensor_file snapshot state store checkpoint attempt_logs point_log tracker interval"
    ),
    "model_folder": "errors plan store tensor_file state",
    "training": (
        "errors recipe sampler randomness loader stream objective optimizer reduction evaluate"
        " state interval checkpointer tracker world stop heartbeat spending micro_batch"
    ),
    "parts": (
        "errors recipe plan component components store tracker run_folder sampler randomness loader"
        " stream objective optimizer micro_batch sharding warm_start reduction evaluate state"
        " interval checkpoint point_log checkpointer world stop model_folder heartbeat spending"
        " training"
    ),
    "record": "errors",
    "ranks": "errors plan stop nodes heartbeat",
    "witnesses": "errors plan store tracker run_folder stop record",
    "notice": "stop metadata",
    "rendezvous": "errors nodes",
    "node": "errors plan run_folder stop nodes ranks notice rendezvous",
    "entrypoint": (
        "errors plan store tracker run_folder progress stop record ranks witnesses nodes notice"
        " rendezvous spending node attempt_logs stop_request"
    ),
    "attempt": "errors plan run_folder store stop entrypoint micro_batch parts",
    # on a new machine, before anything is installed
    "has_pins": "",
    "arrive": "plan run_folder",
}


def modules() -> dict[str, Path]:
    """The package's modules: `xrun.store.directory` -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("xrun", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import in a file, lazy ones too, but not those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(other)
        else:
            yield from statements(child)


@cache
def imports(module: str) -> frozenset[str]:
    """The full names of the modules that this one imports: ours to the module, the others as they
    are written."""
    known = modules()
    path = known[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for statement in statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        base = (
            package.split(".")[: len(package.split(".")) - statement.level + 1]
            if statement.level
            else []
        )
        source = ".".join([*base, *filter(None, [statement.module])])
        inner = {f"{source}.{alias.name}" for alias in statement.names} & known.keys()
        found |= inner or {source}
    return frozenset(found - {module})


def reached(*starts: str) -> set[str]:
    """The package's modules that these import, directly or through one another, with themselves."""
    known, found, todo = modules(), set(), list(starts)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += [name for name in imports(module) if name in known]
    return found


def part(module: str) -> str:
    """The file or folder of the package that a module lies in: `xrun.store.directory` ->
    `store`."""
    return module.split(".")[1]


def importers(of: set[str], among: set[str]) -> list[str]:
    return sorted(
        f"{module} imports {name}"
        for module in among
        for name in imports(module)
        if name.split(".")[0] in of
    )


def test_every_file_has_its_place() -> None:
    """The arrows name every file of the package and no other; a new one gets its place in
    docs/architecture.md and here."""
    assert {part(module) for module in modules() if module != "xrun"} == ARROWS.keys()


def test_arrows_have_no_circle() -> None:
    """The table goes from what others stand on to what stands on them, so nothing imports itself in
    the end."""
    rank = {name: position for position, name in enumerate(ARROWS)}
    assert not [
        f"{name} -> {other}"
        for name in ARROWS
        for other in ARROWS[name].split()
        if rank[other] >= rank[name]
    ]


@pytest.mark.parametrize("module", [name for name in modules() if name != "xrun"])
def test_imports_follow_the_arrows(module: str) -> None:
    allowed = {*ARROWS.get(part(module), "").split(), part(module)}
    ours = {name for name in imports(module) if name.startswith("xrun.")}
    assert not sorted(name for name in ours if part(name) not in allowed)


def test_launcher_half_has_no_torch() -> None:
    """What the command line reaches never imports what trains, not even lazily."""
    assert not importers({"torch", "accelerate", "wandb"}, reached("xrun.cli"))


def test_container_half_has_no_launcher() -> None:
    """What runs in the container never imports SkyPilot or click, not even lazily."""
    assert not importers({"sky", "click"}, reached("xrun.entrypoint", "xrun.attempt"))


def test_supervisor_has_no_torch() -> None:
    """The process that owns the lease starts in a moment and cannot die of what trains."""
    assert not importers(
        HEAVY - {"huggingface_hub"}, reached("xrun.entrypoint")
    )  # imported lazily, for a store on the Hub


def loaded(*command: str | Path) -> set[str]:
    """The top-level modules that a Python program has imported when it ends, which has to be with
    0."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    timed, said = set(), []
    for line in done.stderr.splitlines():
        if line.startswith("import time:"):
            timed.add(line.rpartition("|")[2].strip().split(".")[0])
        else:
            said.append(line)
    assert done.returncode == 0, "\n".join(said) + done.stdout
    return timed


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "recipes/digits_mlp.yaml"]], ids=" ".join
)
def test_asking_loads_nothing_heavy(arguments: list[str]) -> None:
    names = loaded(XRUN, *arguments)
    assert "click" in names  # the list of imports was read right
    assert not names & HEAVY


def test_launcher_half_loads_where_nothing_heavy_is_installed() -> None:
    """Also what our libraries import in turn: the whole half loads with every heavy module
    missing."""
    block = "import sys; sys.modules.update(dict.fromkeys({!r})); import {}"
    needed = {
        name for name in reached("xrun.cli") if not name.startswith("xrun.store.hub")
    }  # for a store on the Hub only
    loaded("-c", block.format(sorted(HEAVY), ", ".join(sorted(needed))))


def test_container_half_loads_without_skypilot() -> None:
    names = ", ".join(sorted(reached("xrun.entrypoint", "xrun.attempt")))
    loaded("-c", f"import sys; sys.modules['sky'] = None; import {names}")
