"""Who tells people of an attempt's events: each once, in processes of their own, and never in the
training's way."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from .. import environment
from ..files import read_json, write_json
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..signals import STOPS, held_back
from .message import Message

SECONDS = 60.0
"""How long one message to one address may take, apprise's start of a second or two included."""


class Delivery:
    """A message on its way to the addresses in one variable."""

    def __init__(self, name: str, message: Message) -> None:
        with held_back(STOPS):
            self._process = subprocess.Popen(
                [*environment.PYTHON, "-m", "xrun.alerts.sending", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, environment.PARENT.name: str(os.getpid())},
            )
        self._text = json.dumps(message.to_json())

    def end(self, seconds: float = SECONDS) -> str:
        """Wait for it; why it has not arrived within so many seconds, "" where it has."""
        try:
            said = self._process.communicate(self._text, timeout=seconds)[0].strip()
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.communicate()
            return f"no answer within {seconds:.0f} s."
        return said or (
            "" if self._process.returncode == 0 else "the process that sends was ended."
        )

    def kill(self) -> None:
        """Give it up."""
        self._process.kill()


def try_out(names: Sequence[str], recipe: str) -> dict[str, str]:
    """Send one message to the addresses in each variable; why it has not arrived, "" where it
    has."""
    message = Message(
        "started",
        f"xrun: {recipe} can reach you",
        "A test of `alerts`. There is nothing to do.",
    )
    sent = {name: Delivery(name, message) for name in names}
    return {name: delivery.end() for name, delivery in sent.items()}


class Teller:
    """Tells the addresses of a plan's recipe, each by a thread, which `close` ends; `say` gets a
    line for people about what has not arrived.

    What was told, or could not be, is kept in the run's folder, and is not told again.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.on, self.say = plan.alerts.on, say
        self._told = RunFolder(plan.folder).alerts
        self._lock = threading.Lock()
        self._running: dict[str, Delivery] = {}
        self._lines: dict[str, queue.SimpleQueue[Message | None]] = {
            name: queue.SimpleQueue() for name in plan.alerts.to
        }
        self._threads: list[threading.Thread] = []
        self._given_up = False

    def tell(self, message: Message) -> None:
        """Begin to tell, and return at once."""
        if message.event not in self.on:
            return
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._follow, args=[name], name="xrun-alert", daemon=True)
                for name in self._lines
            ]
            for thread in self._threads:
                thread.start()
        for line in self._lines.values():
            line.put(message)

    def close(self, seconds: float) -> None:
        """What is on its way may arrive for so long; then it is given up."""
        for line in self._lines.values():
            line.put(None)
        deadline = time.monotonic() + max(0.0, seconds)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._given_up = True
            for delivery in self._running.values():
                delivery.kill()
        for thread in self._threads:
            thread.join()

    def _follow(self, name: str) -> None:
        while (message := self._lines[name].get()) is not None:
            if message.once in self._known().get(name, ()):
                continue
            with self._lock:
                if self._given_up:
                    return
                try:
                    delivery = self._running[name] = Delivery(name, message)
                except OSError as error:  # this machine starts no more processes
                    self.say(f"The alert `{message.event}` was not sent: {error.strerror}.")
                    continue
            why = delivery.end()
            if self._given_up:
                why = "there was no time left."
            else:
                self._note(name, message)
            if why:
                self.say(f"The alert `{message.event}` did not reach {name}: {why}")

    def _known(self) -> dict[str, list[str]]:
        """What each address was told of."""
        return read_json(self._told, dict) or {}

    def _note(self, name: str, message: Message) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk: then it may be told once more
            known = self._known()
            write_json(self._told, {**known, name: [*known.get(name, ()), message.once]})
