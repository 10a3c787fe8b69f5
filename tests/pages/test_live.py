"""The served page: at an address that nobody guesses, and always what is there now."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.running import Project
from support.shown_runs import trained
from xrun.errors import LaunchError, StoreUnavailable
from xrun.pages.contents import Shown
from xrun.pages.live import LOOPBACK, Live, address_of, serve
from xrun.run.folder import runs_in
from xrun.run.listing import of_folders

pytestmark = pytest.mark.once


class Served:
    """A live page of a project, served by a thread."""

    def __init__(self, project: Project) -> None:
        self.project, self.fails, self.now = project, False, 0.0
        self.server = serve(Live(self.look, 2.0, clock=lambda: self.now), 0)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def look(self) -> Shown:
        if self.fails:
            raise StoreUnavailable("It does not answer.")
        return Shown("runs", of_folders(runs_in(self.project.home), metrics=True))

    def ask(self, path: str) -> tuple[int, bytes]:
        """What it answers, some seconds later."""
        self.now += 2
        connection = http.client.HTTPConnection(LOOPBACK, self.server.server_address[1], timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def json(self, path: str) -> Any:
        status, content = self.ask(self.start + path)
        assert status == 200
        return json.loads(content)

    @property
    def start(self) -> str:
        return "/" + address_of(self.server).split("/", 3)[3]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    project = Project(tmp_path)
    trained(project.plan(run="tiny-1"), steps=10)
    made = Served(project)
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def test_it_says_what_is_there_now(served: Served) -> None:
    """A run's page has a new version once the run has something new, and then only."""
    (before,) = served.json("index.json")["runs"]
    assert served.json("index.json")["runs"][0]["version"] == before["version"]
    assert served.json("run/tiny-1")["series"]["train/loss"]["x"][-1] == 10
    with (served.project.home / "tiny-1" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 11, "train/loss": 0.5, "time": 1e9}) + "\n")
    (after,) = served.json("index.json")["runs"]
    assert (after["step"], after["version"] == before["version"]) == (11, False)
    assert served.json("run/tiny-1")["series"]["train/loss"]["x"][-1] == 11
    trained(served.project.plan(run="tiny-2"), steps=5, seed=1)
    assert {row["run"] for row in served.json("index.json")["runs"]} == {"tiny-1", "tiny-2"}


def test_the_page_may_ask_its_server_and_nobody_else(served: Served) -> None:
    status, page = served.ask(served.start)
    assert status == 200
    assert b"connect-src 'self'" in page
    assert b'id="run-0"' not in page


def test_nobody_else_is_answered(served: Served) -> None:
    """Neither without the part that nobody guesses, nor about what is no run."""
    for path in (
        "/",
        "/index.json",
        "/x/index.json",
        f"{served.start}..%2f",
        f"{served.start}run/x",
    ):
        assert served.ask(path)[0] == 404
    assert len(served.start.strip("/")) >= 16


def test_a_store_that_does_not_answer_leaves_what_was_known(served: Served) -> None:
    known = served.json("index.json")["runs"]
    served.fails = True
    assert served.json("index.json")["runs"] == known


def test_a_port_that_is_taken_is_said(served: Served) -> None:
    with pytest.raises(LaunchError, match=r"cannot be served at port \d+ of this machine"):
        serve(Live(served.look, 2.0), served.server.server_address[1])
