"""Tries that send signals to the processes of a run at any moment: the command, its entrypoint, its
rank, or all at once. The same command again ends with the right bits."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from support.running import Project, WarmAttempt, children, curve, weights
from xrun import environment
from xrun.errors import Stopped, XrunError
from xrun.launcher.local import LocalCloud
from xrun.machine.stop import StopFlag, end_with_parent
from xrun.run.plan import Plan

from .lives import Wrong, has_traceback, last_line
from .started import started

Case = dict[str, Any]
SIGNALS = (
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
    "SIGKILL",
    "SIGKILL",
    "SIGSTOP",
    "SIGSEGV",
    "SIGPIPE",
    "SIGCHLD",
    "SIGWINCH",
)
WHO = ("command", "entrypoint", "rank", "group")
ENDS = (0, 75, 7)
"""What the command may end with: finished, stopped, given up after too many crashes."""
LONGEST = 60.0
FREEZE_SECONDS = 0.2


def draw(dice: random.Random) -> Case:
    """Lives, each with signals at moments: `[[seconds, who, signal], ...]`."""
    lives = [
        sorted(
            [dice.uniform(0, 1.2), dice.choice(WHO), dice.choice(SIGNALS)]
            for _ in range(dice.choice([1, 1, 2]))
        )
        for _ in range(dice.choice([1, 2]))
    ]
    return {"lives": lives, "cold": False}


def cold(dice: random.Random) -> Case:
    """The same with the real command, most of whose time is its start."""
    case = draw(dice)
    spread = [
        [[seconds * 6, who, number] for seconds, who, number in life] for life in case["lives"][:1]
    ]
    return {"lives": spread, "cold": True}


def play(case: Case, folder: Path) -> None:
    """Disturb it, then let it end.

    Raises:
        Wrong: a bug's exit code, a traceback, a process that stays, other bits.
    """
    begun = started()
    project = begun.copied("killed", folder)
    for number, life in enumerate([*case["lives"], [], []]):
        code, said = _life(project, life, case["cold"])
        _check(code, said, life)
        if number >= len(case["lives"]) and code == 0:
            break
    else:
        raise Wrong(f"undisturbed it ends with {code}: {last_line(said)}")
    if weights(project.run) != begun.right[0]:
        raise Wrong("other final weights")
    if curve(project.run) != begun.right[1]:
        raise Wrong("other points")


def _check(code: int, said: str, life: list[Any]) -> None:
    to_it = {-getattr(signal, number) for _, who, number in life if who in ("command", "group")}
    if has_traceback(said):
        raise Wrong(f"the command prints a traceback: {last_line(said)}")
    if code not in ENDS and code not in to_it:
        raise Wrong(f"the command ends with {code}: {last_line(said)}")
    if not life and code not in (0, 75):
        raise Wrong(f"undisturbed it ends with {code}: {last_line(said)}")


def _life(project: Project, life: list[Any], is_cold: bool) -> tuple[int, str]:
    log = project.root / "said.txt"
    start = log.stat().st_size if log.exists() else 0
    process = _cold(project, log) if is_cold else _warm(project, log)
    began, waiting = time.monotonic(), list(life)
    while process.exitcode is None and time.monotonic() - began < LONGEST:
        if waiting and time.monotonic() - began >= waiting[0][0]:
            _, who, number = waiting.pop(0)
            _send(process.pid, who, getattr(signal, number))
        time.sleep(0.005)
    if process.exitcode is None:
        raise Wrong(f"the command is not over after {LONGEST:.0f} s")
    _gone(project)
    with log.open(errors="replace") as file:
        file.seek(start)
        return process.exitcode, file.read()


def _gone(project: Project) -> None:
    """Whoever belonged to it follows it."""
    from support.running import processes_of

    end = time.monotonic() + 15
    while left := [
        pid for pid in (*processes_of(project.root), *_ranks_of(project)) if pid != os.getpid()
    ]:
        if time.monotonic() > end:
            raise Wrong(f"the processes {left} outlive the command")
        time.sleep(0.02)


def _ranks_of(project: Project) -> list[int]:
    """Warm ones have this process's command line and session, and the run's log open."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            output = os.readlink(path / "fd" / "1")
            own = output.startswith(str(project.root)) and int(session) != os.getsid(0)
            if own and state != "Z":
                found.append(int(path.name))
    return found


def _send(command: int, who: str, number: signal.Signals) -> None:
    entrypoints = children(command)
    ranks = [rank for entrypoint in entrypoints for rank in children(entrypoint)]
    whom = {"command": [command], "entrypoint": entrypoints, "rank": ranks}.get(who)
    for pid in [command, *entrypoints, *ranks] if whom is None else whom:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if number == signal.SIGSTOP:
        time.sleep(FREEZE_SECONDS)
        for pid in [command, *entrypoints, *ranks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class _Started:
    """A process by its pid, in a session of its own."""

    def __init__(self, popen: Any) -> None:
        self.popen, self.pid = popen, popen.pid

    @property
    def exitcode(self) -> int | None:
        return self.popen.poll()


def _cold(project: Project, log: Path) -> Any:
    file = log.open("ab")
    started = project.start(
        "run", "recipes/tiny.yaml", "--local", "--yes", stdout=file, stderr=file
    )
    file.close()
    return _Started(started)


def _warm(project: Project, log: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_command, args=(project, log))
    process.start()
    return process


def _command(project: Project, log: Path) -> None:
    """What `xrun RECIPE` does once it has its plan, in a process that has imported everything."""
    os.setsid()
    _into(log)
    try:
        code = _Warm().run(project.plan())
    except XrunError as error:
        print(f"xrun: {error}", file=sys.stderr)
        code = error.exit_code
    os._exit(code)


class _Warm(LocalCloud):
    """Attempts as forks of this process."""

    def _attempt(self, path: Path) -> int:
        parent = os.getpid()
        process = multiprocessing.get_context("fork").Process(
            target=_entrypoint, args=(path, parent)
        )
        process.start()
        child: Any = _Child(process)
        self._child = child
        if self._asked:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        if code >= 0:
            return code
        self._crashes += 1
        return 75 if self._crashes < 20 else 1


class _Child:
    """The part of Popen that a LocalCloud uses."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


def _entrypoint(path: Path, parent: int) -> None:
    """`xrun.supervisor.entrypoint.main`, with warm ranks."""
    os.environ[environment.PARENT.name] = str(parent)
    end_with_parent(signal.SIGTERM)
    stop = StopFlag()
    stop.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        code = WarmAttempt(Plan.from_json(path.read_text()), stop).run()
    except XrunError as error:
        print(f"xrun: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except Stopped:
        code = Stopped.exit_code
    os._exit(code)


def _into(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
