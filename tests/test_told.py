"""What is told while no machine is alive, by a module that travels without the rest of xrun, to a
real web server. Covers `xrun_sky.told`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT
from support.receivers import Webhook
from xrun import environment
from xrun_sky import told

PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys({missing}))
sys.path.insert(0, {folder!r})
from xrun_sky import told
print(json.dumps(told.tell(*json.loads(sys.stdin.read()))))
"""


def tell(
    tmp_path: Path, environ: dict[str, str], *, apprise: bool, event: str = "failed"
) -> list[str]:
    """In a process that has the package and nothing else of xrun, with apprise or without."""
    folder = tmp_path / "alone"
    shutil.copytree(ROOT / "runner" / "xrun_sky", folder / "xrun_sky", dirs_exist_ok=True)
    program = PROGRAM.format(missing=["xrun"] + ["apprise"] * (not apprise), folder=str(folder))
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        input=json.dumps([event, "tiny-1", "No machine could be had.", environ]),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with Webhook() as one:
        yield one


def variables(hook: Webhook, *names: str) -> dict[str, str]:
    wanted = {"to": ["HOOK", *names], "on": ["failed"]}
    return {told.VARIABLE: json.dumps(wanted), "HOOK": hook.address}


@pytest.mark.parametrize("apprise", [True, False], ids=["apprise", "without"])
def test_it_is_told(hook: Webhook, tmp_path: Path, apprise: bool) -> None:
    """With apprise and without the server gets the same fields; a plain address does as well, with
    its parameters."""
    environ = variables(hook, "PLAIN") | {"PLAIN": f"http://{hook.place}?sig=a%20b"}
    assert tell(tmp_path, environ, apprise=apprise) == []
    (path, first), (other, second) = sorted(hook.posted, key=lambda each: len(each[0]))
    assert (path, other) == ("/s3cret-path", "/s3cret-path?sig=a%20b")
    for fields in (first, second):
        assert fields["title"] == "xrun: tiny-1"
        assert fields["message"] == "No machine could be had."
        assert fields["type"] == "failure"
        assert fields["id"] == "tiny-1 failed"


def test_a_machine_that_cannot_be_set_up_tells_from_the_first_node(
    hook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the job is over `failed`, of which a job has one; else `stalled`, of which each machine
    has one."""
    monkeypatch.setitem(sys.modules, "apprise", None)  # which such a machine does not have
    (tmp_path / "plan.json").write_text('{"run": "tiny-1"}')
    assert told.not_set_up(tmp_path, "It has no disk.", final=True) == [], "nobody is to be told"
    wanted = json.dumps({"to": ["HOOK"], "on": ["failed", "stalled"]})
    for name, value in (
        variables(hook) | {told.VARIABLE: wanted, "SKYPILOT_TASK_ID": "job"}
    ).items():
        monkeypatch.setenv(name, value)
    for rank in ("1", "0"):
        monkeypatch.setenv("SKYPILOT_NODE_RANK", rank)
        for final in (True, False):
            assert told.not_set_up(tmp_path, "It has no disk.", final=final) == []
    assert [each["id"] for _, each in hook.posted] == [
        "tiny-1 failed job",
        f"tiny-1 stalled job {socket.gethostname()}",
    ]


def test_what_the_recipe_does_not_name_is_not_told(hook: Webhook, tmp_path: Path) -> None:
    """Nor anything where the task says nothing of alerts."""
    assert tell(tmp_path, variables(hook), apprise=False, event="stalled") == []
    assert tell(tmp_path, {"HOOK": hook.address}, apprise=False) == []
    assert hook.posted == []


def test_what_is_not_reached_is_said_and_nothing_raised(hook: Webhook, tmp_path: Path) -> None:
    """A sentence each, without the address."""
    hook.status = 403
    environ = variables(hook, "UNSET", "NTFY", "NOBODY", "HTTP") | {
        "NTFY": "ntfys://s3cret-topic",
        "NOBODY": "json://127.0.0.1:9/s3cret",
        "HTTP": "http:///s3cret",
    }
    said = tell(tmp_path, environ, apprise=False)
    assert [line.partition("did not reach ")[2] for line in said] == [
        "HOOK: the server answered 403.",
        "UNSET: the variable is not set there.",
        "NTFY: `ntfys://` needs apprise, which is not here.",
        "NOBODY: URLError.",
        "HTTP: `http://` needs apprise, which is not here.",
    ]
    assert "s3cret" not in "".join(said)
    [line] = tell(tmp_path, {told.VARIABLE: "[1]"}, apprise=False)
    assert "no JSON object" in line


def test_a_password_and_headers_of_an_address_are_used(hook: Webhook) -> None:
    """Of apprise's address for JSON: what is meant for the server has a sign before its name."""
    address = hook.address.replace("//", "//me:p%40ss@") + "?-sig=1&+X-Key=2&verify=no"
    assert told._post(address, {"title": "t", "body": "b", "type": "info", "id": "i"}) == ""
    assert [path for path, _ in hook.posted] == ["/s3cret-path?sig=1"]
    assert hook.headers["X-Key"] == "2"
    assert hook.headers["Authorization"] == "Basic " + b64encode(b"me:p@ss").decode()


def test_the_launcher_and_the_plugin_mean_the_same_variable() -> None:
    """Neither can import the other."""
    assert told.VARIABLE == environment.ALERTS.name
