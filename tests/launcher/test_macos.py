"""xrun installs and launches from macOS; training is promised on Linux only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT, SOURCES
from support.running import Project
from xrun.errors import LaunchError
from xrun.launcher.local import LocalCloud

pytestmark = pytest.mark.once

LINUX_ONLY = {
    "os": (
        "CLONE_FILES O_DIRECT O_NOATIME O_PATH O_TMPFILE POSIX_FADV_DONTNEED RWF_SYNC"
        " copy_file_range eventfd fdatasync getresuid listxattr memfd_create pidfd_open"
        " posix_fadvise posix_fallocate prlimit sched_getaffinity sched_setaffinity"
        " sched_setscheduler setns splice unshare"
    ),
    "socket": (
        "AF_NETLINK AF_PACKET AF_VSOCK SO_BINDTODEVICE SO_MARK SO_PEERCRED SOCK_CLOEXEC"
        " SOCK_NONBLOCK TCP_CONGESTION TCP_KEEPIDLE TCP_QUICKACK TCP_USER_TIMEOUT"
    ),
    "select": "epoll EPOLLIN EPOLLOUT EPOLLET EPOLL_CLOEXEC",
    "signal": (
        "SIGRTMIN SIGRTMAX SIGPWR SIGSTKFLT SIGPOLL pidfd_send_signal sigtimedwait sigwaitinfo"
    ),
    "resource": "prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_SIGPENDING RUSAGE_THREAD",
    "mmap": "MAP_POPULATE MAP_STACK MADV_DONTFORK MADV_HUGEPAGE MADV_MERGEABLE",
    "fcntl": "F_OFD_SETLK F_OFD_SETLKW F_ADD_SEALS F_SETPIPE_SZ F_GETPIPE_SZ",
    "time": "CLOCK_BOOTTIME CLOCK_TAI",
}
"""By module: names that macOS does not have."""
HOOK = """
import importlib, sys
for name, hidden in {hidden!r}.items():
    module = importlib.import_module(name)
    for attribute in hidden.split():
        vars(module).pop(attribute, None)
import os
assert not hasattr(os, "sched_getaffinity") and not hasattr(os, "posix_fallocate")
"""
"""Hides them before anything of xrun is imported, and everything that xrun imports at start."""


def hidden(code: str, *arguments: str, cwd: Path = ROOT) -> str:
    """Run Python code where these names are not there; what it prints."""
    command = [sys.executable, "-c", HOOK.format(hidden=LINUX_ONLY) + code, *arguments]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PYTHONPATH": SOURCES, "HOME": str(cwd), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_launcher_half_is_imported_without_linux() -> None:
    """Every module of cli/, launcher/, and of what they stand on."""
    rooms = ("cli", "launcher", "recipe", "run", "store", "tracker/wandb")
    modules = [
        ".".join(("xrun", *path.relative_to(Path(SOURCES) / "xrun").with_suffix("").parts))
        for room in rooms
        for path in sorted((Path(SOURCES) / "xrun" / room).rglob("*.py"))
        if path.name != "__init__.py" and "has_pins" not in path.name
    ]
    assert len(modules) > 50
    assert hidden(f"import {', '.join(modules)}; print('done')") == "done\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "survive every kill"),
        (["check", str(ROOT / "recipes" / "digits_mlp.yaml")], "digits-mlp is fine."),
        (["plan", "recipes/tiny.yaml", "--json"], '"run": "tiny-'),
        (["schema"], "json-schema.org"),
        (["status", "--json"], "[]"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_work_without_linux(tmp_path: Path, arguments: list[str], said: str) -> None:
    project = Project(tmp_path)
    run = "from xrun.cli import main; main()"
    assert said in hidden(run, *arguments, cwd=project.root)


def test_training_elsewhere_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    plan = Project(tmp_path).plan()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(
        LaunchError, match=r"^Training needs Linux, and this machine runs \w+\."
    ) as no:
        LocalCloud().run(plan)
    assert "hardware.any_of" in no.value.hint
    assert not plan.folder.exists()
