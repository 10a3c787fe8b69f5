"""A small project in a folder, the `xrun` command as a real process, and attempts whose ranks are
forked from a warm one.

A rank's life costs seconds of imports, so tests that are not about the command start ranks from a
process that has imported everything already (`Project.attempt`): the entrypoint's code, a real
process per rank, real signals, real files.

What goes wrong in a run is laid out as traps in `trap.json`: the dataset's `collate` counts its
calls in this process and does what the file says, once. The components' sources stay the same, so
the run stays the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xrun import environment as variables
from xrun.machine.nodes import Nodes
from xrun.machine.stop import StopFlag
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder, runs_in
from xrun.run.plan import Plan, make_plan
from xrun.run.points import reproducible
from xrun.supervisor.leading import LeadingNode
from xrun.supervisor.node import FollowingNode

from .paths import SOURCES

STEPS = 20
START = "forkserver"
"""How warm ranks come to be; `fork` where the process that starts them is warm itself."""
_WRITING = threading.Lock()
"""Nodes that share a folder are threads of one process here, and a file is replaced by one process
at a time."""
PER_STEP = 4
"""Micro-batches per step: one process collates so many times."""

RECIPE = """\
name: tiny
model: {name: line}
dataset: {name: points}
task: classification
train:
  steps: 20
  global_batch: 8
  micro_batch: 2
  precision: fp32
  optimizer: {name: adamw, lr: 0.01}
checkpoint: {every: 5 steps, keep: 3}
"""

READS = """\
import json
from pathlib import Path

import torch
from torch import nn

FIRST, LAST = 3, 9


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.calls = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)), 0

    def forward(self, x, y):
        self.look(*divmod(self.calls, CALLS))
        self.calls += 1
        return nn.functional.cross_entropy(self.net(x), y)

    def look(self, step, call):
        if (step, call) == (FIRST, 0):
            self.profile = torch.profiler.profile()
            self.profile.start()
        if (step, call) == (LAST, 0):
            self.profile.stop()
            seen = [e.name for e in self.profile.events() if e.name != ITEM or not e.cpu_parent]
            each = {name: seen.count(name) / (LAST - FIRST) for name in set(seen)}
            Path(__file__).with_name("reads.json").write_text(json.dumps(each))


ITEM = "aten::item"


def build():
    return Watched()
"""
"""A model that counts what torch's profiler sees in a step of `CALLS` calls, by name. Numbers that
a kernel of a processor takes for itself, such as a fused optimizer's, are nobody's reads."""

MODEL = """\
from torch import nn


def build(width: int = 8):
    return nn.Sequential(
        nn.Linear(4, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 3)
    )
"""

FAILING = """
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

BROKEN = Path(__file__).parent.parent / "broken"


class Line(nn.Sequential):
    def save_pretrained(self, folder):
        if BROKEN.exists():
            raise RuntimeError(BROKEN.read_text()) if BROKEN.read_text() else OSError(28, "full")
        save_file(self.state_dict(), Path(folder) / "line.safetensors")


def build(width: int = 8):
    return Line(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 3))
"""
"""A model whose export fails while the project has a file `broken`, with what that says; where it
says nothing, by a full disk."""

COMMITTED = """\
import json, sys, threading, time
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def committed():
    settle()
    files = PROJECT.glob("runs/*/committed.json")
    return max([json.loads(path.read_text())["step"] for path in files], default=-1)


def settle():
    # Wait until no save is on its way. The thread that has committed one deletes old files before
    # it can save again, and a save that is due meanwhile would begin at a later step.
    patience = time.monotonic() + 10
    while is_saving() and time.monotonic() < patience:
        time.sleep(0.001)


def is_saving():
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident) if thread.name.startswith("xrun-checkpoint") else None
        while frame is not None:
            code, frame = frame.f_code, frame.f_back
            if code.co_name == "run" and code.co_filename.endswith("futures/thread.py"):
                return True
    return False


"""
"""Lines of a component: what is committed, once the thread that saves is free."""

DATASET = (
    COMMITTED
    + """\
import faulthandler, os, signal

import torch
from torch.utils.data import default_collate


class Points:
    def __init__(self, name, n, weighted=False):
        generator = torch.Generator().manual_seed(n)
        self.name, self.calls = name, 0
        self.x = torch.randn(n, 4, generator=generator)
        self.y = (self.x.sum(1) > 0).long()
        if weighted:
            self.weights = [1.0 + 9.0 * (i % 2) for i in range(n)]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + 0.01 * torch.randn(4), int(self.y[i])

    def collate(self, items):
        batch = default_collate(items)
        self.calls += 1
        what = spring(self.name, self.calls)
        return (batch[0] * float("nan"), batch[1]) if what == "nan" else batch


def spring(name, calls):
    try:
        trap = json.loads((PROJECT / "trap.json").read_text())
    except FileNotFoundError:
        return ""
    # A save that was due while another one was on its way begins at a later step.
    patience = time.monotonic() + 10
    paced = trap["paced"] and name == "train"
    while paced and committed() < (calls - 1) // 4 // 5 * 5 and time.monotonic() < patience:
        time.sleep(0.002)
    # Once the save of step 0 is committed later ones begin when due, however slow the disk.
    while trap["committed"] > 0 and calls >= trap["call"] // 2 and committed() < 0:
        time.sleep(0.002)
    rank = os.environ.get("RANK", "0")
    here = trap["split"] == name and trap["call"] <= calls and rank == str(trap["rank"])
    if not here:
        return ""
    # What was due while another save was on its way may begin after the next step only: look again
    # there, for nothing is committed while this step waits.
    patience = time.monotonic() + 10
    while committed() < trap["committed"]:
        if time.monotonic() > patience:
            return ""
        time.sleep(0.005)
    if not trap["stays"]:
        (PROJECT / "trap.json").unlink()
    what = trap["do"]
    if what in ("SIGKILL", "SIGSEGV"):
        faulthandler.disable()
        os.kill(os.getpid(), getattr(signal, what))
    if what == "raise":
        raise RuntimeError("the component is broken")
    if what == "hold":
        (PROJECT / "held").write_text(str(os.getpid()))
        flag = signal.getsignal(signal.SIGTERM).__self__
        end = time.monotonic() + 120
        while not flag and not (PROJECT / "go").exists() and time.monotonic() < end:
            time.sleep(0.005)
        if (PROJECT / "go").exists():
            settle()
        (PROJECT / "go").unlink(missing_ok=True)
    return what


def build(n: int = 100, weighted: bool = False):
    return {"train": Points("train", n, weighted), "val": Points("val", 41)}
"""
)


@dataclass(frozen=True)
class Done:
    """How a command or an attempt ended."""

    code: int
    out: str
    err: str


class Project:
    """A project with one recipe, `recipes/tiny.yaml`."""

    def __init__(self, root: Path, recipe: str = RECIPE) -> None:
        self.root = root
        self.write("recipes/tiny.yaml", recipe)
        self.write("models/line.py", MODEL)
        self.write("datasets/points.py", DATASET)
        self.recipe = root / "recipes" / "tiny.yaml"
        self.home = root / "runs"
        (root / "home").mkdir(exist_ok=True)

    def write(self, name: str, text: str) -> Path:
        """A file of the project."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def trap(
        self,
        do: str,
        *,
        call: int,
        split: str = "train",
        rank: int = 0,
        stays: bool = False,
        committed: int = -1,
        paced: bool = False,
    ) -> None:
        """Lay out what happens at the `call`-th collate of `split` in a process, once that step is
        committed: on a slow disk at a later collate.

        `stays`: in every life, not once. `paced`: until then every save is committed before the
        next step, so that the checkpoints lie at the multiples of 5 and nowhere else.
        """
        trap = {
            "do": do,
            "call": call,
            "split": split,
            "rank": rank,
            "stays": stays,
            "committed": committed,
            "paced": paced,
        }
        self.write("trap.json", json.dumps(trap))

    def start(
        self, *arguments: str, environ: Mapping[str, str] = MappingProxyType({}), **options: Any
    ) -> subprocess.Popen[str]:
        """Start the `xrun` command in this project."""
        return start(self.root, *arguments, environ=environ, **options)

    def xrun(
        self,
        *arguments: str,
        environ: Mapping[str, str] = MappingProxyType({}),
        seconds: float = 180,
    ) -> Done:
        """Run the `xrun` command to its end; `environ` goes on top of an empty account's
        environment."""
        return ended(self.start(*arguments, environ=environ), seconds)

    def plan(
        self,
        *overrides: str,
        run: str = "",
        processes: int = 1,
        recipe: str = "tiny",
        fork: str = "",
    ) -> Plan:
        """The plan of the recipe with these overrides."""
        path = self.root / "recipes" / f"{recipe}.yaml"
        loaded = load_recipe(path, overrides)
        return make_plan(
            loaded, path, overrides=overrides, run=run, processes=processes, environ={}, fork=fork
        )

    def attempt(
        self,
        *overrides: str,
        stop: StopFlag | None = None,
        said: io.StringIO | None = None,
        **options: Any,
    ) -> Done:
        """One attempt, its ranks warm; see the module."""
        return attempt(self.plan(*overrides, **options), stop, said=said)

    @property
    def run(self) -> RunFolder:
        """The newest run."""
        return runs_in(self.home)[0]


def start(
    root: Path,
    *arguments: str,
    environ: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> subprocess.Popen[str]:
    """Start the `xrun` command in a project's folder, in a session of its own as a terminal's shell
    does."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root / "home"),
        "PYTHONPATH": SOURCES,
        "OMP_NUM_THREADS": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        **environ,
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    return subprocess.Popen(
        [*variables.PYTHON, "-m", "xrun", *arguments],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        text=True,
        **{**pipes, **options},
    )


def ended(process: subprocess.Popen[str], seconds: float = 180) -> Done:
    """Wait for a started command; hanging ends it and fails."""
    try:
        out, err = process.communicate(timeout=seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Done(process.returncode, out or "", err or "")


def attempt(
    plan: Plan,
    stop: StopFlag | None = None,
    nodes: Nodes | None = None,
    said: io.StringIO | None = None,
) -> Done:
    """One attempt of a plan, or one node's part in it: exit code and what it said, which `said` has
    meanwhile."""
    from xrun.errors import XrunError

    folder = RunFolder(plan.folder)
    with _WRITING:
        folder.write_plan(plan)
    said = io.StringIO() if said is None else said
    stop = StopFlag() if stop is None else stop
    one: WarmFollower | WarmAttempt
    if nodes is not None and nodes.rank:
        one = WarmFollower(plan, stop, nodes)
        one.stream = said
    else:
        one = WarmAttempt(plan, stop, nodes)
        one.progress.stream = said
    try:
        code = one.run()
    except XrunError as error:
        code = error.exit_code
        said.write(f"xrun: {error}\n")
    return Done(code, "", said.getvalue())


def forkserver() -> Any:
    """Where processes come from that have imported torch."""
    context = multiprocessing.get_context(START)
    if START == "fork":
        return context
    context.set_forkserver_preload(
        [
            "xrun.training.build",
            "torch._dynamo",
            "torch._inductor",
            "torch.nn.parallel",
            "support.running",
        ]
    )
    return context


class Warm:
    """A node whose ranks are forked from a process that has imported torch."""

    folder: RunFolder
    _plan_file: Callable[[str], Path]

    def _warm_up(self, attempt: str) -> None:
        """They are warm."""

    def _start_rank(self, attempt: str, environment: dict[str, str], log: Path) -> Any:
        environment = os.environ | environment | {"OMP_NUM_THREADS": "1"}
        arguments = (environment, str(log), str(self._plan_file(attempt)), attempt)
        return WarmRank(forkserver().Process(target=_rank, args=arguments))


class WarmAttempt(Warm, LeadingNode):
    """An attempt, on node 0."""


class WarmFollower(Warm, FollowingNode):
    """Another node."""

    stream: Any = sys.stderr

    def say(self, text: str) -> None:
        """A line for people."""
        print(text, file=self.stream, flush=True)


class WarmRank:
    """The part of subprocess.Popen that an attempt uses."""

    def __init__(self, process: Any) -> None:
        self.process = process
        process.start()
        self.pid = process.pid

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        """Likewise."""
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """A real signal."""
        if self.process.exitcode is None:
            os.kill(self.pid, number)


def _rank(environment: dict[str, str], log: str, plan: str, attempt_id: str) -> None:
    os.environ.clear()
    os.environ.update(environment | {variables.PARENT.name: str(os.getppid())})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    from xrun.training.rank import main

    multiprocessing.set_start_method(
        "fork", force=True
    )  # as in a rank that was not started by multiprocessing
    code = main(plan, attempt_id)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def until(happened: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Wait for a condition, and fail with its name when it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {seconds:g} s")


def weights(run: RunFolder) -> str:
    """SHA-256 of the final weights' file."""
    return hashlib.sha256((run.model / "model.safetensors").read_bytes()).hexdigest()


def curve(run: RunFolder) -> dict[int, dict[str, Any]]:
    """Every point of training by its step, without what tells of clock and machine; a step that is
    there twice fails."""
    points = [point for point in run.points() if "train/loss" in point]
    by_step = {point["step"]: reproducible(point) for point in points}
    assert len(by_step) == len(points), "a step was logged twice"
    return by_step


def steps_of(run: RunFolder) -> list[int]:
    """The committed checkpoints' steps."""
    return sorted(run.report().checkpoints)


def processes_of(folder: Path) -> list[int]:
    """Living processes that have the folder in their command line or in the environment that ranks
    get."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(folder).encode() in text and state != "Z" and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def children(pid: int) -> list[int]:
    """The living children of a process."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def copy(project: Project, to: Path) -> Project:
    """The same project with its runs in another folder; only the runs' plans know where they
    were."""
    shutil.copytree(project.root, to)
    return Project(to)


def commits(run: RunFolder) -> list[Path]:
    """The commit files, oldest first."""
    return sorted((run.state / "commits").glob("*.json"))


def record(run: RunFolder) -> dict[str, Any]:
    """What is committed now."""
    head = run.head()
    assert head is not None
    return head.record


def one_line(text: str) -> bool:
    """One sentence for a person: a line, and no traceback."""
    return "Traceback" not in text and len(text.strip().splitlines()) == 1


def reasons(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why attempts ended."""
    return [str(line.get("reason", "")) for line in lines]
