"""SkyPilot in xrun's words: what it needs of this machine is told before anything is launched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from support.sky_home import SkyHome

pytestmark = pytest.mark.cloud

ASK = """
from xrun.errors import XrunError
from xrun.launcher.sky.client import check_system
try:
    check_system()
    print("fine")
except XrunError as error:
    print(error.exit_code, error)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    return SkyHome(tmp_path_factory.mktemp("sky"))


def programs(folder: Path, *names: str) -> str:
    """A PATH with these programs and no others."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which("true") or "/bin/true")
    return str(folder)


@pytest.mark.parametrize(
    ("there", "missing", "packages"),
    [
        (["rsync"], "ssh", "openssh-client"),
        (["ssh"], "rsync", "rsync"),
        ([], "rsync and ssh", "rsync openssh-client"),
    ],
)
def test_a_program_that_is_missing_is_one_sentence(
    home: SkyHome, tmp_path: Path, there: list[str], missing: str, packages: str
) -> None:
    """With the package that holds it."""
    home.environment["PATH"] = programs(tmp_path / "bin", *there)
    done = home.python(ASK)
    assert done.code == 0, done.err
    assert done.out.strip() == (
        f"3 SkyPilot sends files to the machines with {missing}, which this machine does not have."
        f" On Debian and Ubuntu: `apt install {packages}`. Then run the same command again."
    )


def test_where_nothing_is_missing_nothing_is_said(home: SkyHome, tmp_path: Path) -> None:
    home.environment["PATH"] = programs(tmp_path / "bin", "rsync", "ssh")
    assert home.python(ASK).out.strip() == "fine"


def test_an_api_server_elsewhere_has_programs_of_its_own(home: SkyHome, tmp_path: Path) -> None:
    """It sends the files, and this machine needs none."""
    home.environment["PATH"] = programs(tmp_path / "bin")
    elsewhere = {"SKYPILOT_API_SERVER_ENDPOINT": "http://127.0.0.1:9"}
    home.environment |= elsewhere
    try:
        assert home.python(ASK).out.strip() == "fine"
    finally:
        for name in elsewhere:
            del home.environment[name]
        home.environment["PATH"] = os.environ["PATH"]
