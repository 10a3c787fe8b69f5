"""A cloud's notice that this machine will be taken away, from the machine's own metadata server.

Each cloud has a server of its own kind at the same address. A thread asks it every few seconds and
sets the stop flag. A server that is not there costs one connection now and then, and nothing that
it answers can end an attempt but a notice.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from ..backoff import Backoff
from .metadata import Metadata, aws
from .stop import GRACE_SECONDS, SPARE_SECONDS, StopFlag

_LONGEST_SECONDS = 60.0
"""The longest wait between two questions to a server that has never answered."""
_LONGEST_INTERVALS = 5
"""The longest wait, in intervals, for one that has answered before."""


@dataclass(frozen=True)
class Notice:
    """This machine goes away for `reason`; `seconds` are left for the attempt."""

    reason: str
    seconds: float


def ask_aws(server: Metadata) -> Notice | None:
    """`spot/instance-action` of IMDSv2: 404 until two minutes before the instance is taken."""
    try:
        text, headers = aws(server, "spot/instance-action")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return None
    action = json.loads(text)
    seconds = _seconds(action["time"], datetime.fromisoformat, headers)
    return Notice(f"AWS will {action['action']} this instance at {action['time']}", seconds)


def ask_gcp(server: Metadata) -> Notice | None:
    """`instance/preempted` is TRUE from 30 seconds before the machine is switched off."""
    text, _ = server.get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return (
        Notice("Google Cloud preempts this machine", GRACE_SECONDS)
        if text.strip() == "TRUE"
        else None
    )


def ask_azure(server: Metadata) -> Notice | None:
    """Scheduled Events that take this machine away, at least 30 seconds before.

    A set of machines sees the events of all of them. `NotBefore` is empty once an event has begun.
    """
    text, headers = server.get(
        "/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}
    )
    for event in json.loads(text)["Events"]:
        if event["EventType"] in ("Preempt", "Terminate") and _is_ours(
            server, event.get("Resources") or []
        ):
            when = event.get("NotBefore")
            seconds = _seconds(when, parsedate_to_datetime, headers) if when else GRACE_SECONDS
            return Notice(
                f"Azure announces {event['EventType']} of this"
                f" machine{f', {when}' if when else ''}",
                seconds,
            )
    return None


def _is_ours(server: Metadata, resources: list[str]) -> bool:
    """Whether an event is about this machine; one that names nobody, or a machine without a known
    name, counts."""
    if server.name is None:
        with contextlib.suppress(OSError, HTTPException):
            server.name = server.get(
                "/metadata/instance/compute/name?api-version=2021-02-01&format=text",
                {"Metadata": "true"},
            )[0].strip()
    return not resources or not server.name or server.name in resources


def _seconds(when: str, parse: Callable[[str], datetime], headers: Message) -> float:
    """Seconds from now until then for the attempt, by the server's clock: the machine's own may be
    wrong."""
    date = headers.get("Date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    try:
        return max(0.0, (parse(when) - now).total_seconds() - SPARE_SECONDS)
    except (
        ValueError,
        TypeError,
    ):  # a time that cannot be read is no reason to overlook the notice
        return GRACE_SECONDS


ASK: dict[str, tuple[Callable[[Metadata], Notice | None], float]] = {
    "aws": (ask_aws, 5.0),
    "gcp": (ask_gcp, 1.0),
    "azure": (ask_azure, 1.0),
}
"""How each cloud is asked, and how often in seconds: as often as its notice is short."""


@contextlib.contextmanager
def watching(
    stop: StopFlag, cloud: str, environ: Mapping[str, str], interval: float | None = None
) -> Iterator[None]:
    """While this lasts, a notice of the cloud sets the stop flag; a cloud without notices is not
    asked.

    `interval`: seconds between two questions, instead of the cloud's own.
    """
    if cloud not in ASK:
        yield
        return
    ask, pause = ASK[cloud]
    server, ended = Metadata.of(environ), threading.Event()
    arguments: Any = (ask, server, stop, ended, interval or pause)
    threading.Thread(target=_watch, args=arguments, name="xrun-notice", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(
    ask: Callable[[Metadata], Notice | None],
    server: Metadata,
    stop: StopFlag,
    ended: threading.Event,
    interval: float,
) -> None:
    backoff, failed = Backoff(first=interval, longest=_LONGEST_SECONDS), 0
    while True:
        began = time.monotonic()
        try:
            notice, failed = ask(server), 0
            backoff = Backoff(first=interval, longest=interval * _LONGEST_INTERVALS)
        except (
            OSError,
            HTTPException,
            ValueError,
            KeyError,
            TypeError,
        ):  # not there, or not what it should be
            notice, failed = None, failed + 1
        if notice is not None:
            stop.set(notice.reason, notice.seconds)
            return
        wait = backoff.seconds(1 + failed) - (time.monotonic() - began)
        if ended.wait(max(0.0, wait)):
            return
