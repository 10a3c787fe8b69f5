"""What the sender of points is told, and what it tells: orders on its stdin, sentences on its
stdout, its state in a file."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

from ... import signals
from ...files import read_json, write_json
from ...run.points import Key
from .rows import BEFORE_ALL

KINDS = ("train", "val")


class Orders:
    """What whoever started the sender wants: `preempting`, `exit CODE`, and an end of the lines
    when it is to finish.

    `ended` from the beginning: nobody is there to say anything.
    """

    def __init__(self, *, ended: bool, code: int | None, preempting: bool) -> None:
        self.ended, self.code, self.preempting = ended, code, preempting
        self.interrupted = False
        self._text = b""

    def on_signals(self) -> None:
        """Outlive what ends the training: the last commit must still be told. The end of the lines
        is what ends this process.

        SIGINT may also be the library's, when the run was stopped over there.
        """
        signals.answer(self._on_signal, signals.STOPS)

    def listen(self, seconds: float) -> None:
        """Wait for so long, or until something was said."""
        if self.ended:
            time.sleep(seconds)
        elif select.select([0], [], [], seconds)[0]:
            text = os.read(0, 4096)
            self.ended = not text
            *lines, self._text = (self._text + text).split(b"\n")
            for line in lines:
                self._obey(line.decode(errors="replace").split())

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["preempting"]:
                self.preempting = True
            case ["exit", code]:
                self.code = int(code)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT


class Standing:
    """How the sending stands: `wandb.json` for `xrun status`, and a sentence for people whenever
    that changes."""

    def __init__(self, folder: Path, attempt: str, said: str) -> None:
        self.path, self.attempt = folder / "wandb.json", attempt
        self.state = self.said = said
        self.seen: Key = BEFORE_ALL
        self.url = ""
        self._written: Any = None

    def tell(self, state: str, sentence: str = "") -> None:
        """`sending`, `sent` (all of it), `waiting` (for W&B), `refused` (by it) or `deleted`
        (there)."""
        self.state = state
        step, kind = self.seen
        now = {
            "state": state,
            "url": self.url,
            "sent": None if step < 0 else [step, KINDS[kind]],
            "why": "" if state in ("sending", "sent") else sentence,
            "attempt": self.attempt,
        }
        if now != self._written and not self._is_overtaken():
            self._written = now
            with contextlib.suppress(OSError):  # a full disk, or a folder that somebody has deleted
                write_json(self.path, now)
        if sentence and state != self.said:
            self.said = state
            print(sentence, flush=True)

    def _is_overtaken(self) -> bool:
        """Whether another attempt logs into this folder by now; the file is its own then."""
        logging = (read_json(self.path.with_name("config.json"), dict) or {}).get("attempt")
        return bool(self.attempt) and logging not in (None, self.attempt)
