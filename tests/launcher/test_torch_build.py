"""Which build of torch a machine installs: by its driver and its GPUs, asked of a program that
stands in for the driver's.

Covers `xrun.launcher.arrival.torch_build`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from support.drivers import stand_in
from support.paths import ROOT
from xrun.launcher.arrival.has_pins import build_of
from xrun.launcher.arrival.torch_build import builds_for

ARRIVAL = ROOT / "runner" / "xrun" / "launcher" / "arrival"
INTEL = platform.machine() == "x86_64"


@pytest.mark.parametrize(
    ("driver", "capability", "processor", "builds"),
    [
        ("580.65.06", "9.0", "x86_64", "cu130 cu126"),
        ("580", "7.5", "x86_64", "cu130 cu126"),
        ("575.57.08", "9.0", "x86_64", "cu126"),
        ("550.54.15", "8.9", "x86_64", "cu126"),
        ("525.60.13", "7.5", "x86_64", "cu126"),
        ("525.60.2", "7.5", "x86_64", ""),  # older, though not by its letters
        ("470.82.01", "9.0", "x86_64", ""),
        ("590.1", "10.0", "x86_64", "cu130"),
        ("570.86.15", "10.0", "x86_64", ""),  # a B200 whose driver has no CUDA 13
        ("580.65.06", "12.1", "aarch64", "cu130"),
        ("580.65.06", "9.0", "aarch64", "cu130 cu126"),
        ("580.65.06", "7.5", "aarch64", ""),
        ("580.65.06", "7.0", "x86_64", ""),
        ("580.65.06", "9.0", "riscv64", ""),
    ],
)
def test_which_builds_a_machine_can_use(
    driver: str, capability: str, processor: str, builds: str
) -> None:
    assert " ".join(builds_for(driver, [capability], processor)) == builds


def test_a_build_serves_every_gpu_of_the_machine() -> None:
    """Of two kinds the newer one needs the newer build, or there is none."""
    assert builds_for("580.65.06", ["10.0", "9.0"], "x86_64") == ["cu130"]
    assert builds_for("550.54.15", ["10.0", "9.0"], "x86_64") == []


def asked(path: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The question as a machine asks it."""
    own = {"PATH": path + os.pathsep + "/usr/bin:/bin", **environ}
    command = [sys.executable, str(ARRIVAL / "torch_build.py")]
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not INTEL, reason="the answers are those of x86-64")
def test_a_machine_answers_with_its_builds(tmp_path: Path) -> None:
    """The newest first; where GPUs were rented and nothing serves them it ends with 75 and one
    sentence; without rented GPUs there is nothing to refuse."""
    rented = {"SKYPILOT_SETUP_NUM_GPUS_PER_NODE": "2"}
    good = stand_in(tmp_path / "good", "580.65.06", gpus=2)
    assert (asked(good, **rented).stdout, asked(good).stdout) == ("cu130 cu126\n",) * 2
    old = stand_in(tmp_path / "old", "470.82.01", gpus=2)
    done = asked(old, **rented)
    assert (done.returncode, done.stdout) == (75, "")
    assert "(driver 470.82.01, compute capability 9.0, x86_64)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (asked(old).returncode, asked(old).stdout) == (0, "\n")


@pytest.mark.skipif(not INTEL, reason="the answers are those of x86-64")
def test_a_driver_in_trouble_is_another_machine(tmp_path: Path) -> None:
    """One that does not answer, or that is not there at all, where GPUs were rented."""
    broken = stand_in(tmp_path / "broken", said="NVIDIA-SMI has failed")
    done = asked(broken, SKYPILOT_NUM_GPUS_PER_NODE="1")
    assert (done.returncode, "and said: NVIDIA-SMI has failed" in done.stderr) == (75, True)
    none = asked(str(tmp_path), SKYPILOT_NUM_GPUS_PER_NODE="1")
    assert (none.returncode, "nvidia-smi does not run" in none.stderr) == (75, True)
    assert asked(str(tmp_path)).returncode == 0


def test_an_images_build_has_a_name() -> None:
    """PyPI's torch says nothing in its version; it is the one for CUDA 13."""
    assert [build_of(each) for each in ("2.13.0", "2.13.0+cu126", "2.13.0+cpu")] == [
        "cu130",
        "cu126",
        "cpu",
    ]


@pytest.mark.parametrize(
    ("builds", "taken"),
    [("", True), ("{own}", True), ("cu130 {own}", True), ("cu118", False)],
)
def test_an_image_is_taken_with_a_build_that_its_machine_can_use(
    tmp_path: Path, builds: str, taken: bool
) -> None:
    """On a machine without GPUs every build will do."""
    pins, here = tmp_path / "container.txt", version("torch")
    pins.write_text(f"torch=={here.partition('+')[0]}\n")
    names = builds.format(own=build_of(here)).split()
    command = [sys.executable, str(ARRIVAL / "has_pins.py"), str(pins), *names]
    assert (subprocess.run(command, check=False).returncode == 0) == taken


UV = """\
#!/bin/sh
echo "$1 $2 UV_TORCH_BACKEND=$UV_TORCH_BACKEND" >> "$HOME/uv.log"
"""


@pytest.mark.skipif(not INTEL, reason="the answers are those of x86-64")
@pytest.mark.parametrize(
    ("driver", "code", "installed"),
    [("580.65.06", 0, "cu130"), ("550.54.15", 0, "cu126"), ("470.82.01", 75, None), ("", 0, "")],
)
def test_the_build_is_installed_by_its_name(
    tmp_path: Path, driver: str, code: int, installed: str | None
) -> None:
    """uv is told the build, never `auto`; the environment is that build's own, so a home that is
    shared by machines with other drivers has one for each."""
    cargo, path = tmp_path / "cargo", tmp_path / "bin"
    cargo.mkdir()
    for name in ("machine_setup.sh", "torch_build.py", "has_pins.py"):
        (cargo / name).write_bytes((ARRIVAL / name).read_bytes())
    (cargo / "container.txt").write_text("torch==0.1\n")
    (cargo / "xrun-1-py3-none-any.whl").touch()
    (cargo / "environment.key").write_text("key")
    stand_in(path, driver, said="" if driver else "no GPU here")
    (path / "uv").write_text(UV)
    (path / "uv").chmod(0o755)
    environ = {
        "HOME": str(tmp_path),
        "PATH": f"{path}:{Path(sys.executable).parent}:/usr/bin:/bin",
        **({"SKYPILOT_SETUP_NUM_GPUS_PER_NODE": "1"} if driver else {}),
    }
    command = ["bash", str(cargo / "machine_setup.sh"), str(cargo)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if installed is None:
        assert not (tmp_path / "uv.log").exists()
        return
    assert (tmp_path / "uv.log").read_text().splitlines()[-1] == (
        f"pip install UV_TORCH_BACKEND={installed}"
    )
    home = f"key-{installed}" if installed else "key"
    python = (tmp_path / "xrun" / "python").readlink()
    assert python == tmp_path / "xrun" / "environments" / home / "python"
