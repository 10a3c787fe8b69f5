"""Several runs at a glance: `xrun status` and `xrun compare`.

Covers `xrun.run.compared`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from support.hub_store import HUB_WARNINGS
from support.kept_runs import keep
from support.running import Done, Project, ended, start
from support.terminals import on_a_terminal
from support.worlds import hub_world
from xrun.cli.texts import status_lines, sums_text
from xrun.launcher.sky.status import OnCloud, RunStatus
from xrun.run.folder import RunFolder, runs_in
from xrun.run.listing import of_folders
from xrun.run.receipt import receipt_of
from xrun.run.record import AttemptRecord
from xrun.run.report import RunReport

pytestmark = [pytest.mark.once, *HUB_WARNINGS]

DAY = 86400.0
SPOT = {"cloud": "aws", "spot": True, "usd_per_hour": 2.0, "on_demand_usd_per_hour": 5.0}

LIFE = AttemptRecord("a", started=0.0, last_seen=DAY - 3600, **SPOT)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Runs of one recipe with three rates, one of which is not finished, and one of another."""
    made = Project(tmp_path_factory.mktemp("several"))
    made.write("recipes/other.yaml", made.recipe.read_text().replace("tiny", "other"))
    for number, rate in enumerate(("0.01", "0.02", "0.03")):
        kept(made, f"train.optimizer.lr={rate}", finished=number < 2)
    kept(made, recipe="other")
    return made


def kept(project: Project, *overrides: str, recipe: str = "tiny", finished: bool = True) -> None:
    plan = project.plan(*overrides, recipe=recipe)
    RunFolder(plan.folder).write_plan(plan)
    keep(plan, plan.folder, finished=finished)


def names(done: Done) -> list[str]:
    """The runs of a table, by their recipes' names."""
    return [line.split("-")[0] for line in done.out.splitlines()[1:-1]]


def test_a_table_is_piped_whole(project: Project) -> None:
    """From a folder deep in the project, the columns below each other, no colours, and the keys in
    which the runs of a recipe differ."""
    within = project.root / "models" / "deep"
    within.mkdir(exist_ok=True)
    done = ended(start(within, "status"))
    assert done.code == 0, done.err
    head, *lines, sums = done.out.splitlines()
    assert len(lines) == 4
    assert {line.index(line.split()[1]) for line in lines} == {head.index("STATUS")}
    assert sorted(re.findall(r"lr=\S+", done.out)) == ["lr=0.01", "lr=0.02", "lr=0.03"]
    assert not any("lr=" in line for line in lines if line.startswith("other"))
    assert sums.startswith("4 runs: ")
    assert "\x1b" not in done.out


def test_a_table_fits_a_terminal(project: Project) -> None:
    """At 80 and at 160 columns, with the states in colour unless NO_COLOR says otherwise."""
    for columns in (80, 160):
        text = on_a_terminal(project, columns, "status")
        assert "\x1b[36m  finished\x1b[0m" in text
        assert "\x1b[33m  killed\x1b[0m" in text
        plain = on_a_terminal(project, columns, "status", NO_COLOR="1")
        assert "\x1b" not in plain
        assert re.sub(r"\x1b\[\d+m", "", text) == plain
        assert max(map(len, plain.splitlines()[:-1])) <= columns
        assert "lr=0.02" in plain, "without it runs look alike"


def test_runs_of_a_long_name_are_told_apart(tmp_path: Path) -> None:
    """Where there is little room an id is cut in its middle: its end is what makes it another one.
    With NO_COLOR no view has any."""
    project = Project(tmp_path)
    name = "a-name-of-many-characters"
    project.write("recipes/tiny.yaml", project.recipe.read_text().replace("tiny", name))
    for rate in ("0.01", "0.02", "0.03"):
        kept(project, f"train.optimizer.lr={rate}")
    runs = sorted(path.name for path in project.home.iterdir())
    for command in (["status"], ["compare", *runs]):
        narrow, wide = (
            on_a_terminal(project, columns, *command, NO_COLOR="1") for columns in (80, 160)
        )
        assert max(map(len, narrow.splitlines())) <= 80
        assert all(run not in narrow and run[-8:] in narrow for run in runs)
        assert all(run in wide for run in runs)
        assert "\x1b" not in narrow + wide
    for command in (["report", runs[0]], ["plan", "recipes/tiny.yaml"]):
        assert "\x1b" not in on_a_terminal(project, 80, *command, NO_COLOR="1")


def test_runs_are_chosen(project: Project) -> None:
    """By recipe, by how long ago they were heard of, and whether they run."""
    assert names(project.xrun("status", "--recipe", "tiny")) == ["tiny"] * 3
    assert names(project.xrun("status", "--recipe", "other")) == ["other"]
    assert len(names(project.xrun("status", "--since", "1h"))) == 4, "their clocks are ahead"
    none = project.xrun("status", "--running")
    assert (none.code, none.out, none.err) == (0, "", "None of 4 runs fits these options.\n")
    wrong = project.xrun("status", "--since", "soon")
    assert wrong.code == 2
    assert "'soon' is not a time like 30m, 12h, 2d or 1w." in wrong.err
    told = json.loads(project.xrun("status", "--recipe", "other", "--json").out)
    assert [(each["step"], each["steps"], each["usd"]) for each in told] == [(20, 20, 0.0)]


def test_those_that_run_come_first_and_the_newest_sign_next() -> None:
    """And a run says in its own words what it has cost."""
    life = AttemptRecord("a", started=0.0, last_seen=DAY - 3600, **SPOT)
    report = RunReport("tiny-1", "r", "stopped", step=5, steps=20, attempts=(life,))
    report = replace(report, receipt=receipt_of("tiny-1", [life], DAY))
    report = replace(report, best={"metric": "val/loss", "value": 0.25, "step": 5})
    cloud = OnCloud(7, "RECOVERING", status="recovering", recoveries=2)
    (_, line) = status_lines([RunStatus(report, cloud)], DAY, None)
    assert line == (
        "tiny-1  recovering  5/20  val/loss 0.25 at 5  60 min ago  1         $48.00  job 7"
    )
    unknown = AttemptRecord("b", started=0.0, ended=3600.0, cloud="lambda")
    dark = replace(report, receipt=receipt_of("tiny-2", [unknown], DAY))
    assert sums_text([RunStatus(report)]) == (
        "1 run: $48.00, 24.0 h of machine time, $72.00 saved against on demand"
    )
    assert sums_text([RunStatus(dark)]) == "1 run: not known, 1.0 h of machine time"
    assert sums_text([RunStatus(report), RunStatus(dark)]).endswith("what 1 cost is not known")
    torn = RunStatus(RunReport("x", "runs/x", "unreadable", error="It is torn."))
    assert sums_text([RunStatus(report), torn]).startswith("1 run, and 1 that cannot be read: ")


def test_why_the_newest_have_failed_stands_below_the_table(tmp_path: Path) -> None:
    """Of three at most, with the sentence that the record has."""
    project = Project(tmp_path)
    for rate in ("1e30", "2e30", "3e30", "4e30"):
        assert project.attempt(f"train.optimizer.lr={rate}").code == 6
    reports = of_folders(runs_in(project.home), metrics=False)
    reports.sort(key=lambda report: -report.last_seen)
    assert [report.status for report in reports] == ["failed"] * 4
    done = project.xrun("status")
    assert done.out.splitlines()[5:-1] == [
        f"{report.run} failed: {' '.join((report.attempts[-1].reason or '').split())}"
        for report in reports[:3]
    ]
    assert done.out.count("the optimizer has not stepped on it.") == 3


def test_runs_are_compared(project: Project) -> None:
    """What differs in their recipes and in what they have come to, and nothing else; `--json` for
    programs."""
    runs = sorted(path.name for path in project.home.glob("tiny-*"))
    done = project.xrun("compare", *runs)
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["DIFFERS", *runs]
    assert lines[1][0] == "train.optimizer.lr"
    assert sorted(lines[1][1:]) == ["0.01", "0.02", "0.03"]
    assert {line[0] for line in lines[2:]} <= {"status", "hours", "weights"}
    told = json.loads(project.xrun("compare", *runs[:2], "--json").out)
    assert (told["runs"], list(told["recipe"])) == (runs[:2], ["train.optimizer.lr"])
    assert project.xrun("compare", runs[0], runs[0]).code == 2
    missing = project.xrun("compare", runs[0], "tiny-0")
    assert (missing.code, "There is no run tiny-0" in missing.err) == (3, True)


def test_an_edited_component_is_named(tmp_path: Path) -> None:
    """By its file, and not by hashes, in `status` and `compare`, and where a recipe has other runs
    than the one that it means now."""
    project = Project(tmp_path)
    kept(project)
    model = tmp_path / "models" / "line.py"
    model.write_text(f"{model.read_text()}\nEDITED = 1\n")
    refused = project.xrun("recipes/tiny.yaml")
    assert "What is different: models/line.py was edited." in refused.err
    first = project.run.run
    kept(project)
    (second,) = {each.run for each in runs_in(project.home)} - {first}
    assert project.xrun("status").out.count("models/line.py edited") == 1
    told = json.loads(project.xrun("compare", first, second, "--json").out)
    assert set(told["files"]) == {"models/line.py"}
    lines = [line.split() for line in project.xrun("compare", first, second).out.splitlines()]
    assert sorted(next(line for line in lines if line[0] == "models/line.py")[1:]) == [
        "before",
        "edited",
    ]


def test_a_narrow_table_keeps_what_was_best(project: Project) -> None:
    """Before when it was heard of and its attempts."""
    report = RunReport("tiny-12345678", "r", "running", step=5, steps=2000, attempts=(LIFE,) * 3)
    best = {"metric": "val/accuracy", "value": 0.9321, "step": 1500}
    report = replace(report, best=best, speed={"step_seconds": 1.0, "samples_per_second": 1e3})
    report = replace(report, receipt=receipt_of("tiny", [LIFE], DAY))
    head, line = status_lines([RunStatus(report)], DAY, 80)
    assert "val/accuracy 0.9321 at 1500" in line
    assert "ATTEMPTS" not in head
    whole, _ = status_lines([RunStatus(report)], DAY, 160)
    assert {"BEST", "LAST", "ATTEMPTS", "SPEED", "COST"} <= set(whole.split())


def test_a_store_out_of_reach_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many runs there together, and those that are here are told as ever: a Hub that has only
    errors for an answer is asked again and again."""
    project = Project(tmp_path)
    monkeypatch.setenv("XRUN_HUB_SPACING", "0")
    with hub_world(tmp_path, "hub", monkeypatch) as world:
        monkeypatch.setenv("HF_TOKEN", world.hub.token("alice"))
        for number in range(2):
            plan = project.plan("checkpoint.store=hub", run=f"far-{number}").placed("alice")
            RunFolder(plan.folder).write_plan(plan)
            keep(plan, plan.folder)
        kept(project)
        names = ("far-0", project.plan().run, "far-1")
        folders = [RunFolder(project.home / name) for name in names]
        found = of_folders(folders, metrics=False, silence=60.0)
        assert [each.status for each in found] == ["finished"] * 3
        world.hub.faults.add(status=503, times=None)
        found = of_folders(folders, metrics=False, silence=0.5)
    assert [each.status for each in found] == ["unreachable", "finished", "unreachable"]
    assert "does not answer within 0.5 s; `xrun report far-0` waits longer." in found[0].error
