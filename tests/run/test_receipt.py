"""What a run has cost, by hand and to the cent: the receipt in the command, the report, the model
card and the page.

Covers `xrun.cli.tables`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.running import PER_STEP, Project, ended, record, until
from xrun import clock, environment
from xrun.cli.tables import Column, lines_of
from xrun.cli.texts import receipt_text
from xrun.errors import AttemptEnd
from xrun.run.checkpoint import Checkpoint
from xrun.run.folder import RunFolder
from xrun.run.page import RECEIPT
from xrun.run.receipt import Receipt, money, receipt_of
from xrun.run.record import AttemptRecord, Finished, RunRecord
from xrun.run.spending import QUIET_SECONDS, dollars, hours
from xrun.run.stores import open_store

HOUR = 3600.0
T = 1_789_459_200.0
"""2026-09-15, 08:00 in UTC."""


def at(hours: float) -> float:
    return T + hours * HOUR


A100: dict[str, Any] = {"accelerators": "A100:8", "price_date": "2026-09-14"}
EAST = {"cloud": "aws", "region": "us-east-1", "spot": True, "usd_per_hour": 8.0}
WEST = {"cloud": "aws", "region": "us-west-2", "spot": True, "usd_per_hour": 7.2}
GOOGLE = {"cloud": "gcp", "region": "us-central1", "spot": False, "usd_per_hour": 24.5}
DEAR = {"on_demand_usd_per_hour": 22.0}

BOUND = (
    "* Its end was not recorded, so this is an upper bound: until its last sign of life, plus the"
    " longest silence that is allowed. $0.67 of the dollars are for that time."
)
NOT_IN_IT = (
    "Not included: what a cloud bills after an attempt has ended, the job controller, storage and"
    " traffic."
)


def eventful(project: Project) -> RunRecord:
    """A run as its attempts would have committed it, in its store: a sudden death, a wait of nearly
    eight hours, another place, a preemption with notice, half an hour, on demand to the end."""
    plan = project.plan()
    RunFolder(plan.folder).write_plan(plan)
    machines: list[dict[str, Any]] = [
        {"id": "20260915T080000000-aaaaaa", "billed_from": at(0), "started": at(0.1)}
        | {"launched": at(-0.25)}
        | EAST
        | DEAR,
        {"id": "20260915T180000000-bbbbbb", "billed_from": at(10), "started": at(10.1)}
        | WEST
        | DEAR,
        {"id": "20260915T233000000-cccccc", "billed_from": at(15.5), "started": at(15.6)} | GOOGLE,
    ]
    lives: list[dict[str, Any]] = [
        {"trained_from": at(0.2), "last_seen": at(2), "silence": 60.0},
        {"trained_from": at(10.15), "steps_recomputed": 12, "seconds_lost": 180.0}
        | {"ended": at(15), "code": 75, "end": AttemptEnd.STOPPED, "reason": "spot interruption"},
        {"trained_from": at(15.75), "steps_recomputed": 0, "seconds_lost": 0.0}
        | {"ended": at(18.5), "code": 0, "end": AttemptEnd.FINISHED},
    ]
    known, head = RunRecord(), None
    for number, (machine, life) in enumerate(zip(machines, lives, strict=True)):
        store = open_store(plan, machine["id"])
        known = known.begun(plan, AttemptRecord(**A100, **machine))
        head = store.commit(known.to_json(), head)
        step = 10 * (number + 1)
        made = Checkpoint(step, machine["id"], plan.digest, at(number))
        known = replace(known, checkpoints=(*known.checkpoints, made))
        known = known.with_last(committed=step if "ended" in life else None, **life)
        if number == 2:
            known = replace(known, finished=Finished(30, weights_sha256="ab" * 32))
        head = store.commit(known.to_json(), head)
    return RunRecord.of(head)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("receipt"))
    eventful(made)
    return made


def test_every_cent_of_an_eventful_run(project: Project) -> None:
    """By hand. First machine: two hours until its last sign, and five minutes that it may have
    lived on, at 8.00. Second: five hours at 7.20. Third: three hours on demand at 24.50."""
    found = project.run.report().receipt
    assert [line.end for line in found.lines] == ["bound", "recorded", "recorded"]
    assert [line.hours for line in found.lines] == [2.0833, 5.0, 3.0]
    assert [line.usd for line in found.lines] == [16.6667, 36.0, 73.5]
    assert found.lines[0].usd_seen == 16.0
    assert (found.usd, found.usd_of_bounds) == (126.1667, 0.6667)
    # From the start of a machine to its first step.
    assert [line.setup_hours for line in found.lines] == [0.2, 0.15, 0.25]
    assert [line.setup_usd for line in found.lines] == [1.6, 1.08, 6.125]
    assert (found.setup_hours, found.setup_usd, found.setup_known) == (0.6, 8.805, True)
    # Twelve steps that the first one took three minutes for died with it.
    assert [line.lost_steps for line in found.lines] == [12, 0, 0]
    assert (found.lost_hours, found.lost_usd, found.lost_known) == (0.05, 0.4, True)
    # No machine between the bound of the first and the second, and before the third.
    assert [line.waited_hours for line in found.lines] == [0.0, 7.9167, 0.5]
    assert (found.waited_hours, found.paused_hours) == (8.4167, 0.0)
    # A quarter of an hour from the launch to the first one, which is no wait after a loss.
    assert [line.queued_hours for line in found.lines] == [0.25, None, None]
    # On demand nothing is taken away: no bound, no step twice, one setup.
    assert [line.on_demand_usd for line in found.lines] == [
        pytest.approx(22.0 * (2.0 - 0.05)),
        pytest.approx(22.0 * (5.0 - 0.15)),
        pytest.approx(24.5 * (3.0 - 0.25)),
    ]
    assert found.on_demand_usd == 42.9 + 106.7 + 67.375 == 216.975
    assert found.saved_usd == 90.8083


def test_people_read_it(project: Project) -> None:
    """`xrun receipt RUN`: a row for each attempt, the sums, and which end is a bound."""
    done = project.xrun("receipt", project.run.run)
    assert done.code == 0, done.err
    on = " on 2026-09-14"
    assert done.out.splitlines() == [
        f"{project.run.run}. Cost: $126.17 for 10.08 h of machine time in 3 attempts.",
        "#  place                      machine  an hour               hours  dollars  setup  lost",
        f"1  aws us-east-1 spot         A100:8   $8.00{on}   2.08*  $16.67   0.20   12 steps",
        f"2  aws us-west-2 spot         A100:8   $7.20{on}   5.00   $36.00   0.15   0 steps",
        f"3  gcp us-central1 on demand  A100:8   $24.50{on}  3.00   $73.50   0.25   0 steps",
        "Setup: 0.60 h, $8.81.",
        "Lost: 12 steps computed again, 0.0500 h, $0.40.",
        "From the launch to the first machine: 0.25 h, which cost nothing.",
        "Waited 8.42 h for machines, which cost nothing.",
        "The same on demand: $216.98. Saved: $90.81 (42 %).",
        BOUND,
        NOT_IN_IT,
    ]
    told = project.xrun("report", project.run.run).out
    assert f"\n    aws us-east-1 spot, 2.08* h at $8.00{on}: $16.67\n" in told
    assert "\n  Cost: $126.17 for 10.08 h" in told
    assert f"\n  {BOUND}\n" in told
    assert "\n  The same on demand: $216.98. Saved: $90.81 (42 %)." in told


def test_programs_read_it(project: Project) -> None:
    """`--json` and `--csv`, by the run's id and by its address; lines add up to the sums."""
    told = json.loads(project.xrun("receipt", str(project.run.state), "--json").out)
    assert (told["usd"], told["saved_usd"]) == (126.1667, 90.8083)
    assert [each["end"] for each in told["attempts"]] == ["bound", "recorded", "recorded"]
    done = project.xrun("receipt", project.run.run, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["usd"] for row in rows] == ["16.6667", "36.0", "73.5"]
    assert round(sum(float(row["usd"]) for row in rows), 4) == told["usd"]
    assert [row["on_demand_usd"] for row in rows] == ["42.9", "106.7", "67.375"]
    assert (rows[0]["region"], rows[0]["began"]) == ("us-east-1", "2026-09-15T08:00:00Z")
    assert project.xrun("receipt", project.run.run, "--csv", "--json").code == 2
    done = project.xrun("receipt", "no-such-run")
    assert (done.code, "Traceback" in done.err) == (3, False)


def test_a_machine_of_ones_own_costs_nothing_and_says_so() -> None:
    """Also before and after attempts that cost something, and however long it ran."""
    own = AttemptRecord("a", started=at(0), ended=at(100), trained_from=at(0))
    found = receipt_of("r", [own], at(100))
    assert (found.usd, found.on_demand_usd, found.saved_usd) == (0.0, 0.0, 0.0)
    assert receipt_text(found).startswith(
        "r. Cost: nothing, on machines of one's own (100.00 h of machine time in 1 attempt)."
    )
    rented = AttemptRecord("b", started=at(100), ended=at(101), **EAST, **DEAR)
    assert receipt_of("r", [own, rented], at(101)).usd == 8.0


def test_what_nobody_knows_is_not_known_and_never_0() -> None:
    """Of a rented machine without a price nothing is told in dollars; beside one with a price it
    counts as that."""
    nameless = AttemptRecord("a", started=at(0), ended=at(1), cloud="lambda", cluster="c")
    found = receipt_of("r", [nameless], at(1))
    assert (found.usd, found.setup_usd, found.lost_usd, found.saved_usd) == (None,) * 4
    text = receipt_text(found)
    assert "Cost: not known for 1.00 h" in text
    assert "The same on demand: not known. Saved: not known." in text
    assert "$" not in text
    assert found.summary()["usd"] == "not known"
    assert b",," in found.csv()
    own = AttemptRecord("b", started=at(1), ended=at(2))
    assert [line.usd for line in receipt_of("r", [nameless, own], at(2)).lines] == [None, 0.0]
    priced = AttemptRecord("b", started=at(1), ended=at(2), **EAST)
    both = receipt_of("r", [nameless, priced], at(2))
    assert [line.price for line in both.lines] == ["dearest", "seen"]
    assert (both.usd, both.on_demand_usd) == (16.0, None)
    assert "$8.00†" in receipt_text(both)


def test_what_died_with_a_machine_is_told_as_at_least() -> None:
    """Whose log nobody has seen again; and a setup whose end nobody committed."""
    first = AttemptRecord(
        "a", started=at(0), last_seen=at(1), end=AttemptEnd.OUTSIDE, **EAST, **DEAR
    )
    second = AttemptRecord(
        "b", started=at(2), ended=at(3), trained_from=at(2), resumed_step=10, from_step=10, **EAST
    )
    found = receipt_of("r", [first, second], at(3))
    assert (found.lines[0].lost_steps, found.lost_known, found.setup_known) == (None, False, False)
    text = receipt_text(found)
    assert "Lost: at least 0 steps" in text
    assert "Setup: at least" in text


def test_machines_on_which_nothing_began_are_paid_for() -> None:
    """Two of them came between these attempts, and one before the first: nobody waited for free
    meanwhile. The sums are those of the lines, and what the budget counts."""
    first = AttemptRecord("a", started=at(1), ended=at(2), launched=at(0), end=AttemptEnd.OUTSIDE)
    first = replace(first, barren_hours=0.25, barren_usd=2.0, code=75, **EAST, **DEAR)
    second = AttemptRecord("b", started=at(4), ended=at(5), barren_hours=0.5, barren_usd=3.8)
    second = replace(second, **WEST, **DEAR)
    found = receipt_of("r", [first, second], at(5))
    assert [line.usd for line in found.lines] == [8.0, 7.2]
    assert [line.barren_usd for line in found.lines] == [2.0, 3.8]
    assert (found.usd, found.hours) == (21.0, 2.75)
    assert (found.barren_usd, found.barren_hours) == (5.8, 0.75)
    assert (found.queued_hours, found.waited_hours) == (0.75, 1.5)
    assert found.on_demand_usd == 44.0
    assert dollars([first, second], at(5)) == found.usd
    assert hours([first, second], at(5)) == found.hours
    assert "Machines on which no attempt could begin: 0.75 h, $5.80." in receipt_text(found)
    assert Receipt.from_json(json.loads(json.dumps(found.to_json()))) == found
    before = found.to_json()
    for line in before["attempts"]:
        del line["barren_hours"], line["barren_usd"]
    assert Receipt.from_json(before).usd == 15.2, "of a page that an older xrun has made"


def test_steps_that_an_attempt_computed_twice_itself_are_its_own() -> None:
    """Processes that were started again on the same machine; the machine before lost nothing that
    is known."""
    first = AttemptRecord("a", started=at(0), ended=at(1), committed=5, **EAST)
    second = AttemptRecord("b", started=at(1), ended=at(2), from_step=5, resumed_step=8, **WEST)
    second = replace(second, steps_recomputed=3, seconds_lost=360.0)
    found = receipt_of("r", [first, second], at(2))
    assert [line.lost_steps for line in found.lines] == [0, 3]
    assert found.lost_usd == 0.72


def test_a_run_that_nobody_wanted_meanwhile_did_not_wait() -> None:
    """Hours between a person's stop and the next start are a pause."""
    first = AttemptRecord("a", started=at(0), ended=at(1), code=75, end=AttemptEnd.STOPPED, **EAST)
    first = replace(first, reason="SIGINT")
    second = AttemptRecord("b", started=at(9), ended=at(10), **EAST)
    found = receipt_of("r", [first, second], at(10))
    assert (found.waited_hours, found.paused_hours) == (0.0, 8.0)
    assert "Stopped for 8.00 h in between" in receipt_text(found)


def test_an_attempt_that_runs_is_counted_until_now() -> None:
    """And one that does not, for all that is known, until its bound."""
    attempt = AttemptRecord("a", started=at(0), last_seen=at(1), **EAST, **DEAR)
    running, gone = (receipt_of("r", [attempt], at(4), running=each) for each in (True, False))
    assert (running.usd, running.lines[0].end) == (32.0, "running")
    assert "Attempt 1 is counted until 2026-09-15T12:00:00Z." in receipt_text(running)
    assert (gone.usd, gone.lines[0].end) == (8.6667, "bound")
    assert (gone.usd_of_bounds, gone.on_demand_usd) == (0.6667, 22.0)


def test_a_run_on_demand_would_have_cost_the_same() -> None:
    """Also where one of its machines has died, and what that had computed was lost."""
    first = AttemptRecord("a", started=at(0), last_seen=at(1), end=AttemptEnd.OUTSIDE, **GOOGLE)
    second = AttemptRecord("b", started=at(2), ended=at(3), trained_from=at(2.1), **GOOGLE)
    second = replace(second, steps_recomputed=3, seconds_lost=360.0)
    found = receipt_of("r", [first, second], at(3))
    assert found.on_demand_usd == found.usd == pytest.approx(24.5 * (2 + QUIET_SECONDS / HOUR))
    assert (found.saved_usd, found.lost_usd) == (0.0, 2.45)


def test_nothing_is_known_of_no_attempt() -> None:
    assert Receipt("r", ()).usd == 0.0
    assert receipt_text(Receipt("r", ())) == "r. Cost: nothing; no attempt has begun."
    assert money(None) == "not known"
    assert [money(usd) for usd in (0.0, 0.00314, 0.1, 12.345)] == [
        "$0.00",
        "$0.0031",
        "$0.10",
        "$12.35",
    ]


def test_a_run_that_was_killed_and_went_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: killed eight hours ago by this machine's clock, then finished at another
    price. The receipt is what the record's own times say, on the page and in the command."""
    project = Project(tmp_path)
    spot = {"cloud": "aws", "region": "us-east-1", "spot": True, "usd_per_hour": 36.0}
    spot |= {"on_demand_usd_per_hour": 72.0, "date": "2026-11-01", "accelerators": "A100:8"}
    other = {**spot, "region": "us-west-2", "usd_per_hour": 18.0}
    before = {environment.PRICES.name: json.dumps([spot])}
    before[environment.EPOCH.name] = repr(clock.epoch - 8 * HOUR)
    project.trap("hold", call=12 * PER_STEP, committed=0)
    process = project.start("recipes/tiny.yaml", environ=before)
    until((tmp_path / "held").exists, "the step that holds")
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    until(lambda: not project.run.owner_pid(), "the end of whoever holds the run")
    assert project.run.report().status == "killed", "its end was not recorded"
    monkeypatch.setenv(environment.PRICES.name, json.dumps([other]))
    done = project.attempt()
    assert done.code == 0, done.err

    first, second = record(project.run)["attempts"]
    lived = first["last_seen"] - first["billed_from"] + QUIET_SECONDS
    ran = second["ended"] - second["billed_from"]
    told = json.loads(project.xrun("receipt", project.run.run, "--json").out)
    assert [each["end"] for each in told["attempts"]] == ["bound", "recorded"]
    assert [each["usd"] for each in told["attempts"]] == [
        round(lived * 36.0 / HOUR, 4),
        round(ran * 18.0 / HOUR, 4),
    ]
    assert told["usd"] == round(sum(each["usd"] for each in told["attempts"]), 4)
    assert told["waited_hours"] == round(
        (second["billed_from"] - first["last_seen"] - QUIET_SECONDS) / HOUR, 4
    )
    assert 7.5 < told["waited_hours"] < 8.0
    assert told["setup_known"]
    assert told["lost_steps"] == second["steps_recomputed"] > 0
    assert told["attempts"][0]["on_demand_usd_per_hour"] == 72.0

    page = json.loads((project.run.model / "xrun" / RECEIPT).read_text())
    assert page["attempts"][0] == told["attempts"][0]
    assert page["attempts"][1]["end"] == "running"
    card = (project.run.model / "README.md").read_text()
    assert "Attempts: 2, 1 of them ended from outside.\n\n* Cost: $" in card
    assert "\n| 1 | aws us-east-1 spot | A100:8 | $36.00 on 2026-11-01 | " in card


def test_a_table_fits_into_the_terminal() -> None:
    """What matters least leaves first, what can be cut is cut; without a limit all is there."""
    columns = [Column("RUN", cut=True), Column("STATUS"), Column("N", right=True, rank=1)]
    rows = [("a-run-with-a-long-name", "running", "12"), ("b", "failed", "3")]
    assert lines_of(columns, rows) == [
        "RUN                     STATUS    N",
        "a-run-with-a-long-name  running  12",
        "b                       failed    3",
    ]
    assert lines_of(columns, rows, 35) == [line.rstrip() for line in lines_of(columns, rows)]
    assert lines_of(columns, rows, 34) == [
        "RUN                    STATUS    N",
        "a-run-with-a-long-na…  running  12",
        "b                      failed    3",
    ]
    least = ["RUN           STATUS", "a-run-with-…  running", "b             failed"]
    assert lines_of(columns, rows, 21) == least
    assert lines_of(columns, rows, 3) == least, "no narrower than that"
    assert lines_of([*columns, Column("EMPTY")], [(*row, "") for row in rows], 35)[0].endswith(" N")
    assert lines_of(columns, []) == []
