"""docker/Dockerfile makes an image on which a machine installs nothing: read here, and its pins met
with the environment of the tests. No image is built: that needs a Docker daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution, version

import pytest

from support.paths import ROOT
from xrun.launcher.arrival.has_pins import build_of

ARRIVAL = ROOT / "runner" / "xrun" / "launcher" / "arrival"
PINS = ARRIVAL / "container.txt"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")


def instructions(name: str) -> list[str]:
    """What stands after this word, each in one line."""
    return re.findall(rf"^{name} +(.*)", DOCKERFILE, re.MULTILINE)


def test_the_image_has_the_pins_and_the_python_that_they_are_for() -> None:
    """The file itself is copied and installed, so no list of versions can differ from it."""
    (python,) = re.findall(r"Python (3\.\d+)", PINS.read_text())
    assert instructions("FROM") == [f"python:{python}-slim-bookworm"]
    assert instructions("COPY") == ["container.txt /opt/xrun/container.txt"]
    assert instructions("RUN")[-1].endswith("-r /opt/xrun/container.txt")
    pinned = [line for line in PINS.read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in pinned if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


@pytest.mark.cloud
def test_skypilot_finds_the_programs_that_it_would_install() -> None:
    """Those of its own list."""
    source = distribution("skypilot").locate_file("sky/provision/docker_utils.py").read_text()
    (listed,) = re.findall(r"force-confnew install -y '\s+'([\w -]+)", source)
    assert {"rsync", "openssh-server"} <= set(listed.split())
    assert set(listed.split()) <= set(instructions("RUN")[0].split())


@pytest.mark.cloud
def test_a_machine_with_the_pins_installs_nothing() -> None:
    """The question that machine_setup.sh asks, of an environment with these versions; a driver that
    needs another build of torch is a reason to install."""
    own = build_of(version("torch"))
    for builds, code in (([], 0), ([own], 0), (["another", own], 0), (["another"], 1)):
        ask = [sys.executable, str(ARRIVAL / "has_pins.py"), str(PINS), *builds]
        done = subprocess.run(ask, check=False, capture_output=True, text=True)
        assert (builds, done.returncode, done.stderr) == (builds, code, "")
