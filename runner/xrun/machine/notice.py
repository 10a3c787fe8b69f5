"""A cloud's notice that this machine will be taken away, from the machine's own metadata server.

Each cloud has a server of its own kind at the same address, and one writes a file instead. A thread
asks every few seconds and sets the stop flag; what it hears first says whether there will be a
notice on this machine. A server that is not there costs one connection now and then, and nothing
that it answers can end an attempt but a notice. Which clouds tell, and how: docs/alerts.md.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .. import environment
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


def ask_mithril(server: Metadata) -> Notice | None:
    """`MITHRIL_SIGNAL.yml`, which is there from about five minutes before the machine is stopped;
    the folder that it is written into is on each of Mithril's machines."""
    path = Path(server.file)
    try:
        told = dict(re.findall(r"^(\w+):\s*['\"]?(.*?)['\"]?\s*$", path.read_text(), re.MULTILINE))
    except FileNotFoundError:
        path.parent.stat()
        return None
    status = told.get("instance_status", "").removeprefix("STATUS_").lower()
    if status not in ("preempting", "relocating"):
        return None
    when = told.get("end_time", "")
    seconds = _seconds(when, _in_utc, Message())
    return Notice(f"Mithril is {status} this instance{f', {when}' if when else ''}", seconds)


def _in_utc(when: str) -> datetime:
    """A time that may not say in which zone it is."""
    read = datetime.fromisoformat(when)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


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
    "mithril": (ask_mithril, 5.0),
}
"""How each cloud is asked, and how often in seconds: as often as its notice is short."""
_TOLD = {
    "aws": "AWS tells this machine two minutes before it takes it",
    "gcp": "Google Cloud tells this machine 30 s before it takes it",
    "azure": "Azure tells this machine at least 30 s before it takes it",
    "mithril": "Mithril tells this machine five minutes before it takes it",
    "nebius": "Nebius sends SIGTERM 60 s before it takes a machine",
    "kubernetes": "SkyPilot asks the first node to save before its pod goes",
}
_NO_CLOUD = ("", "slurm", "ssh")
"""Machines of one's own, which nobody takes away to give them to others."""


def outlook(cloud: str) -> str:
    """The sentence that says whether this cloud gives a notice at all; "" on machines of one's
    own."""
    if cloud in _NO_CLOUD:
        return ""
    told = _TOLD.get(cloud)
    none = f"{cloud} documents no notice for its machines; a SIGTERM is heard"
    return f"Notice: {told or none}."


@contextlib.contextmanager
def watching(
    stop: StopFlag,
    cloud: str,
    environ: Mapping[str, str],
    interval: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """While this lasts, a notice of the cloud sets the stop flag; a cloud without notices is not
    asked. `say` is told once whether there will be one.

    `interval`: seconds between two questions, instead of the cloud's own.
    """
    if cloud not in ASK:
        if said := outlook(cloud):
            say(said)
        yield
        return
    ask, pause = ASK[cloud]
    server, ended = Metadata.of(environ), threading.Event()
    server.file = environment.NOTICE_FILE.of(environ)
    heard = _Heard(cloud, say)
    arguments: Any = (ask, server, stop, ended, interval or pause, heard)
    threading.Thread(target=_watch, args=arguments, name="xrun-notice", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _Heard:
    """Says whether there will be a notice: that nobody answers at first, and when somebody does."""

    def __init__(self, cloud: str, say: Callable[[str], None]) -> None:
        self.cloud, self.say = cloud, say
        self._last: bool | None = None

    def note(self, answered: bool) -> None:
        """After each question; an answer is for good."""
        if answered == self._last or self._last:
            return
        self._last = answered
        if answered:
            self.say(outlook(self.cloud))
        else:
            nobody = f"{self.cloud} does not answer on this machine, and is asked again"
            self.say(f"Notice: {nobody}; until it answers, the machine may be lost without notice.")


def _watch(
    ask: Callable[[Metadata], Notice | None],
    server: Metadata,
    stop: StopFlag,
    ended: threading.Event,
    interval: float,
    heard: _Heard,
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
        heard.note(not failed)
        if notice is not None:
            stop.set(notice.reason, notice.seconds)
            return
        wait = backoff.seconds(1 + failed) - (time.monotonic() - began)
        if ended.wait(max(0.0, wait)):
            return
