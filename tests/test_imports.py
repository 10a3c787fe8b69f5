"""The house: imports go in the direction of the arrows, the two halves stay apart, and asking for
help loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.house import (
    DOORS,
    GROUND,
    arrows,
    imports,
    in_rooms,
    modules,
    picture,
    reached,
    room,
    statements,
)
from support.paths import ROOT

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

# The arrows of docs/architecture.md: each room, from the lowest floor up, and the rooms that it may
# import.
ARROWS = {
    "machine": "",
    "data": "",
    "store": "",
    "components": "",
    "component": "components",
    "recipe": "component components store",
    "run": "component components recipe store",
    "tracker": "machine run",
    "alerts": "machine run",
    "checkpoint": "machine recipe run store tracker",
    "training": "checkpoint component components data machine recipe run store tracker",
    "supervisor": "alerts machine run store tracker",
    "launcher": "component components recipe run store tracker",
    "sweep": "launcher machine recipe run store",
    "pages": "recipe run sweep",
    "drill": "recipe run",
    "cli": "alerts drill launcher pages recipe run sweep tracker",
    "handle": "checkpoint launcher recipe run training",
}
LEADS_TO = dict(zip(DOORS, ("cli", "supervisor", "training", "supervisor"), strict=True))
"""What is started by name, with the room behind it."""
LAUNCHER_HALF = ("cli", "launcher", "sweep", "pages", "drill")
CONTAINER_HALF = ("supervisor", "training", "checkpoint", "data", "tracker", "alerts", "machine")


def importers(of: set[str], among: set[str]) -> list[str]:
    return sorted(
        f"{module} imports {name}"
        for module in among
        for name in imports(module)
        if name.split(".")[0] in of
    )


def test_every_file_has_its_place() -> None:
    """The arrows name every room of the package and no other; a new one gets its place in
    docs/architecture.md and here."""
    rooms = {room(module) for module in modules() if module != "xrun"}
    assert rooms == {*GROUND, *ARROWS, *DOORS}


def test_no_arrow_turns_back() -> None:
    """The table goes from what others stand on to what stands on them, so nothing imports itself in
    the end."""
    floor = {name: position for position, name in enumerate(ARROWS)}
    back = [
        (name, to) for name in ARROWS for to in ARROWS[name].split() if floor[to] >= floor[name]
    ]
    assert back == []


@pytest.mark.parametrize("name", [*GROUND, *ARROWS, *DOORS])
def test_imports_follow_the_arrows(name: str) -> None:
    """And no arrow is in the table that nothing needs; the ground stands on nothing but itself."""
    if name in GROUND:
        ours = [other for other in imports(f"xrun.{name}") if other.startswith("xrun.")]
        assert [other for other in ours if room(other) not in GROUND] == []
    assert arrows()[name] == set((ARROWS | LEADS_TO).get(name, "").split())


def test_the_picture_is_current() -> None:
    """`make docs` draws it anew."""
    assert (ROOT / "docs" / "house.svg").read_text() == picture(), "run `make docs`"


def test_imports_are_relative() -> None:
    """Inside of the package nobody writes its name. `xrun_sky` is another: the launcher half may
    read what it tells SkyPilot's plugin, and packs it; an attempt asks the same policy when to
    leave its machines, and people are told of that."""
    written = [
        f"{name}: {ast.unparse(statement)}"
        for name, path in modules().items()
        for statement in statements(ast.parse(path.read_text()), typing=True)
        if re.search(r"(from|import) xrun\b", ast.unparse(statement))
    ]
    assert written == []
    assert importers({"xrun_sky"}, set(modules())) == [
        "xrun.alerts.message imports xrun_sky.stay",
        "xrun.alerts.sending imports xrun_sky.told",
        "xrun.launcher.arrival.failure imports xrun_sky.told",
        "xrun.launcher.sky.plugin imports xrun_sky",
        "xrun.launcher.sky.recovery imports xrun_sky.assignment",
        "xrun.launcher.wheel imports xrun_sky",
        "xrun.supervisor.arrive imports xrun_sky.told",
        "xrun.supervisor.leading imports xrun_sky.stay",
        "xrun.supervisor.leaving imports xrun_sky.stay",
    ]


def test_launcher_half_has_no_torch() -> None:
    """What the command line reaches never imports what trains, not even lazily."""
    assert not importers({"torch", "accelerate", "wandb"}, reached(*in_rooms(*LAUNCHER_HALF)))


def test_container_half_has_no_launcher() -> None:
    """What runs in the container never imports SkyPilot or click, not even lazily; the process that
    sends to W&B may import wandb."""
    assert not importers({"sky", "click"}, reached(*in_rooms(*CONTAINER_HALF)))


def test_supervisor_has_no_torch() -> None:
    """The process that owns the lease starts in a moment and cannot die of what trains.
    huggingface_hub is imported lazily, for a store on the Hub."""
    assert not importers(HEAVY - {"huggingface_hub"}, reached(*in_rooms("supervisor", "machine")))


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
        name
        for name in reached(*in_rooms("cli", "launcher"))
        if not name.startswith("xrun.store.hub")
    }  # for a store on the Hub only
    loaded("-c", block.format(sorted(HEAVY), ", ".join(sorted(needed))))


def test_container_half_loads_without_what_few_runs_need() -> None:
    """SkyPilot, the libraries of the extras, and those that one key of a recipe asks for."""
    missing = "sky obstore bitsandbytes tensorboard timm peft torchmetrics apprise".split()
    needed = {
        name
        for name in reached(*in_rooms("supervisor", "training"))
        if not name.startswith(("xrun.store.bucket.", "xrun.tracker.tensorboard.events"))
    }
    block = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    loaded("-c", f"{block}; import {', '.join(sorted(needed))}")
