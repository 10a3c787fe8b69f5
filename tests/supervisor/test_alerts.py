"""What an attempt tells people, received by a real web server: each event once, whatever is killed
and however many nodes there are. Covers `xrun.alerts.message` and `xrun.alerts.teller`.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.receivers import Webhook
from support.running import PER_STEP, RECIPE, Done, Project, attempt, children, ended, until
from xrun.machine.nodes import Nodes
from xrun.machine.stop import StopFlag
from xrun_sky.stay import LEFT

ALERTS = "alerts: {to: [HOOK]}\n"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as one:
        monkeypatch.setenv("HOOK", one.address)
        yield one


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, RECIPE + ALERTS)


def on_a_cloud(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    """A machine that costs 3.60 dollars an hour."""
    info = {"cluster": "c", "cloud": "Slurm", "region": "lab", "zone": zone}
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", json.dumps(info))
    price = {"cloud": "slurm", "usd_per_hour": 3600.0, "region": "lab", "zone": zone}
    monkeypatch.setenv("XRUN_PRICES", json.dumps([price]))


def test_a_start_a_loss_and_an_end_are_told_once(
    project: Project, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where, at which step, and the dollars. A machine that went without a word is told of by
    the attempt that goes on; a finished run that is started again tells nothing more."""
    on_a_cloud(monkeypatch, "z1")
    project.trap("SIGKILL", call=11 * PER_STEP + 1, committed=5)
    assert project.attempt().code == 75
    on_a_cloud(monkeypatch, "z2")
    assert project.attempt().code == 0
    assert project.attempt().code == 0
    run = project.run.run
    assert len(hook.titles) == 3, hook.titles
    assert hook.body("trains in slurm z1").startswith("Training has begun.\n$")
    body = hook.body("goes on at step")
    assert "It lost its machine in slurm z1" in body
    assert "in slurm z2 after" in body
    assert "There is nothing to do." in body
    assert "so far." in body
    last = hook.body("is finished")
    assert "Step 20 was the last" in last
    assert last.endswith(f"xrun report {run}")
    assert str(project.run.model) in last
    # Whoever does not know what was told tells it again, as the same event.
    project.run.alerts.unlink()
    assert project.attempt().code == 0
    ends = [told["id"] for _, told in hook.posted if "is finished" in told["title"]]
    assert ends == [f"{run} finished 20"] * 2


def test_the_command_tells_once_over_a_kill(project: Project, hook: Webhook) -> None:
    """The attempt's supervisor is killed with SIGKILL: `xrun` starts another one, which says so."""
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    command = project.start("recipes/tiny.yaml", environ={"HOOK": hook.address})
    until((project.root / "held").exists, "the hold")
    hook.until(1)
    import os

    [supervisor] = children(command.pid)
    os.kill(supervisor, signal.SIGKILL)
    done = ended(command)
    assert done.code == 0, done.err
    assert len(hook.titles) == 3, hook.titles
    hook.body("trains in")
    assert "It was ended from outside on" in hook.body("goes on at step 5 of 20")
    hook.body("is finished")
    assert "The alert" not in done.err


def test_two_nodes_tell_once(
    project: Project, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        monkeypatch.setenv("XRUN_PORT", str(probe.getsockname()[1]))
    plan, done = project.plan(), dict[int, Done]()

    def node(rank: int) -> None:
        done[rank] = attempt(plan, StopFlag(), Nodes(rank, ("127.0.0.1", "127.0.0.2"), 1))

    threads = [threading.Thread(target=node, args=[rank]) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done[0].code, done[1].code] == [0, 0], done
    assert len(hook.titles) == 2, hook.titles


def stopped(project: Project, reason: str, hook: Webhook) -> Done:
    """Stopped while it trains, which it has told."""
    stop = StopFlag()
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)

    def give() -> None:
        until((project.root / "held").exists, "the hold")
        hook.until(1)
        stop.set(reason, 60, at_once=True)

    thread = threading.Thread(target=give)
    thread.start()
    done = project.attempt(stop=stop)
    thread.join()
    return done


def test_a_notice_is_told(project: Project, hook: Webhook) -> None:
    """At the notice, with what it means."""
    assert stopped(project, "AWS will terminate this instance", hook).code == 75
    body = hook.body("is preempted at step 7")
    assert "AWS will terminate this instance. Step 5 is committed." in body
    assert "run the same command again to go on" in body


def test_a_move_that_was_planned_is_no_preemption(
    project: Project, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt leaves its machine for a cheaper one, and the next one says that it has."""
    on_a_cloud(monkeypatch, "z1")
    assert stopped(project, LEFT, hook).code == 75
    assert "the run goes on by itself" in hook.body("leaves its machine at step 7")
    on_a_cloud(monkeypatch, "z2")
    assert project.attempt().code == 0
    assert "It left its machine in slurm z1 for another one at step" in hook.body("goes on at step")


def test_what_a_person_wants_is_not_told(project: Project, hook: Webhook) -> None:
    """Ctrl-C."""
    assert stopped(project, "SIGINT", hook).code == 75
    assert [title.split()[0] for title in hook.titles] == ["trains"]


@pytest.mark.parametrize(
    ("overrides", "title", "words"),
    [
        (["budget.hours=0.0001"], "has spent its budget", ["budget.hours", "xrun resume"]),
        (["train.optimizer.lr=1e30"], "has failed", ["The run does not start again by itself."]),
    ],
    ids=["budget", "failed"],
)
def test_an_end_for_good_is_told(
    project: Project, hook: Webhook, overrides: list[str], title: str, words: list[str]
) -> None:
    """With the way on. The budget of the test is spent by the attempt's own end."""
    done = project.attempt(*overrides)
    assert done.code in (6, 7), done.err
    body = hook.body(title)
    assert [word for word in words if word not in body] == []


def test_a_hang_is_told(project: Project, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks without a sign of life were ended; the run goes on by itself."""
    monkeypatch.setenv("XRUN_HANG_SECONDS", "2")
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    assert project.attempt().code == 0
    body = hook.body("hangs")
    assert "no sign of life for" in body
    assert "The ranks were ended and are started again. Step 5 is committed." in body
    assert [title.split()[0] for title in hook.titles] == ["trains", "hangs", "is"]


def test_a_dead_address_costs_nothing_but_a_line(project: Project, hook: Webhook) -> None:
    """One line for each event, which says which variable it was and nothing of what is in it."""
    hook.status = 500
    done = project.attempt()
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if line.startswith("The alert")]
    assert [line.split("`")[1] for line in lines] == ["started", "finished"]
    assert "did not reach HOOK: " in lines[0]
    assert "s3cret" not in done.err


def test_an_older_plan_tells_nobody(project: Project, hook: Webhook) -> None:
    """Plans from before there were alerts lack the key."""
    import dataclasses

    plan = project.plan()
    recipe: dict[str, Any] = {n: v for n, v in plan.recipe.items() if n != "alerts"}
    assert attempt(dataclasses.replace(plan, recipe=recipe)).code == 0
    assert hook.titles == []
