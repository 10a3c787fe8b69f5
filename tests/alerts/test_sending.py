"""One message by the real apprise, to a real web server and a real mail server on loopback.

Covers `xrun.alerts.sending`.
"""

from __future__ import annotations

import pytest

from support.receivers import Mailbox, Webhook
from xrun.alerts.message import Message
from xrun.alerts.sending import hidden
from xrun.alerts.teller import Delivery

MESSAGE = Message(
    "preempted",
    "xrun: tiny-1 is preempted",
    "Step 5 is committed.\nxrun report x",
    id="tiny-1 preempted a",
)


def deliver(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("ALERT_URL", address)
    return Delivery("ALERT_URL", MESSAGE).end(300)


def test_a_webhook_gets_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As apprise's JSON, with title, text and kind, and with what names the event, so that whoever
    reads it knows one that was told twice."""
    with Webhook() as hook:
        assert deliver(monkeypatch, hook.address) == ""
    [(path, told)] = hook.posted
    assert path == "/s3cret-path"
    assert told["title"] == MESSAGE.title
    assert told["message"] == MESSAGE.body
    assert told["type"] == "warning"
    assert told["id"] == "tiny-1 preempted a"


def test_a_plain_web_address_is_a_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that apprise has no name for gets JSON, and its parameters reach the server."""
    with Webhook() as hook:
        assert deliver(monkeypatch, f"http://{hook.place}?sig=abc&to=me") == ""
    assert [path for path, _ in hook.posted] == ["/s3cret-path?sig=abc&to=me"]


def test_a_letter_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    with Mailbox() as box:
        assert deliver(monkeypatch, box.address) == ""
    [letter] = box.letters
    assert letter["Subject"] == MESSAGE.title
    assert letter["To"] == "me@example.org"
    assert "Step 5 is committed." in letter.get_body(("plain", "html")).get_content()


def test_a_refusal_says_why_and_not_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the host nor the path nor a password of an address is said: any may be secret."""
    with Webhook(status=403) as hook:
        why = deliver(monkeypatch, hook.address.replace("//", "//user:pa55word@"))
    assert "403" in why
    for secret in ("s3cret", "pa55word", "127.0.0.1"):
        assert secret not in why


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "the variable is not set here."),
        ("nonsense://tok3n", "its value is not an address that apprise knows"),
        ("not an address", "its value is not an address that apprise knows"),
        ("json://127.0.0.1:9/tok3n", "A Connection error occurred sending JSON notification"),
    ],
)
def test_what_cannot_be_sent_says_why(
    monkeypatch: pytest.MonkeyPatch, address: str, why: str
) -> None:
    said = deliver(monkeypatch, address)
    assert why in said
    assert "tok3n" not in said


def test_nothing_of_an_address_is_shown() -> None:
    """Also what is written in another way there; its kind is no secret."""
    address = "mailtos://me:p%40ss-word@mail.example.org?to=you@example.org"
    said = hidden("mailtos: p@ss-word and you at mail.example.org", address)
    assert said == "mailtos: ***@*** and *** at ***" or "example" not in said
    assert "ss-word" not in said
    assert said.startswith("mailtos: ")
