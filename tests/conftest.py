"""Every test starts with a clean environment: an empty HOME, no accounts, nobody where Hugging Face
would be."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

OWNED = (
    "XRUN_",
    "HF_",
    "HUGGING_FACE_",
    "TRANSFORMERS_",
    "WANDB_",
    "SKYPILOT_",
    "XDG_",
    "PYTEST_ADDOPTS",
    "PYTHONPATH",
)
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

NOBODY = "http://127.0.0.1:9"
"""Nobody listens there, so what is not meant for a loopback server fails at once."""

ACCOUNTS = {name: value for name, value in os.environ.items() if name.startswith(("HF_", "WANDB_"))}

# huggingface_hub reads it once, at its first import, which may be the import of a test file.
os.environ["HF_ENDPOINT"] = NOBODY

# What a script starts in the background has SIGINT ignored, and so would every process of a test.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMIT = pytest.StashKey[str]()

settings.register_profile(
    "xrun", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # how busy the machine is, is not the test's news
settings.load_profile("xrun")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HOME is a new empty folder, and nothing of this machine's accounts, runs or ranks can be
    seen.

    Afterwards the environment is as it was, whatever the test or the code in it has set
    (`XRUN_PROJECT` is set by code).
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(OWNED) or name in RANKS:
            del os.environ[name]
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["HF_ENDPOINT"] = NOBODY
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def accounts() -> dict[str, str]:
    """The accounts that the tests were started with, for those that are meant to use them."""
    return ACCOUNTS


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--results FOLDER` keeps what came of the tests, by the day: `make soak` does."""
    parser.addoption("--results", metavar="FOLDER", help="Keep the outcomes in FOLDER/DAY.json.")


def pytest_configure(config: pytest.Config) -> None:
    """The commit that is tested, before hours in which another may come."""
    if config.getoption("--results"):
        config.stash[COMMIT] = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A file of the day, beside what other tests came to on that day."""
    if not (folder := config.getoption("--results")):
        return
    path = Path(folder) / f"{time.strftime('%Y-%m-%d', time.gmtime())}.json"
    tests = json.loads(path.read_text())["tests"] if path.exists() else {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call":
                tests[report.nodeid] = {
                    "outcome": report.outcome,
                    "seconds": round(report.duration, 1),
                    "commit": config.stash[COMMIT],
                }
    told = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "tests": dict(sorted(tests.items())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
    terminalreporter.write_line(f"The outcomes are in {path}")
