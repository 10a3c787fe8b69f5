"""What goes into a page: the numbers and texts of the other commands, as data and never as markup,
and no secret.

Covers `xrun.pages.contents`, `xrun.pages.sheet`, `xrun.pages.hidden` and `xrun.cli.pages`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loopback.hub import Hub
from support.far_away import FAST, environment
from support.hub_store import HUB_WARNINGS
from support.kept_runs import keep
from support.running import Project
from support.shown_runs import AGAIN, SWEEP, swept, trained
from xrun.cli.texts import receipt_text
from xrun.pages import hidden
from xrun.pages.contents import Shown
from xrun.pages.page import page_of
from xrun.pages.sheet import Room, sheet_of
from xrun.run.folder import RunFolder
from xrun.sweep.board import Board
from xrun.sweep.standing import Result
from xrun.sweep.trials import Trials

pytestmark = [pytest.mark.once, *HUB_WARNINGS]

EVIL = "</script><script>document.title='gone'</script><img src=x onerror=alert(1)>&lt;"


class Read(HTMLParser):
    """A page as a browser's parser takes it apart."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self._now: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._now = (tag, dict(attrs))
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = str(dict(attrs)["content"])

    def handle_endtag(self, tag: str) -> None:
        self._now = ("", {})

    def handle_data(self, data: str) -> None:
        if self._now[0] in ("script", "style", "title"):
            self.texts.append(({"tag": self._now[0], **self._now[1]}, data))

    def data(self, name: str) -> Any:
        return next(json.loads(text) for attrs, text in self.texts if attrs.get("id") == name)

    def of(self, tag: str) -> list[str]:
        """The texts that are obeyed."""
        return [text for each, text in self.texts if each["tag"] == tag and "type" not in each]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_a_page_says_what_the_commands_say(project: Project) -> None:
    """`xrun page` of a project and `xrun report --html` of a run: rows, lines, attempts, receipt,
    recipe, log."""
    trained(project.plan("train.optimizer.lr=0.1"), steps=40, lost=2)
    trained(project.plan("train.optimizer.lr=0.2"), steps=40, seed=1)
    done = project.xrun("page", "-o", "all.html")
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(r"2 runs, 0\.\d MB: all\.html\n", done.out)
    page = Read((project.root / "all.html").read_bytes())
    told = {each["run"]: each for each in json.loads(project.xrun("status", "--json").out)}
    index = page.data("index")
    assert [row["run"] for row in index["runs"]] == list(told)
    for place, row in enumerate(index["runs"]):
        known = told[row["run"]]
        sheet = page.data(f"run-{place}")
        assert (row["status"], row["step"], row["usd"]) == ("finished", 40, known["usd"])
        assert row["losses"]["train/loss"] == pytest.approx(known["metrics"]["train/loss"], 1e-5)
        assert row["differs"] == f"lr={known['recipe']['train']['optimizer']['lr']}"
        assert sheet["series"]["train/loss"]["x"] == list(range(1, 41))
        assert sheet["series"]["val/accuracy"]["x"] == list(range(4, 41, 4))
        receipt = [" ".join(row).split() for row in sheet["receipt"]["rows"]]
        text = receipt_text(RunFolder(project.home / row["run"]).report().receipt).splitlines()
        assert receipt == [line.split() for line in text[2 : 2 + len(receipt)]]
        assert set(text[2 + len(receipt) :]) <= set(sheet["receipt"]["texts"])
        assert f"lr: {known['recipe']['train']['optimizer']['lr']}" in sheet["recipe"]
        assert sheet["logs"][-1]["text"].endswith("step 40 is done\n")
    lost = next(page.data(f"run-{n}") for n, row in enumerate(index["runs"]) if row["lost"])
    attempts = lost["attempts"]
    assert [(each["from"], each["to"], each["again"]) for each in attempts] == [
        (0, 13, 0),
        (13 - AGAIN, 26, AGAIN),
        (26 - AGAIN, 40, AGAIN),
    ]
    assert [each["kind"] for each in attempts] == ["preempted", "preempted", "finished"]
    assert attempts[2]["paid"] == pytest.approx(attempts[0]["usd"] + attempts[1]["usd"])

    run = index["runs"][0]["run"]
    done = project.xrun("report", run, "--html", "-")
    assert done.err == "1 run, 0.1 MB: standard output\n"
    alone = Read(done.out.encode())
    assert [row["run"] for row in alone.data("index")["runs"]] == [run]
    assert alone.data("run-0") == page.data("run-0")


def test_nothing_of_a_run_is_markup(project: Project) -> None:
    """Whatever a recipe, a log or a metric is called, the page has the tags that it has without it;
    and scripts and styles other than its own are forbidden by their hashes."""
    recipe = project.recipe.read_text().replace("{name: points}", "{name: points, args: {n: 9}}")
    project.write("recipes/tiny.yaml", recipe)
    plan = project.plan()
    folder = trained(plan, steps=5, printed="fine")
    report = folder.report()
    plain = Read(page_of(Shown("runs", [report])).html)
    (logs,) = (folder.path / "logs").iterdir()
    (logs / "rank0.log").write_text(f"{EVIL}\x1b[31mred\x1b[0m\x1b]0;title\x07\u202e\n")
    with folder.metrics.open("a") as file:
        file.write(json.dumps({"step": 6, f"val/{EVIL}": 1.0}) + "\n")
    named = {**(report.recipe or {}), "name": EVIL, "model": {"name": EVIL, EVIL: [EVIL]}}
    evil = Read(page_of(Shown(EVIL, [replace(report, recipe=named)])).html)
    assert evil.tags == plain.tags
    assert EVIL in evil.of("title")[0]
    sheet = evil.data("run-0")
    assert sheet["logs"][0]["text"] == f"{EVIL}red\\u001b]0;title\\u0007\\u202e\n"
    assert sheet["series"][f"val/{EVIL}"]["y"] == [1.0]
    assert evil.data("index")["runs"][0]["recipe"] == EVIL
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in evil.of(tag)
        ]
        assert f"{directive} {' '.join(hashes)};" in evil.policy
    assert "default-src 'none'" in evil.policy
    assert "connect-src 'none'" in evil.policy


def test_a_page_needs_no_other_place(project: Project) -> None:
    """No address that a browser would fetch, and the library's licence goes along."""
    trained(project.plan(), steps=5)
    html = page_of(Shown("runs", [RunFolder(project.plan().folder).report()])).html.decode()
    assert not re.search(r"""(src|href)=(?!.data:)|url\(|@import""", html.partition("<script>")[0])
    assert "Copyright (c) 2022 Leon Sorokin" in html
    assert "Permission is hereby granted, free of charge" in html


def test_secrets_are_hidden_and_commits_are_not(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log by their look, and by this machine's environment; in a recipe by their key."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", "open-sesame-1234")
    monkeypatch.setenv("TEAM_CHAT", "chat://room/98765")
    token, commit = "hf_" + "a" * 34, "0123456789abcdef" * 2 + "01234567"
    folder = trained(
        project.plan(), steps=5, printed=f"{token} open-sesame-1234 chat://room/98765 done"
    )
    report = replace(folder.report(), export_failed="no place for open-sesame-1234")
    recipe = {
        **(report.recipe or {}),
        "alerts": {"to": ["TEAM_CHAT"]},
        "env": {"PASSWORD": "hunter2hunter2", "WHERE": "open-sesame-1234/x"},
        "model": {"revision": commit, "api_key": "abcdef"},
    }
    page = page_of(Shown("runs", [replace(report, recipe=recipe)])).html.decode()
    for secret in (token, "open-sesame", "98765", "hunter2", "abcdef\\n"):
        assert secret not in page
    assert "*** *** *** done" in page
    assert commit in page
    lock = {"hub": {"models/a/b@main": commit}, "packages": {"einops": "0.8"}}
    assert hidden.told(lock) == lock


def test_a_run_that_cannot_be_read_says_so_on_its_page(project: Project) -> None:
    """And takes nothing from the others; one that has not begun is there too."""
    good = trained(project.plan(), steps=5)
    bad = trained(project.plan("train.optimizer.lr=0.5"), steps=5)
    for path in (bad.state / "commits").iterdir():
        path.write_bytes(b"{}\n")
    plan = project.plan("train.optimizer.lr=0.25")
    RunFolder(plan.folder).write_plan(plan)
    assert project.xrun("page").code == 0
    page = Read((project.root / "runs.html").read_bytes())
    rows = {
        row["run"]: (row, page.data(f"run-{n}")) for n, row in enumerate(page.data("index")["runs"])
    }
    assert len(rows) == 3
    assert rows[good.run][1]["series"]
    assert rows[bad.run][0]["status"] == "unreadable"
    assert "commit" in rows[bad.run][1]["problem"]
    assert rows[plan.run][0]["status"] == "stopped"
    assert rows[plan.run][1]["attempts"] == []


def test_many_runs_share_a_page() -> None:
    """A page stays small enough to open, however many they are; one run alone has much room."""
    assert Room.on_a_page(1) == Room(400_000, 100_000)
    assert Room.on_a_page(200) == Room(2_000, 10_000)
    assert Room.on_a_page(10**6) == Room(1_000, 1_000)


def test_a_long_run_is_thinned_and_says_so(project: Project) -> None:
    folder = trained(project.plan(), steps=20_000)
    sheet = sheet_of(folder.report(), Room(5_000, 10))
    loss = sheet.to_json()["series"]["train/loss"]
    assert len(loss["x"]) <= 1_000
    assert loss["of"] == 20_000
    assert (loss["x"][0] < 41, loss["x"][-1] > 19_960) == (True, True)
    assert sheet.logs[0][1].startswith("... (the end of ")


def test_a_sweep_has_a_page_of_its_own(project: Project) -> None:
    """By its folder or its id: its trials, and no other run of the project; `status` lists the
    same, and no command takes the board for a run."""
    trials = swept(project)
    trained(project.plan("sweep=null", "train.seed=7", run="alone-1"), steps=5)
    runs = {each.plan.run for each in trials.all()}
    for sweep in (f"runs/{trials.id}", trials.id):
        done = project.xrun("page", sweep)
        assert (done.code, done.out[:8]) == (0, "12 runs,"), done.err
        index = Read((project.root / "runs.html").read_bytes()).data("index")
        assert (index["title"], index["opens"]) == (trials.id, trials.id)
        (told,) = index["sweeps"]
        assert {row["run"] for row in index["runs"]} == runs
        assert {row["run"] for row in told["rows"]} == runs
        assert told["best"] == Board(trials, trials.own_plan).standing().best
        assert {name for name, _ in told["importance"]} == set(trials.sweep.parameters)
    listed = json.loads(project.xrun("status", trials.id, "--json").out)
    assert {each["run"] for each in listed} == runs
    done = project.xrun("report", f"runs/{trials.id}")
    assert (done.code, "is a sweep, not a run." in done.err) == (3, True)


def test_a_page_of_runs_on_the_hub(project: Project, tmp_path: Path) -> None:
    """From a machine that has nothing of them: an account's runs with their points and logs, and
    a sweep by the address of its board."""
    path = project.write("recipes/tiny.yaml", project.recipe.read_text() + SWEEP)
    given = ["train.evaluate.every=5 steps", "checkpoint.store=hub"]
    with Hub(tmp_path / "hub") as hub, environment({**hub.environ("alice"), **FAST}):
        unplaced = Trials.of(path, given)
        own = replace(unplaced.own_plan, store=f"hub://alice/{unplaced.id}", owner="alice")
        trials, board = unplaced.placed(own), Board(unplaced.placed(own), own)
        for number in (1, 2):
            keep(trials.trial(number).plan, tmp_path / str(number))
            board.post(number, 1, Result(10, 1 / number))
        alone = replace(project.plan(*given, "sweep=null", run="alone-1"), owner="alice")
        keep(replace(alone, store="hub://alice/alone-1"), tmp_path / "alone", finished=False)
        for where, runs in (("hub://me", 3), (f"hub://alice/{trials.id}", 2)):
            done = project.xrun("page", where, environ={**hub.environ("alice"), **FAST})
            assert (done.code, done.out[:6]) == (0, f"{runs} runs"), done.err
            page = Read((project.root / "runs.html").read_bytes())
            index = page.data("index")
            assert [(each["id"], each["best"]) for each in index["sweeps"]] == [(trials.id, None)]
            shown = [row["run"] for row in index["sweeps"][0]["rows"][:3]]
            assert shown == [trials.trial(1).plan.run, trials.trial(2).plan.run, ""]
            for place, row in enumerate(index["runs"]):
                sheet = page.data(f"run-{place}")
                assert sheet["series"]["train/loss"]["x"] == list(range(1, 21))
                assert sheet["logs"][-1]["text"].endswith("\nattempt 2, rank 0\n")
                assert ["machine", "2 machines, 2 processes"] in sheet["attempts"][1]["texts"]
                assert (row["step"], row["losses"]["val/loss"]) == (20, 0.5)
                assert "args=" not in row["differs"]  # that is the keys of `args`, and no more
                assert f"hub://alice/{row['run']}" in [text for _, text in row["facts"]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["page", "nowhere/at/all"], 3, "There is no folder"),
        (["page", "-o", "no/such/folder/x.html"], 4, "no/such/folder"),
        (["page", "--port", "70000"], 2, "70000"),
        (["report", "tiny-1", "--html", "x.html", "--json"], 2, "Use --html or --json, not both."),
    ],
)
def test_what_is_wrong_is_said(
    project: Project, arguments: list[str], code: int, said: str
) -> None:
    plan = project.plan(run="tiny-1")
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder)
    done = project.xrun(*arguments)
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err


def test_without_runs_there_is_no_page(project: Project) -> None:
    done = project.xrun("page")
    assert done.code == 3
    assert "No runs in" in done.err
    assert not (project.root / "runs.html").exists()
