"""What travels with a job is the very code that launched it, whole, frozen, and enough for a bare
machine to train.

Covers `xrun.launcher.arrival.has_pins` and `xrun.supervisor.arrive`.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from loopback.hub import Hub
from support.paths import ROOT
from support.running import Project
from xrun.launcher.arrival.has_pins import missing
from xrun.launcher.bundle import pack, there
from xrun.launcher.offers import Offer, rank
from xrun.launcher.sky.recovery import OF_SKYPILOT
from xrun.launcher.sky.task import task_config
from xrun.launcher.throughput import Machines
from xrun.launcher.wheel import pack_wheel
from xrun.recipe.accelerators import Accelerators
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan
from xrun.run.prices import Price, read_prices
from xrun.supervisor import arrive as arrival
from xrun.supervisor.arrive import arrive

PACKAGE = ROOT / "runner" / "xrun"
PRICE = Price(
    cloud="aws",
    usd_per_hour=2.4655,
    region="us-east-1",
    instance="p4d.24xlarge",
    accelerators=Accelerators("A100", 8),
    spot=True,
    date="2026-11-21",
    source="a catalog",
)


def packed(plan: Plan, prices: Sequence[Price], setup: str | None = None) -> Path:
    """A cargo's folder, written."""
    cargo = pack(plan, prices, setup)
    cargo.write()
    return cargo.folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_is_the_running_code(tmp_path: Path) -> None:
    """Every file of the package and of the folders that the wheel carries, byte by byte."""
    name, data = pack_wheel()
    (tmp_path / name).write_bytes(data)
    archive = zipfile.ZipFile(tmp_path / name)
    here = {
        path.relative_to(PACKAGE.parent).as_posix(): path
        for package in (PACKAGE, PACKAGE.with_name("xrun_sky"))
        for path in package.rglob("*")
        if path.is_file()
    }
    for folder in ("models", "datasets", "recipes"):
        here |= {
            f"xrun/components/{path.relative_to(ROOT).as_posix()}": path
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
        }
    here = {name: path for name, path in here.items() if "__pycache__" not in name}
    assert {name for name in archive.namelist() if ".dist-info/" not in name} == set(here)
    assert not [name for name, path in here.items() if archive.read(name) != path.read_bytes()]
    assert pack_wheel() == (name, data)


def test_the_wheel_installs(tmp_path: Path) -> None:
    """pip takes it, and its commands and metadata are there."""
    name, data = pack_wheel()
    (tmp_path / name).write_bytes(data)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--disable-pip-version-check",
        "--target",
        "there",
    ]
    subprocess.run([*install, tmp_path / name], cwd=tmp_path, check=True)
    show = (
        "import xrun, importlib.metadata as m; print(xrun.__file__, m.version('xrun'),"
        " m.entry_points(name='xrun'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", show],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": "there"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "there" / "xrun"))
    assert "xrun.cli:main" in done.stdout


def pins(path: Path) -> dict[str, str]:
    lines = [
        line.split("==")
        for line in path.read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    return {canonical(name): version for name, version in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: tuple[str, ...], found: set[str]) -> set[str]:
    """Every distribution that this one needs here, with itself."""
    found.add(canonical(name))
    for wanted in map(Requirement, distribution(name).requires or []):
        applies = wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        if applies and (canonical(wanted.name) not in found or wanted.extras):
            needed(wanted.name, tuple(wanted.extras), found)
    return found


@pytest.mark.cloud
def test_the_containers_pins_are_those_of_the_tested_environment() -> None:
    """container.txt is the part of constraints/cloud.txt that the container half needs: nothing
    missing, nothing else."""
    tested, carried = (
        pins(ROOT / "constraints" / "cloud.txt"),
        pins(PACKAGE / "launcher" / "arrival" / "container.txt"),
    )
    assert carried == {
        name: tested[name] for name in needed("xrun", ("train",), set()) if name in tested
    }
    assert {"torch", "accelerate", "safetensors", "huggingface-hub", "wandb"} <= carried.keys()
    assert not {"skypilot", "pytest"} & carried.keys()


@pytest.mark.cloud
def test_a_bucket_brings_its_library_along(project: Project) -> None:
    """In the version of constraints/cloud.txt, with its hashes, after the recipe's own; and all
    that it needs is pinned already. Another store brings nothing."""
    tested = pins(ROOT / "constraints" / "cloud.txt")
    plain = project.plan()
    assert "requirements.txt" not in names(packed(plain, [PRICE]))
    plan = project.plan("checkpoint.store=s3://bucket/runs")
    own = replace(plan, requirements={"wanted": ["x"], "made_of": "", "text": "x==1 \\\n    --h\n"})
    carried = (packed(own, [PRICE]) / "requirements.txt").read_text()
    assert carried.startswith("x==1")
    assert f"\nobstore=={tested['obstore']} \\\n    --hash=sha256:" in carried
    needs = needed("obstore", (), set()) - {"obstore"}
    assert needs <= pins(PACKAGE / "launcher" / "arrival" / "container.txt").keys()


@pytest.mark.cloud
def test_a_packed_base_brings_its_library_along(project: Project) -> None:
    """As a bucket does."""
    tested = pins(ROOT / "constraints" / "cloud.txt")
    packs = ("model.adapter={name: lora}", "model.frozen=4bit", "train.precision=bf16")
    carried = (packed(project.plan(*packs), [PRICE]) / "requirements.txt").read_text()
    assert f"\nbitsandbytes=={tested['bitsandbytes']} \\\n    --hash=sha256:" in carried
    needs = needed("bitsandbytes", (), set()) - needed("torch", (), set()) - {"bitsandbytes"}
    assert "torch" not in needs
    assert needs <= pins(PACKAGE / "launcher" / "arrival" / "container.txt").keys()


@pytest.mark.cloud
def test_alerts_bring_their_library_along(project: Project) -> None:
    """With what it needs and the pins lack."""
    tested = pins(ROOT / "constraints" / "cloud.txt")
    packed_by = packed(project.plan("alerts.to=[HOOK]"), [PRICE]) / "requirements.txt"
    carried, there = pins(packed_by), pins(PACKAGE / "launcher" / "arrival" / "container.txt")
    versions = {name: line.split()[0] for name, line in carried.items()}
    assert versions == {name: tested[name] for name in versions}
    assert needed("apprise", (), set()) == carried.keys() | (
        needed("apprise", (), set()) & there.keys()
    )
    assert not carried.keys() & there.keys()


def test_an_image_that_has_the_pins_is_known() -> None:
    version = distribution("numpy").version
    assert missing(f"# numpy==0\nnumpy=={version}\n") == []
    assert missing("numpy==0.1\nno-such-library==1\n") == ["numpy", "no-such-library"]


def test_cargo_is_frozen(project: Project) -> None:
    """What is edited after a launch does not change what a recovered attempt gets; the next launch
    has a cargo of its own."""
    plan = project.plan()
    first = packed(plan, [PRICE])
    assert packed(plan, [PRICE]) == first
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    project.write("models/line.py", "def build(): ...\n")
    second = packed(plan, [PRICE])
    assert second != first
    assert (second / "project/models/line.py").read_text() == "def build(): ...\n"
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert {path.name for path in first.parent.iterdir()} == {first.name, second.name}


def test_cargo_holds_the_project_the_prices_and_no_caches(project: Project) -> None:
    project.write("models/__pycache__/line.pyc", "x")
    project.write("datasets/words.txt", "a list that a component reads")
    cargo = packed(project.plan(), [PRICE], setup="pip install einops")
    assert {name for name in names(cargo) if name.startswith("project/")} == {
        "project/models/line.py",
        "project/datasets/points.py",
        "project/datasets/words.txt",
        "project/recipes/tiny.yaml",
    }
    assert (cargo / "recipe_setup.sh").read_text() == "pip install einops"
    (price,) = read_prices((cargo / "prices.json").read_text())
    assert (price.cloud, price.region, price.usd_per_hour, price.spot, price.date) == (
        "aws",
        "us-east-1",
        2.4655,
        True,
        "2026-11-21",
    )


def test_commit_and_changes_are_kept(project: Project) -> None:
    """The diff against the commit, and the names of files that git does not know."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project.root)]
    for command in (["init", "-q"], ["add", "models", "datasets"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    project.write("models/line.py", (project.root / "models/line.py").read_text() + "# changed\n")
    diff = (packed(project.plan(), []) / "dirty.diff").read_text()
    assert "+# changed" in diff
    assert "# not in git: recipes/tiny.yaml" in diff


HIDDEN = (
    ".env", "models/.env", "models/.hidden/x.py", "models/.ssh/deep/er/id_rsa",
    "models/a/.git/config", "datasets/deep/.netrc", "models/__pycache__/x.py",
)  # fmt: skip
SECRET = (
    "models/id_ed25519", "models/server.pem", "datasets/prod.env", "datasets/prod.env.local",
    "models/deep/credentials.json", "datasets/token", "datasets/my-service-account-1.json",
    "models/Secrets.yaml", "models/_netrc", "datasets/.kaggle.json",
)  # fmt: skip
"""Files that hold secrets, by their names; Python modules are code."""


def test_neither_hidden_files_nor_secrets_travel(tmp_path: Path) -> None:
    """However deep, and not by a link: what one leads to elsewhere stays where it is."""
    inner, outside = tmp_path / "inner", tmp_path / "outside"
    inner.mkdir()
    outside.mkdir()
    project = Project(inner)
    for name in (*HIDDEN, *SECRET):
        project.write(name, "top secret")
    (outside / "secret.py").write_text("top secret")
    links = {
        "models/link.py": outside / "secret.py",
        "models/folder": outside,
        "models/up.py": Path("../../outside/secret.py"),
        "models/hidden.py": Path(".env"),
        "models/circle.py": Path("circle.py"),
    }
    for name, to in links.items():
        (project.root / name).symlink_to(to)
    project.write("models/secrets.py", "names = []\n")
    (project.root / "models/same.py").symlink_to("line.py")
    cargo = packed(project.plan(), [])
    assert {name for name in names(cargo) if name.startswith("project/")} == {
        "project/models/line.py",
        "project/models/same.py",
        "project/models/secrets.py",
        "project/datasets/points.py",
        "project/recipes/tiny.yaml",
    }
    found = {name for name in names(cargo) if b"top secret" in (cargo / name).read_bytes()}
    assert found == set()


def test_what_changed_in_secrets_does_not_travel(tmp_path: Path) -> None:
    """Neither in the difference to the commit nor as a name; nor does git run a program that the
    repository names, or look outside of the project."""
    repository, inner = tmp_path, tmp_path / "inner"
    inner.mkdir()
    project = Project(inner)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    tracked = ("prod.env", "models/.key", "deep/.ssh/config", "models/key.pem", "x/y/token")
    for name in (*tracked, "notes.txt"):
        project.write(name, "old\n")
    (repository / "outside.txt").write_text("old\n")
    for command in (["init", "-q"], ["add", "-f", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    for name in tracked:
        project.write(name, "top secret\n")
    (repository / "outside.txt").write_text("top secret\n")
    project.write("notes.txt", "new\n")
    project.write(".env.new", "top secret\n")
    project.write("id_rsa", "top secret\n")
    subprocess.run([*git, "config", "diff.external", "echo top secret"], check=True)
    subprocess.run([*git, "config", "core.fsmonitor", "touch top-secret"], check=True)
    diff = (packed(project.plan(), []) / "dirty.diff").read_text()
    assert "+new" in diff
    assert "secret" not in diff
    assert [name for name in (*tracked, ".env.new", "id_rsa", "outside") if name in diff] == []


def test_own_modules_travel(project: Project) -> None:
    """A package of the project's that a component imports is there on the machine, too."""
    project.write("mylib/__init__.py", "from .parts import WIDTH\n")
    project.write("mylib/parts.py", "WIDTH = 8\n")
    project.write("mylib/unused.py", "")
    line = (project.root / "models/line.py").read_text()
    project.write("models/line.py", f"from mylib import WIDTH\n{line}")
    cargo = packed(project.plan(), [])
    assert {name for name in names(cargo) if name.startswith("project/mylib/")} == {
        "project/mylib/__init__.py",
        "project/mylib/parts.py",
    }


def test_plan_and_cargo_are_their_owners_alone(project: Project) -> None:
    """0600 and 0700, whatever the umask."""
    before = os.umask(0)
    try:
        plan = project.plan()
        cargo = packed(plan, [PRICE])
        written = RunFolder(plan.folder).write_plan(plan)
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE(cargo.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cargo.rglob("*") if path.is_file()} == {
        0o600
    }


def test_a_damaged_cargo_is_packed_again(project: Project) -> None:
    """What a killed launcher or a person has left there does not travel."""
    cargo = packed(project.plan(), [PRICE])
    before = {name: (cargo / name).read_bytes() for name in names(cargo)}
    (cargo / "plan.json").write_text("{}")
    (cargo / "project/models/line.py").unlink()
    assert packed(project.plan(), [PRICE]) == cargo
    assert {name: (cargo / name).read_bytes() for name in names(cargo)} == before


def test_the_plan_arrives_with_the_paths_of_the_machine(project: Project) -> None:
    plan = project.plan()
    cargo = packed(plan, [])
    travelling = Plan.from_json((cargo / "plan.json").read_text())
    assert travelling.home == "~/xrun/runs"
    assert travelling.project == f"{there(plan.run)}/project"
    machine = Path(os.environ["HOME"])
    assert arrive(cargo) == machine / "xrun" / "runs" / plan.run / "plan.json"
    arrived = Plan.from_json(arrive(cargo).read_text())
    assert (arrived.home, arrived.project) == (
        str(machine / "xrun/runs"),
        str(machine / "xrun" / plan.run / "cargo/project"),
    )
    assert arrived.digest == plan.digest


def test_what_cannot_arrive_ends_with_its_code(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that the Hub does not know is so on every machine."""
    assert arrival.main(str(packed(project.plan(), []))) == 0
    with Hub(tmp_path / "hub") as hub:
        for name, value in (hub.environ() | {"HF_TOKEN": "no-token"}).items():
            monkeypatch.setenv(name, value)
        assert arrival.main(str(packed(project.plan("checkpoint.store=hub"), []))) == 3


def bare_machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with an empty HOME, whose Python has the pinned libraries."""
    (tmp_path / "machine").mkdir()
    return {
        "HOME": str(tmp_path / "machine"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }


def on_a_cloud(project: Project, *overrides: str) -> Plan:
    """The plan of one machine of a cloud that keeps its disk."""
    return project.plan("hardware={any_of: [{spot: false}]}", *overrides)


def placed(plan: Plan, prices: Sequence[Price], machine: Path, setup: str | None = None) -> str:
    """Put the cargo where the job's machine has it; the script that the task runs there."""
    cargo = packed(plan, prices, setup)
    own = Offer(0, "aws", "r1", "m", Machines(None, 1), (replace(PRICE, spot=False),), False)
    task = task_config(
        plan, rank([own], plan.load_recipe().hardware.any_of), cargo, OF_SKYPILOT, {}
    )
    target = machine / there(plan.run).removeprefix("~/")
    target.parent.mkdir(parents=True)
    cargo.rename(target)
    return str(task["run"])


def shell(script: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What a job's machine does with a script; it has to end with 0."""
    done = subprocess.run(
        ["bash", "-c", script], cwd=environ["HOME"], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.cloud
def test_a_bare_machine_trains_from_cargo_alone(project: Project, tmp_path: Path) -> None:
    """The script of the task, in an empty HOME whose Python has the pinned libraries; the second
    time nothing is installed. The prices of 2,000 offers are known there."""
    plan = on_a_cloud(project, "train.steps=4")
    environ = bare_machine(tmp_path)
    machine = Path(environ["HOME"])
    prices = [
        replace(PRICE, region=f"r{number}", usd_per_hour=1 + number) for number in range(2000)
    ]
    script = placed(plan, prices, machine, setup=f"echo once >> {tmp_path}/setup.log")
    assert (machine / there(plan.run)[2:] / "prices.json").stat().st_size > 128 * 1024
    assert re.search(r"xrun is ready after \d+ s", shell(script, environ).stdout)
    run = machine / "xrun/runs" / plan.run
    points = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(points[-1])["step"] == 4
    (attempt,) = RunFolder(run).record().attempts
    assert attempt.usd_per_hour == 2000.0, "of several that fit the dearest counts"
    began = time.monotonic()
    assert "is ready after" not in shell(script, environ).stdout
    assert time.monotonic() - began < 20
    assert (tmp_path / "setup.log").read_text() == "once\n"
    code = shell("~/xrun/python -c 'import xrun; print(xrun.__file__)'", environ).stdout
    assert code.startswith(str(machine / "xrun" / "environments"))
