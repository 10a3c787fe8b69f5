"""One node's part in an attempt: its ranks, what it tells the other nodes, and what it hears from
them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .. import environment
from ..errors import EX_TEMPFAIL
from ..files import write_bytes
from ..machine.nodes import Nodes, meeting_port, place_of
from ..machine.stop import NOBODY_ASKED, StopFlag
from ..run import logs
from ..run.folder import RunFolder
from ..run.plan import Plan
from ..signals import OF_TERMINALS, held_back
from .ranks import Ranks, rank_environment
from .rendezvous import MEETING_SECONDS, Follower, Leader, Message

END_SECONDS = 120.0
"""How long node 0 may take to record the end; it tells the others after that."""
TELL_SECONDS = 60.0
"""How often node 0 is told what the processes of another node print."""

_AGAIN_SECONDS = 0.5
"""Between two tries to meet a node 0 that has hung up."""


class Node:
    """What every node does: start its ranks, tell the other nodes what happens here, hear what
    happens there."""

    peers: Leader | Follower

    def __init__(self, plan: Plan, stop: StopFlag, nodes: Nodes) -> None:
        self.plan, self.stop, self.nodes = plan, stop, nodes
        self.folder = RunFolder(plan.folder)
        self.last_words = ""
        """The sentence that the attempt has ended with, where it has failed."""
        self._known = NOBODY_ASKED
        self._warm: list[subprocess.Popen[bytes]] = []
        """Ranks that have been started ahead and wait."""

    def run(self) -> int:
        """Live, and hear meanwhile what the cloud has to say of this machine; returns the exit
        code."""
        if not (cloud := place_of(os.environ).cloud):
            return self._live()
        from ..machine.notice import watching  # an HTTP client, which only machines of clouds need

        with watching(self.stop, cloud, os.environ, say=self.say):
            return self._live()

    def _live(self) -> int:
        raise NotImplementedError

    def say(self, text: str) -> None:
        """A line for people."""
        print(text, file=sys.stderr, flush=True)

    def _start(self, attempt: str, port: int, parts: int) -> Ranks:
        """This node's ranks, which meet at this port of the first node; each computes a micro-batch
        in so many parts, or what was right before if that is 0."""
        folder = self.folder.logs(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        start = functools.partial(self._start_rank, attempt)
        more = {environment.PARTS.name: str(parts)} if parts else {}
        return Ranks(self.plan, self.nodes, folder, self.stop, port, start, more)

    def _warm_up(self, attempt: str) -> None:
        """Start the ranks of an attempt that has no lease yet: importing torch takes seconds."""
        folder = self.folder.logs(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        for local, rank in enumerate(self.nodes.ranks):
            own = rank_environment(self.plan, self.nodes, local, 0)
            self._warm.append(self._new_rank(attempt, own, folder / f"rank{rank}.log", "--wait"))

    def _cool_down(self, attempt: str) -> None:
        """End the ranks that nobody needs."""
        if not self._warm:
            return
        while self._warm:
            rank = self._warm.pop()
            rank.kill()
            rank.communicate()
        shutil.rmtree(self.folder.logs(attempt), ignore_errors=True)

    def _start_rank(self, attempt: str, own: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        if not self._warm:
            return self._new_rank(attempt, own, log)
        rank = self._warm.pop(0)
        # A pipe that is broken is that of a rank that has ended, which its exit code will tell.
        with contextlib.suppress(BrokenPipeError):
            assert rank.stdin is not None
            rank.stdin.write(json.dumps(own).encode() + b"\n")
            rank.stdin.close()
        return rank

    def _new_rank(
        self, attempt: str, own: dict[str, str], log: Path, *how: str
    ) -> subprocess.Popen[bytes]:
        arguments = [str(self._plan_file(attempt)), attempt, *how]
        with log.open("ab") as output, held_back(OF_TERMINALS):
            return subprocess.Popen(
                [*environment.PYTHON, "-m", "xrun.training.rank", *arguments],
                env={**os.environ, **own},
                cwd=self._project(),
                stdin=subprocess.PIPE if how else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _project(self) -> str | None:
        """Where relative paths of a recipe begin, wherever the command was typed."""
        return self.plan.project if os.path.isdir(self.plan.project) else None

    def _plan_file(self, attempt: str) -> Path:
        """This node's own copy of the plan: the run's may be replaced by another command."""
        path = self.folder.logs(attempt) / f"plan-{self.nodes.rank}.json"
        if not path.exists():
            write_bytes(path, self.plan.to_json().encode(), private=True)
        return path

    def _look(self, ranks: Ranks | None = None) -> None:
        """Many times a second: what has been asked, here or elsewhere, and what has failed."""
        for message in self.peers.heard():
            self._hear(message, ranks)
        if self.stop.is_news(self._known):
            first = self._known == NOBODY_ASKED
            self._known = self.stop.deadline, self.stop.at_once
            left, at_once = self.stop.seconds_left(), self.stop.at_once
            self.peers.tell("stop", reason=self.stop.reason, seconds=left, at_once=at_once)
            if first:
                self._announce(saves=ranks is not None and not ranks.starting)

    def _announce(self, saves: bool) -> None:
        self.say(f"{self.stop.reason}: {'saving, then ' if saves else ''}stopping.")

    def _hear(self, message: Message, ranks: Ranks | None) -> None:
        if message["kind"] == "stop":
            self.stop.set(message["reason"], message["seconds"], message["at_once"])
        elif message.get("code") and ranks is not None:
            ranks.fail()


class FollowingNode(Node):
    """Any node but the first: its ranks start when node 0 says so, and it leaves the last word to
    node 0."""

    peers: Follower

    def __init__(self, plan: Plan, stop: StopFlag, nodes: Nodes) -> None:
        super().__init__(plan, stop, nodes)
        self.peers = Follower(nodes, plan.run, meeting_port(plan.run, os.environ))
        self._code = EX_TEMPFAIL
        self._waiting: list[Message] = []
        self._told = -TELL_SECONDS
        """When node 0 was last told what is printed here."""

    def _live(self) -> int:
        """Until node 0 says how the attempt has ended, or is gone.

        What node 0 has heard and recorded, its own code says; a second one beside it could only
        contradict. Where it is gone nobody has recorded an end, so the job has to come back.
        """
        self.say(f"This is {self.nodes.name(self.nodes.rank)}; {self.nodes.name(0)} leads.")
        began, until = False, time.monotonic() + MEETING_SECONDS
        try:
            self._meet()
            while message := self._message(END_SECONDS if began else until - time.monotonic()):
                if message["kind"] == "start":
                    began = True
                    self._train(message)
                elif message["kind"] == "end":
                    return 0
                elif began:
                    break
                else:
                    time.sleep(_AGAIN_SECONDS)
                    self._meet()  # node 0 was started again, or it is that of another run
            return EX_TEMPFAIL if self._code else 0
        finally:
            self.peers.close()

    def _meet(self) -> None:
        self.peers.meet(lambda: bool(self.stop))
        self._known = NOBODY_ASKED  # node 0 has yet to hear of a stop that was asked for before

    def _message(self, seconds: float) -> Message | None:
        """The next thing that node 0 says and that matters now; None if there is none for so long,
        or time is up here."""
        deadline = time.monotonic() + seconds
        while not self._waiting and time.monotonic() < deadline and self.stop.seconds_left() > 0:
            if message := self.peers.wait(0.2):
                self._hear(message, None)
            self._look()
        return self._waiting.pop(0) if self._waiting else None

    def _hear(self, message: Message, ranks: Ranks | None) -> None:
        if message["kind"] in ("start", "end", "lost"):
            self._waiting.append(message)
        if message["kind"] == "lost":
            message = {**message, "code": EX_TEMPFAIL}
        super()._hear(message, ranks)

    def _train(self, start: Message) -> None:
        ranks = self._start(start["attempt"], start["port"], start["parts"])
        ranks.wait(functools.partial(self._tell_printed, start["attempt"], ranks))
        outcome = ranks.outcome()
        self._code = outcome.code
        self.peers.tell("ended", **outcome.to_json(), printed=self._printed(start["attempt"]))

    def _tell_printed(self, attempt: str, ranks: Ranks) -> None:
        """While the ranks train: node 0 keeps what they have printed, in case this node goes."""
        self._look(ranks)
        if time.monotonic() < self._told + TELL_SECONDS:
            return
        if printed := self._printed(attempt):
            self.peers.tell("printed", printed=printed)
            self._told = time.monotonic()

    def _printed(self, attempt: str) -> dict[str, str]:
        return logs.told(self.folder.logs(attempt), self.nodes.ranks)
