"""What nvidia-smi says: a real program on PATH, as a driver brings it along."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.drivers import stand_in
from xrun.machine.driver import Driver, ask_driver, read_driver


def test_the_driver_and_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One version, and every GPU by its name, a comma in it or not."""
    path = stand_in(tmp_path / "bin", "550.54.15", "NVIDIA A100-SXM4-80GB", gpus=8)
    monkeypatch.setenv("PATH", path + os.pathsep + os.environ["PATH"])
    driver = ask_driver()
    assert driver == Driver("550.54.15", ("NVIDIA A100-SXM4-80GB",) * 8)
    assert str(driver) == "driver 550.54.15 with 8 x NVIDIA A100-SXM4-80GB"
    assert read_driver(0, "580.1, GPU, with comma\n").gpus == ("GPU, with comma",)


def test_a_driver_in_trouble_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first line and its exit code; a program that is not there is not there."""
    path = stand_in(tmp_path / "bin", said="Failed to initialize NVML: Driver/library mismatch")
    monkeypatch.setenv("PATH", path + os.pathsep + os.environ["PATH"])
    broken = ask_driver()
    assert (broken.version, broken.gpus) == ("", ())
    assert broken.trouble == (
        "nvidia-smi ended with 9 and said: Failed to initialize NVML: Driver/library mismatch"
    )
    assert read_driver(0, "No devices were found\n").gpus == ()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_driver().trouble == "no driver: this machine has no nvidia-smi"
