"""Events are told once, and a server that does not answer holds nobody up."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.receivers import Webhook
from support.running import Project, until
from xrun.alerts.message import Message
from xrun.alerts.teller import Teller
from xrun.files import read_json
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan


def message(event: str, once: str = "") -> Message:
    return Message(event, f"xrun: tiny-1 {event}", "text", once or event)


def plan_for(project: Project, *names: str) -> Plan:
    return project.plan(f"alerts.to=[{','.join(names)}]", "alerts.on=[started,finished]")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    one = Project(tmp_path)
    (one.home / one.plan().run).mkdir(parents=True)
    return one


def test_what_is_asked_for_is_told_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the next attempt's teller; an event that the recipe does not name is not told."""
    said: list[str] = []
    with Webhook() as hook:
        monkeypatch.setenv("HOOK", hook.address)
        for _ in range(2):
            teller = Teller(plan_for(project, "HOOK"), said.append)
            teller.tell(message("started"))
            teller.tell(message("failed"))
            teller.tell(message("started", "another command's"))
            teller.close(300)
    assert hook.titles == ["started", "started"]
    assert said == []


def test_a_server_that_hangs_holds_up_nobody(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the caller, nor the other addresses; at the end it is given up, with one line."""
    said: list[str] = []
    with Webhook(hangs=True) as deaf, Webhook() as hook:
        monkeypatch.setenv("DEAF", deaf.address)
        monkeypatch.setenv("HOOK", hook.address)
        plan = plan_for(project, "DEAF", "HOOK")
        teller = Teller(plan, said.append)
        teller.tell(message("started"))
        told = RunFolder(plan.folder).alerts
        until(lambda: "HOOK" in (read_json(told, dict) or {}), "the other address's message")
        assert hook.titles == ["started"]
        until(deaf.asked.is_set, "a request to the one that hangs")
        teller.close(0)
    assert said == ["The alert `started` did not reach DEAF: there was no time left."]


def test_nobody_is_started_where_nobody_is_to_be_told(project: Project) -> None:
    """Neither without `alerts` nor in a rehearsal."""
    import dataclasses

    rehearsal = dataclasses.replace(plan_for(project, "HOOK"), rehearsal=1)
    for plan in (project.plan(), rehearsal):
        teller = Teller(plan, pytest.fail)
        teller.tell(message("started"))
        teller.close(0)
        assert plan.alerts.on == ()
