"""A recipe's libraries on a machine: the real machine_setup.sh installs what a launch has locked,
with pip or uv, once, beside the pins."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.package_index import PackageIndex, package_index, wheel
from support.paths import ROOT
from xrun.launcher.arrival.failure import REQUIREMENTS, failure_of, verdict
from xrun.launcher.requirements import find_uv

pytestmark = pytest.mark.once

ARRIVAL = ROOT / "runner" / "xrun" / "launcher" / "arrival"
SHOW = "import small, extra; print(small.VERSION, extra.VERSION)"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    """Has the pin `small` and two versions of `extra`."""
    with package_index(tmp_path / "wheels") as index:
        index.add("small", "1.0")
        index.add("extra", "0.9")
        index.add("extra", "1.0", "nothing-that-is-there")  # dependencies were resolved before
        yield index


class Machine:
    """A machine's home with a cargo. `installer` is `pip` or `uv`; the pins, which are `small`, are
    installed already, or are in the machine's `image`."""

    def __init__(
        self, root: Path, index: PackageIndex, installer: str, image: bool = False
    ) -> None:
        self.root, self.index, self.cargo = root, index, root / "cargo"
        self.environ = index.environ(root) | {"PATH": f"{root}/bin:/usr/bin:/bin"}
        shutil.copytree(ARRIVAL, self.cargo)
        wheel(self.cargo, "xrun", "0")
        (self.cargo / "environment.key").write_text("key")
        (self.cargo / "container.txt").write_text("small==1.0\n")
        shutil.unpack_archive(index.folder / "small-1.0-py3-none-any.whl", root / "pins", "zip")
        pinned = f'export PYTHONPATH=$PYTHONPATH:{root}/pins\nexec {sys.executable} "$@"'
        self.program("bin/sleep", f"echo $1 >> {root}/waits")
        self.program("bin/python3", pinned if image else f'exec {sys.executable} "$@"')
        if installer == "uv":
            self.program("bin/uv", f'exec {find_uv()} "$@"')
        if not image:
            self.program("xrun/environments/key/python", pinned)
            (root / "xrun" / "environments" / "key" / "ready").touch()

    def program(self, place: str, does: str) -> None:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)

    def locks(self, name: str, version: str) -> None:
        """What a launch makes of a library."""
        path = self.index.folder / f"{name}-{version}-py3-none-any.whl"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        text = f"{name}=={version} \\\n    --hash=sha256:{digest}\n"
        (self.cargo / "requirements.txt").write_text(text)

    def set_up(self) -> subprocess.CompletedProcess[str]:
        command = ["bash", self.cargo / "machine_setup.sh", self.cargo]
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, check=False
        )

    def says(self, code: str = SHOW) -> str:
        """What a program prints that the machine's interpreter runs."""
        command = [self.root / "xrun" / "python", "-P", "-c", code]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_they_are_installed_once(tmp_path: Path, index: PackageIndex, installer: str) -> None:
    """Beside the pins; a second start, which is another machine with the same home, asks nothing,
    and each list of versions has a place of its own. The installer's cache is used."""
    machine = Machine(tmp_path / "machine", index, installer)
    machine.locks("extra", "1.0")
    done = machine.set_up()
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.says() == "1.0 1.0"
    index.asked.clear()
    assert machine.set_up().returncode == 0
    assert index.asked == []
    machine.locks("extra", "0.9")
    assert machine.set_up().returncode == 0
    assert machine.says() == "1.0 0.9"
    machine.locks("extra", "1.0")
    index.asked.clear()
    assert machine.set_up().returncode == 0
    assert (machine.says(), index.asked) == ("1.0 1.0", [])
    (machine.cargo / "requirements.txt").unlink()
    assert machine.set_up().returncode == 0
    assert machine.says("import importlib.util as i; print(i.find_spec('extra'))") == "None"


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_new_machine_takes_the_wheels_from_the_cache(
    tmp_path: Path, index: PackageIndex, installer: str
) -> None:
    """Where its home is new and the installer's cache is warm."""
    machine = Machine(tmp_path / "machine", index, installer)
    machine.environ["PIP_CACHE_DIR"] = str(tmp_path / "pip-cache")
    machine.locks("extra", "1.0")
    assert machine.set_up().returncode == 0
    shutil.rmtree(machine.root / "xrun/environments/key/requirements")
    index.asked.clear()
    assert machine.set_up().returncode == 0
    assert machine.says() == "1.0 1.0"
    assert [path for path in index.asked if path.startswith("/extra-1.0")] == []


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_image_that_brings_the_pins_gets_them_too(
    tmp_path: Path, index: PackageIndex, installer: str
) -> None:
    """No environment is made."""
    machine = Machine(tmp_path / "machine", index, installer, image=True)
    machine.locks("extra", "1.0")
    done = machine.set_up()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this machine has the pinned libraries" in done.stdout
    assert machine.says() == "1.0 1.0"
    assert not (machine.root / "xrun/environments/key/venv").exists()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_other_bytes_under_the_same_name_end_the_run(
    tmp_path: Path, index: PackageIndex, installer: str
) -> None:
    """At once and in one sentence: no machine gets the file that was locked."""
    machine = Machine(tmp_path / "machine", index, installer)
    machine.locks("extra", "1.0")
    index.add("extra", "1.0", "something-else")
    done = machine.set_up()
    assert done.returncode == 2, done.stdout + done.stderr
    (said,) = [line for line in done.stdout.splitlines() if "requirements could not be" in line]
    assert "the run ends here. Change `requirements` of the recipe" in said
    assert not (machine.root / "waits").exists()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_index_that_fails_is_asked_again(
    tmp_path: Path, index: PackageIndex, installer: str
) -> None:
    """Then another machine may try; nothing half-made is left."""
    machine = Machine(tmp_path / "machine", index, installer)
    machine.locks("extra", "1.0")
    index.fails = 1
    done = machine.set_up()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (machine.root / "waits").read_text().split() == ["5"]
    assert machine.says() == "1.0 1.0"
    machine.locks("extra", "0.9")
    index.fails = 10**6
    assert machine.set_up().returncode == 75
    assert machine.says() == "1.0 1.0"  # as it was before
    index.fails = 0
    assert machine.set_up().returncode == 0
    assert machine.says() == "1.0 0.9"


@pytest.mark.parametrize(("build", "said"), [("", "-"), ("+cu126", "cu126")])
def test_torchs_twins_are_of_its_build(
    tmp_path: Path, index: PackageIndex, build: str, said: str
) -> None:
    """The hash is of PyPI's build; where the machine has another torch, the installer is told the
    build, and other libraries keep their hashes."""
    machine = Machine(tmp_path / "machine", index, "uv")
    told = machine.root / "backends"
    log = f'echo "${{UV_TORCH_BACKEND:--}}" >> {told}\nunset UV_TORCH_BACKEND'
    machine.program("bin/uv", f'{log}\nexec {find_uv()} "$@"')
    torch = wheel(tmp_path, "torch", f"2.13.0{build}")
    shutil.unpack_archive(torch, machine.root / "pins", "zip")
    index.add("torchvision", "0.28.0")
    machine.locks("torchvision", "0.28.0")
    lines = (machine.cargo / "requirements.txt").read_text()
    machine.locks("extra", "1.0")
    with (machine.cargo / "requirements.txt").open("a") as file:
        file.write(lines)
    if build:
        index.add("torchvision", "0.28.0", "another-build")
    done = machine.set_up()
    assert done.returncode == 0, done.stdout + done.stderr
    assert told.read_text().split()[-1] == said
    assert machine.says("import torchvision, extra; print(torchvision.VERSION)") == "0.28.0"


def test_setup_has_them(tmp_path: Path, index: PackageIndex) -> None:
    """What the schema promises: the libraries, the home folder, `bash -e`, once."""
    machine = Machine(tmp_path / "machine", index, "pip")
    machine.locks("extra", "1.0")
    seen = "import json, os, extra; print(json.dumps([extra.VERSION, os.getcwd()]))"
    commands = f"python -c '{seen}' > seen\necho once >> times\nfalse || true\n"
    (machine.cargo / "recipe_setup.sh").write_text(commands)
    assert [machine.set_up().returncode for _ in range(2)] == [0, 0]
    assert json.loads((machine.root / "seen").read_text()) == ["1.0", str(machine.root)]
    assert (machine.root / "times").read_text() == "once\n"
    (machine.cargo / "recipe_setup.sh").write_text("false\ntouch further\n")
    assert machine.set_up().returncode == 2
    assert not (machine.root / "further").exists()


def test_what_nobody_knows_is_the_machines() -> None:
    """The versions were found before, so another machine may do."""
    assert failure_of("segmentation fault\n", REQUIREMENTS).passing
    elsewhere = "ERROR: extra-1-cp311-win.whl is not a supported wheel on this platform.\n"
    failure = failure_of(elsewhere, REQUIREMENTS)
    code, said = verdict(failure, REQUIREMENTS, 5)
    assert code == 2
    assert said.startswith("the recipe's requirements could not be installed: extra-1-cp311-win")
