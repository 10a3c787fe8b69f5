"""An installation that fails: tried again, left to another machine, or the end of the run; with the
real machine_setup.sh, pip, and a package index that fails."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.paths import ROOT
from support.receivers import Webhook
from xrun import environment
from xrun.launcher.arrival.failure import PINS, RECIPE, Failure, failure_of, verdict

pytestmark = pytest.mark.once

ARRIVAL = ROOT / "runner" / "xrun" / "launcher" / "arrival"
NOTHING_MATCHES = (
    "ERROR: Could not find a version that satisfies the requirement small==1.0"
    " (from versions: {})\n"
    "ERROR: No matching distribution found for small==1.0\n"
)
UNAVAILABLE = (
    "2026-11-26T05:03:17,265 Could not fetch URL http://index/simple/small/: HTTPConnectionPool("
    "host='index', port=80): Max retries exceeded with url: /simple/small/"
    " (Caused by ResponseError('too many 503 error responses')) - skipping\n"
)
NOT_THERE = (
    "2026-11-26T05:03:18,809 Could not fetch URL http://index/simple/small/: 404 Client Error: Not"
    " Found for url: http://index/simple/small/ - skipping\n"
)
UV_DOWN = (
    "error: Failed to fetch: http://index/simple/small/\n"
    "  cause: HTTP status server error (503 Service Unavailable) for url (http://index/simple/)\n"
)
UV_NONE = (
    "error: No solution found when resolving dependencies\n  cause: Because there is no version of"
    " small==1.0 and you require small==1.0, we can conclude that your requirements are"
    " unsatisfiable.\n"
)
CONFLICT = (
    "ERROR: Cannot install small==1.0 because these package versions have conflicting"
    " dependencies.\nERROR: ResolutionImpossible: for help visit https://pip.pypa.io/\n"
)


@pytest.mark.parametrize(
    ("printed", "passing"),
    [
        (NOTHING_MATCHES.format("2.0"), False),
        (NOTHING_MATCHES.format("none") + NOT_THERE, False),
        (NOTHING_MATCHES.format("none") + UNAVAILABLE, True),
        (CONFLICT, False),
        (UV_NONE, False),
        (UV_DOWN, True),
        ("OSError: [Errno 28] No space left on device\n", False),
        ("curl: (6) Could not resolve host: example.org\n", True),
        ("E: Failed to fetch http://deb.debian.org/x  Temporary failure resolving\n", True),
    ],
)
@pytest.mark.parametrize("what", [PINS, RECIPE])
def test_what_installers_print_is_understood(printed: str, passing: bool, what: str) -> None:
    """A network that fails and versions that are not there are told apart, as pip and uv print
    them; what is known so holds for the pins and for a recipe's own commands."""
    assert failure_of(printed, what).passing is passing


def test_what_nobody_knows_is_the_machines_or_the_recipes() -> None:
    assert failure_of("segmentation fault\n", PINS) == Failure("segmentation fault", passing=True)
    assert failure_of("my own words.\n", RECIPE) == Failure("my own words", passing=False)
    assert failure_of("", RECIPE).line == "it printed nothing"


def test_the_line_that_says_most_is_told() -> None:
    assert failure_of(NOTHING_MATCHES.format("2.0"), PINS).line == (
        "No matching distribution found for small==1.0"
    )
    assert failure_of(CONFLICT, PINS).line.startswith("Cannot install small==1.0 because")
    assert failure_of(UV_NONE, PINS).line.startswith("Because there is no version of small==1.0")
    assert failure_of(UV_DOWN, PINS).line == "Failed to fetch: http://index/simple/small/"


def test_the_verdict_is_an_exit_code() -> None:
    """0 tries again, 75 leaves it to another machine, 2 ends the run."""
    passing, final = Failure("no network", passing=True), Failure("no such version", passing=False)
    assert [verdict(passing, PINS, seconds)[0] for seconds in (5, 0)] == [0, 75]
    assert [verdict(final, PINS, seconds)[0] for seconds in (5, 0)] == [2, 2]
    assert "Change `setup` of the recipe" in verdict(final, RECIPE, 5)[1]


@dataclass
class Index:
    """A package index that has `small` 1.0; it answers 503 to the first `fails` requests."""

    wheel: bytes
    fails: int = 0
    asked: int = 0
    url: str = field(default="", init=False)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    told = Index(wheel(tmp_path / "small.whl", "small", "1.0"))

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked += 1
            if told.asked <= told.fails:
                self.send_error(503)
                return
            page = b'<a href="/small-1.0-py3-none-any.whl">small-1.0-py3-none-any.whl</a>'
            body = page if self.path.startswith("/simple/small") else told.wheel
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        told.url = f"http://127.0.0.1:{server.server_port}/simple"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def wheel(path: Path, name: str, version: str, *metadata: str) -> bytes:
    """An empty package that pip installs."""
    info = f"{name}-{version}.dist-info"
    told = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(told) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


class Machine:
    """An empty machine with a cargo whose xrun needs `small`; `waits` are the seconds that it would
    have waited."""

    def __init__(self, root: Path, index: Index, needs: str = "small==1.0") -> None:
        self.root, self.cargo = root / "machine", root / "machine" / "cargo"
        shutil.copytree(ARRIVAL, self.cargo)
        extra = ("Provides-Extra: train", f"Requires-Dist: {needs}; extra == 'train'")
        wheel(self.cargo / "xrun-0-py3-none-any.whl", "xrun", "0", *extra)
        (self.cargo / "environment.key").write_text("key")
        (self.cargo / "container.txt").write_text("small==1.0\n")
        (self.root / "bin").mkdir()
        with zipfile.ZipFile(self.cargo / "xrun-0-py3-none-any.whl", "a") as archive:
            for each in (ROOT / "runner" / "xrun_sky").glob("*.py"):
                archive.write(each, f"xrun_sky/{each.name}")
        (self.cargo / "plan.json").write_text('{"run": "tiny-1"}')
        self.program("sleep", f"echo $1 >> {self.root}/waits")
        self.program("python3", f'exec {sys.executable} "$@"')
        self.environ = {
            "HOME": str(self.root),
            "PATH": f"{self.root}/bin:/usr/bin:/bin",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index.url,
            "PIP_RETRIES": "0",
            "PIP_NO_CACHE_DIR": "1",
        }

    def program(self, name: str, does: str) -> None:
        """A program of the machine's; it has no uv unless a test gives it one."""
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)

    def alert(self, hook: Webhook) -> None:
        """Its recipe wants people to be told."""
        told = {"to": ["HOOK"], "on": ["failed", "stalled"]}
        self.environ |= {environment.ALERTS.name: json.dumps(told), "HOOK": hook.address}
        self.environ["SKYPILOT_TASK_ID"] = "sky-managed-1"

    def set_up(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.cargo / "machine_setup.sh", self.cargo],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def waits(self) -> list[str]:
        path = self.root / "waits"
        return path.read_text().split() if path.exists() else []


def test_an_index_that_fails_for_a_while_is_asked_again(tmp_path: Path, index: Index) -> None:
    """After 5 s and 15 s; then the library is there, and a second time nothing is asked."""
    index.fails = 2
    machine = Machine(tmp_path, index)
    done = machine.set_up()
    assert (done.returncode, machine.waits) == (0, ["5", "15"]), done.stdout + done.stderr
    asked = index.asked
    show = "import importlib.metadata as m; print(m.version('small'))"
    command = [machine.root / "xrun" / "python", "-c", show]
    assert subprocess.run(command, env=machine.environ, capture_output=True).stdout == b"1.0\n"
    assert machine.set_up().returncode == 0
    assert index.asked == asked


def test_an_index_that_stays_away_leaves_it_to_another_machine(
    tmp_path: Path, index: Index
) -> None:
    """75 after some minutes, and the machine is as before: the next try begins anew. People hear of
    the machine, once."""
    index.fails = 10**6
    machine = Machine(tmp_path, index)
    with Webhook() as hook:
        machine.alert(hook)
        done = machine.set_up()
    [(_, told)] = hook.posted
    assert "This machine is given up; the job comes back on another one." in told["message"]
    assert told["id"] == f"tiny-1 stalled sky-managed-1 {socket.gethostname()}"
    assert (done.returncode, machine.waits) == (75, ["5", "15", "45", "135"]), done.stdout
    assert not (machine.root / "xrun" / "python").exists()
    index.fails = 0
    assert machine.set_up().returncode == 0


@pytest.mark.parametrize("needs", ["small==2.0", "small>1.5"])
def test_pins_that_cannot_be_had_end_the_run(tmp_path: Path, index: Index, needs: str) -> None:
    """At once and in one sentence: the same would happen on every machine. People hear of it, as
    of the same event however often the job is started."""
    machine = Machine(tmp_path, index, needs)
    with Webhook() as hook:
        machine.alert(hook)
        done = machine.set_up()
    [(_, told)] = hook.posted
    assert (told["title"], told["id"]) == ("xrun: tiny-1", "tiny-1 failed sky-managed-1")
    assert "then run the same command again" in told["message"]
    assert (done.returncode, machine.waits) == (2, []), done.stdout + done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("xrun: ")]
    assert "the run ends here" in said


def test_a_recipes_own_setup_is_tried_again_too(tmp_path: Path, index: Index) -> None:
    """While its network fails; what fails by itself is the person's at once."""
    machine = Machine(tmp_path, index)
    once = (
        f"[ -e {tmp_path}/seen ] || {{ touch {tmp_path}/seen; echo 'Connection reset'; exit 1; }}"
    )
    (machine.cargo / "recipe_setup.sh").write_text(once + "\n")
    done = machine.set_up()
    assert (done.returncode, machine.waits) == (0, ["5"]), done.stdout + done.stderr
    (machine.cargo / "recipe_setup.sh").write_text("true\nno-such-command-here\ntrue\n")
    done = machine.set_up()
    assert (done.returncode, machine.waits) == (2, ["5"]), done.stdout + done.stderr
    assert "no-such-command-here: command not found" in done.stdout
