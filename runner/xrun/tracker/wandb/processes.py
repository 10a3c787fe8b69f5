"""The processes that talk to Weights & Biases, as the entrypoint sees them.

Training never waits for a tracker and never falls with one, so both are processes of their own: the
witness answers one question before an attempt starts, the sender follows the run's log while it
trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ... import environment
from ...signals import STOPS, held_back

DELETED = 3
"""The sender's exit code when the run's id was used once, deleted there, and cannot be used
again."""
_WITNESS_SECONDS = 60.0
_VIEW_SECONDS = 60.0


def start_witness(plan: Path) -> subprocess.Popen[str]:
    """Ask what Weights & Biases knows of the run's last commit; `answer_of` waits for the
    answer."""
    return subprocess.Popen(
        [*environment.PYTHON, "-m", "xrun.tracker.wandb.witness", str(plan)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(),
    )


@dataclass(frozen=True)
class Answer:
    """What the witness knows: the newest commit (`step`, `head`), that there is none (neither), or
    `why` it cannot tell; and `seen`, when the last row was logged, in seconds since 1970."""

    step: int | None = None
    head: str = ""
    why: str = ""
    seen: float = 0.0


def answer_of(witness: subprocess.Popen[str]) -> Answer:
    """Wait for the witness."""
    try:
        lines = witness.communicate(timeout=_WITNESS_SECONDS)[0].splitlines()
        told = json.loads(lines[-1])
        known = (told.get("step"), told.get("head", ""), told.get("why", ""))
        return Answer(*known, seen=float(told.get("seen") or 0.0))
    except subprocess.TimeoutExpired:
        dismiss(witness)
        return Answer(why=f"no answer within {_WITNESS_SECONDS:.0f} s")
    except (IndexError, ValueError):
        return Answer(why=f"asking ended with exit code {witness.returncode}")


@dataclass(frozen=True)
class SweepView:
    """What people see of a sweep: the `parameters` by their dotted keys, and whether each counts in
    factors, beside the `metric`. `entity` is "" for whoever has the key."""

    entity: str
    project: str
    sweep: str
    parameters: Mapping[str, bool]
    metric: str


def save_view(view: SweepView) -> tuple[bool, str]:
    """Save a sweep's view, unless it is there; whether it is, and its address or what has kept
    it from being there."""
    command = [*environment.PYTHON, "-m", "xrun.tracker.wandb.view", json.dumps(asdict(view))]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(),
            timeout=_VIEW_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {_VIEW_SECONDS:.0f} s"
    lines = done.stdout.splitlines() or [f"it ended with exit code {done.returncode}"]
    return done.returncode == 0, lines[-1]


def send_all(folder: Path) -> int:
    """Send everything that waits in a run's folder; returns the sender's exit code, and what it
    says goes to the terminal."""
    command = [*environment.PYTHON, "-m", "xrun.tracker.wandb.sender", str(folder), "--once"]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, env=_environment(), check=False
    ).returncode


def dismiss(witness: subprocess.Popen[str]) -> None:
    """End a witness whose answer nobody needs any more."""
    if witness.returncode is None:
        witness.kill()
        witness.communicate()


class Sender:
    """The sender of one attempt; `say` gets its lines for people, `on_stop` is called when somebody
    stops the run over there."""

    def __init__(
        self, folder: Path, attempt: str, say: Callable[[str], None], on_stop: Callable[[], None]
    ) -> None:
        self.folder, self.say, self.on_stop = folder, say, on_stop
        log = folder / "logs" / attempt / "wandb.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors, held_back(STOPS):
            self.process = subprocess.Popen(
                [*environment.PYTHON, "-m", "xrun.tracker.wandb.sender", str(folder), attempt],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def preempting(self) -> None:
        """Tell that the machine is about to go."""
        self._tell("preempting\n")

    def finish(self, code: int, seconds: float) -> None:
        """Let it send what is left, for `seconds` at most, and end; what is not sent then waits in
        the run's folder."""
        self._tell(f"exit {code}\n")
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()  # type: ignore[union-attr]  # opened as a pipe above
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(1.0)
        self.process.stdout.close()  # type: ignore[union-attr]  # opened as a pipe above
        if self.process.returncode not in (0, DELETED):
            self.say(
                f"Not every point is at Weights & Biases yet; `xrun sync {self.folder.name}` sends"
                " the rest."
            )

    def abandon(self) -> None:
        """End it at once: another attempt has the run, and nothing more of this one counts. What it
        had handed to wandb-core reaches nobody without it."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()  # type: ignore[union-attr]  # opened as a pipe above
        self._reader.join(1.0)
        self.process.stdout.close()  # type: ignore[union-attr]  # likewise

    def is_deleted(self) -> bool:
        """Whether it has ended because the run was deleted over there."""
        return self.process.poll() == DELETED

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it may have ended
            self.process.stdin.write(line)  # type: ignore[union-attr]  # opened as a pipe above
            self.process.stdin.flush()  # type: ignore[union-attr]  # likewise

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.strip() == "stop":
                self.on_stop()
            else:
                self.say(line.rstrip("\n"))


def _environment() -> dict[str, str]:
    own = {environment.PARENT.name: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own}
