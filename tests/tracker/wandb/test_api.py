"""Whoever answers in W&B's place is out of reach: within seconds, and never "there is no such
run"."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from loopback.portal import ANSWERS, Portal
from xrun.tracker.wandb import api
from xrun.tracker.wandb.api import Refused, RunPath, Unreachable

ADDRESS = RunPath("alice", "p", "r")
CALLS: dict[str, Callable[[], object]] = {
    "run status": lambda: api.run_status(ADDRESS),
    "viewer": api.viewer,
    "read only": lambda: api.is_read_only("alice", "p"),
    "create run": lambda: api.create_run(ADDRESS),
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of a test."""
    monkeypatch.setattr(api, "_WHOLE_SECONDS", 2.0)
    monkeypatch.setattr(api, "_SECONDS", 3.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


@pytest.mark.parametrize("how", ANSWERS)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_wandb_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, call: str, how: str
) -> None:
    """The key goes nowhere else, and no error has it in it."""
    refused = how in ("403", "404")
    with Portal(how) as portal:
        monkeypatch.setenv("WANDB_BASE_URL", portal.url)
        began = time.monotonic()
        with pytest.raises(Refused if refused else Unreachable) as error:
            CALLS[call]()
    assert time.monotonic() - began < 15
    assert "0" * 40 not in str(error.value)
    assert not any(each.elsewhere for each in portal.heard)


@pytest.mark.parametrize(
    "model",
    [
        1,
        {"bucket": 1},
        {"bucket": {"historyTail": 1}},
        {"bucket": {"historyTail": "[1]"}},
        {"bucket": {"historyTail": "[" * 100_000}},
        {"bucket": {"summaryMetrics": "[1]"}},
        {"bucket": {"historyTail": '["{\\"train/step\\": []}"]'}},
        {"bucket": {"summaryMetrics": '{"xrun/commit_step": "x"}'}},
        {"bucket": {"historyLineCount": "x"}},
    ],
    ids=lambda model: str(model)[:60],
)
def test_a_status_is_one_or_nobody_answers(monkeypatch: pytest.MonkeyPatch, model: object) -> None:
    with Portal("html", {"/graphql": {"data": {"model": model}}}) as portal:
        monkeypatch.setenv("WANDB_BASE_URL", portal.url)
        with pytest.raises(Unreachable, match="is not Weights & Biases"):
            api.run_status(ADDRESS)


def test_no_model_and_no_run_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that is not there yet, and a run that is not, are answers; nothing at all is
    none."""
    for data, found in (({"model": None}, True), ({"model": {"bucket": None}}, True), ({}, False)):
        with Portal("html", {"/graphql": {"data": data}}) as portal:
            monkeypatch.setenv("WANDB_BASE_URL", portal.url)
            if found:
                assert api.run_status(ADDRESS) is None
            else:
                with pytest.raises(Unreachable):
                    api.run_status(ADDRESS)
