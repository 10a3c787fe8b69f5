"""`xrun alert` sends one message to each address, received by real servers."""

from __future__ import annotations

from pathlib import Path

from support.receivers import Mailbox, Webhook
from support.running import RECIPE, Project


def test_it_says_which_arrived_and_why_others_did_not(tmp_path: Path) -> None:
    """Exit code 3 where one did not; nothing of an address is printed."""
    project = Project(tmp_path, RECIPE + "alerts: {to: [HOOK, LETTER]}\n")
    with Webhook() as hook, Mailbox() as box:
        environ = {"HOOK": hook.address, "LETTER": box.address}
        done = project.xrun("alert", "recipes/tiny.yaml", "--test", environ=environ)
        assert (done.code, done.out, done.err) == (0, "HOOK: arrived.\nLETTER: arrived.\n", "")
        assert [told["title"] for _, told in hook.posted] == ["xrun: tiny can reach you"]
        assert [letter["Subject"] for letter in box.letters] == ["xrun: tiny can reach you"]
        hook.status = 404
        done = project.xrun("alert", "recipes/tiny.yaml", "--test", environ={"HOOK": hook.address})
    assert (done.code, done.out) == (3, "")
    first, second = done.err.splitlines()
    assert first.startswith("HOOK: ")
    assert "404" in first
    assert "s3cret" not in done.err
    assert second == "LETTER: the variable is not set here."


def test_without_a_test_it_says_who_is_told_of_what(tmp_path: Path) -> None:
    project = Project(tmp_path)
    alerts = ("-s", "alerts={to: [A, B], on: [failed, finished]}")
    done = project.xrun("alert", "recipes/tiny.yaml", *alerts)
    assert (done.code, done.out) == (0, "A, B: failed, finished\n")
    refused = project.xrun("alert", "recipes/tiny.yaml", "--test")
    assert refused.code == 3
    assert "names nobody under `alerts`" in refused.err
