"""What people are told while no attempt of a run lives: by whoever starts its machines, and by a
machine that cannot be set up. Both have the task's variables, its secrets among them.

By apprise where that can be imported; else by what the standard library can do, which is JSON to a
web address.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from urllib.request import Request, urlopen

VARIABLE = "XRUN_ALERTS"
"""The task's variable that says who is told of what: `{"to": ["ALERT_URL"], "on": ["failed"]}`, the
recipe's `alerts` as JSON."""
SECONDS = 30.0
"""How long all of it may take."""
_SOCKET_SECONDS = 10.0
_KINDS = {"failed": "failure", "stalled": "warning", "recovered": "success"}


def not_set_up(cargo: Path, text: str, *, final: bool) -> list[str]:
    """Tell that a machine of a job could not be set up, which ends its run where that is `final`,
    else leaves it to another machine; returns as `tell` does. Of several nodes the first one tells.
    """
    if not os.environ.get(VARIABLE) or os.environ.get("SKYPILOT_NODE_RANK", "0") != "0":
        return []
    run = str(json.loads((cargo / "plan.json").read_text(encoding="utf-8"))["run"])
    job = os.environ.get("SKYPILOT_TASK_ID", "")
    event, about = ("failed", job) if final else ("stalled", f"{job} {socket.gethostname()}")
    return tell(event, run, text, os.environ, about)


def tell(event: str, run: str, text: str, environ: Mapping[str, str], about: str = "") -> list[str]:
    """Tell of an event of a run by the addresses in `environ`, if its recipe wants to hear of it.
    What is told of the same event `about` the same has the same `id` for programs.

    Returns a sentence for each variable whose address was not reached within `SECONDS`, without
    anything of the address. Raises nothing: whoever tells has more important things to do. Whether
    an event was told before is the caller's to know.
    """
    try:
        alerts = json.loads(environ.get(VARIABLE) or "{}")
        names, wanted = list(alerts.get("to", ())), event in alerts.get("on", ())
    except (ValueError, AttributeError, TypeError):
        return [f"{VARIABLE} is no JSON object, so nobody was told of `{event}`."]
    message = {
        "title": f"xrun: {run}",
        "body": text,
        "type": _KINDS.get(event, "info"),
        "id": " ".join(filter(None, (run, event, about))),
    }
    failed: dict[str, str] = dict.fromkeys(names, f"no answer within {SECONDS:.0f} s.")
    threads = [
        threading.Thread(target=_tell, args=(name, message, environ, failed), daemon=True)
        for name in (names if wanted else ())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    said = dict(failed) if wanted else {}
    return [f"The alert `{event}` did not reach {name}: {why}" for name, why in said.items() if why]


def _tell(
    name: str, message: Mapping[str, str], environ: Mapping[str, str], failed: dict[str, str]
) -> None:
    """Write down in `failed` why the address in a variable was not reached, "" where it was."""
    value = environ.get(name, "").strip()
    try:
        failed[name] = _send(value, message) if value else "the variable is not set there."
    except HTTPError as error:
        failed[name] = f"the server answered {error.code}."
    except Exception as error:  # a stranger's address, server or library: it may be anything
        failed[name] = f"{type(error).__name__}."


def _send(value: str, message: Mapping[str, str]) -> str:
    """Send it to every address in a value; why one was not reached."""
    try:
        import apprise
    except ImportError:
        addresses = re.split(r"[\s,]+(?=\w+://)", value)
        return next(filter(None, [_post(address, message) for address in addresses]), "")
    sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="xrun", async_mode=False))
    if not sender.add(value):
        return _post(value, message)
    for server in sender:
        identify(server, message["id"])
    kind, title, body = message["type"], message["title"], message["body"]
    return "" if sender.notify(title=title, body=body, notify_type=kind) else "it was refused."


def identify(server: Any, name: str) -> None:
    """Let one of apprise's servers send an `id` along, if it takes fields of one's own."""
    extras = getattr(server, "payload_extras", None)
    if isinstance(extras, dict) and name:
        extras.setdefault("id", name)


def _post(address: str, message: Mapping[str, str]) -> str:
    """JSON to a web address, the fields of apprise's `json://` (or what Slack and Discord take)."""
    parts = urlsplit(address)
    web = {"json": "http", "jsons": "https", "http": "http", "https": "https"}.get(parts.scheme)
    if web is None or not parts.hostname:
        return f"`{parts.scheme}://` needs apprise, which is not here."
    query, headers = parts.query, {"Content-Type": "application/json", "User-Agent": "xrun"}
    if parts.scheme != web:  # apprise's own address: what is meant for the server has a sign
        given = parse_qsl(parts.query)
        query = urlencode([(key[1:], each) for key, each in given if key.startswith("-")])
        headers.update({key[1:]: each for key, each in given if key.startswith(("+", " "))})
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    url = f"{web}://{parts.netloc.rpartition('@')[2]}{parts.path or '/'}{'?' * bool(query)}{query}"
    body = json.dumps(_fields(parts.hostname, message)).encode()
    request = Request(url, body, headers)  # noqa: S310  http or https, see above
    with urlopen(request, timeout=_SOCKET_SECONDS):  # noqa: S310  likewise
        return ""


def _fields(host: str, message: Mapping[str, str]) -> dict[str, Any]:
    line = f"{message['title']}\n{message['body']}"
    if host == "hooks.slack.com":
        return {"text": line}
    if host in ("discord.com", "discordapp.com"):
        return {"content": line}
    named = {"title": message["title"], "message": message["body"], "type": message["type"]}
    named["id"] = message["id"]
    return {"version": "1.0", "attachments": [], **named}
