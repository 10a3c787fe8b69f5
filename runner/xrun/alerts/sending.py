"""One message to the addresses in one variable, in a process of its own: `python -m
xrun.alerts.sending NAME`, with the message as JSON on its input.

Ends with 0 where it has arrived. Else it prints one line that says why, without anything of the
address, and ends with 1.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from xrun_sky.told import identify

from .. import streams
from ..libraries import how_to_install
from ..machine.stop import end_with_parent
from ..terminal import shown

_KINDS = {
    "preempted": "warning",
    "recovered": "success",
    "stalled": "warning",
    "budget": "warning",
    "finished": "success",
    "failed": "failure",
}
"""apprise's kind of message for each event; it is information for the others."""


def main(name: str) -> int:
    """Send what the input says to the addresses in the variable `name`."""
    address = os.environ.get(name, "")
    try:
        why = send(address, json.load(sys.stdin))
    except Exception as error:  # apprise has a hundred services, and each may raise anything
        why = f"apprise failed with {type(error).__name__}: {hidden(str(error), address)}"
    if why:
        print(shown(why))
    return 1 if why else 0


def send(address: str, message: Mapping[str, str]) -> str:
    """Send a message (`event`, `title`, `body`, `id`); why it has not arrived, "" where it has."""
    if not address.strip():
        return "the variable is not set here."
    try:
        import apprise
    except ImportError:
        return f"apprise is not installed here. {how_to_install('apprise')}"
    about = apprise.AppriseAsset(app_id="xrun", app_desc="xrun", app_url="", async_mode=False)
    sender = apprise.Apprise(asset=about)
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
        if not (sender.add(address) or sender.add(_as_webhook(address))):
            return "its value is not an address that apprise knows (examples: docs/alerts.md)."
        for server in sender:
            identify(server, message.get("id", ""))
        arrived = sender.notify(
            title=message["title"],
            body=message["body"],
            notify_type=_KINDS.get(message["event"], "info"),
            body_format="text",
        )
        lines = [] if arrived else said.getvalue().splitlines()
    if arrived:
        return ""
    return hidden(lines[-1] if lines else "apprise did not say why.", address)


def _as_webhook(address: str) -> str:
    """A plain web address in apprise's words, which gets JSON; parameters stay what they are."""
    if not re.match(r"https?://\S+$", address):
        return ""
    before, query, parameters = address.replace("http", "json", 1).partition("?")
    return before + query + re.sub(r"(^|&)(?=[^&])", r"\1-", parameters)


def hidden(text: str, address: str) -> str:
    """The text without any part of an address but its kind: any may be the secret one."""
    parts = {*re.split(r"[^\w.~-]+", address), *re.split(r"[^\w.~-]+", unquote(address))}
    secret = sorted((part for part in parts if len(part) > 3), key=len, reverse=True)
    kind = urlsplit(address).scheme.lower()
    for part in secret:
        if part.lower() != kind:
            text = text.replace(part, "***")
    return text


if __name__ == "__main__":
    streams.deaf()
    end_with_parent(signal.SIGKILL)
    sys.exit(main(sys.argv[1]))
