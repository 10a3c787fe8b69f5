"""Every environment variable of xrun's own: its name, what it says, and what holds where nobody
sets it.

A person may set those of the first part. Those of the second part are how one process of xrun tells
another one, which it has started, what it needs to know; a recipe's `env` can set none of them.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "XRUN_"
COMPLETE = "_XRUN_COMPLETE"
"""click's, in which a shell asks for what may follow; nobody sets it by hand."""
PYTHON = (sys.executable, "-P")
"""How every Python process that xrun starts begins. `-P`: without it `python -m` looks for modules
in the working directory before the standard library, so that a project's `random.py` would break
torch, and a `json.py` in a stranger's folder would be run with the keys in its environment."""


@dataclass(frozen=True)
class Variable:
    """One variable. `default` is the value that holds without it; "" where there is none."""

    name: str
    meaning: str
    default: str = ""

    def of(self, environ: Mapping[str, str] | None = None) -> str:
        """What it says, here or in this environment; one that is set to nothing is not set."""
        return (os.environ if environ is None else environ).get(self.name) or self.default


# What a person may set.
HOME = Variable(
    "XRUN_HOME", "The folder that holds the runs' folders. Default: `runs/` of the project."
)
HUB_SPACING = Variable("XRUN_HUB_SPACING", "Seconds between two commits to a Hub.", "30")
HUB_HOURLY = Variable("XRUN_HUB_HOURLY", "Commits in an hour to a Hub.", "100")
HUB_PATIENCE = Variable(
    "XRUN_HUB_PATIENCE", "How long, in seconds, a request that a Hub refuses is tried again.", "300"
)
BUCKET_PATIENCE = Variable(
    "XRUN_BUCKET_PATIENCE",
    "How long, in seconds, a request that a bucket refuses is tried again.",
    "300",
)
HANG_SECONDS = Variable("XRUN_HANG_SECONDS", "Seconds without a step that count as a hang.", "600")
METADATA_ADDRESS = Variable(
    "XRUN_METADATA_ADDRESS", "The address of the cloud's metadata server.", "http://169.254.169.254"
)
NOTICE_FILE = Variable(
    "XRUN_NOTICE_FILE",
    "The file in which a cloud says that it takes the machine away (Mithril).",
    "/opt/mithril/MITHRIL_SIGNAL.yml",
)
PORT = Variable(
    "XRUN_PORT",
    "The port of the first node at which a run's nodes meet. Default: one that follows from the"
    " job's or the run's id.",
)
WANDB_CHECK = Variable(
    "XRUN_WANDB_CHECK", "Seconds between two checks of what has arrived in Weights & Biases.", "30"
)

CONFIRMED = Variable(
    "XRUN_CONFIRMED_SECONDS",
    "How long, in seconds, an attempt may send to Weights & Biases after the store has confirmed"
    " that the run is its own.",
    "30",
)

FOR_PEOPLE = {value.name for value in list(vars().values()) if isinstance(value, Variable)}
"""The names of those above."""

# What one process tells another.
ALERTS = Variable(
    "XRUN_ALERTS", "Who is told of what, as JSON: the recipe's `alerts`, for who starts machines."
)
ARRIVED = Variable(
    "XRUN_ARRIVED", "When the job's script began on this machine, in seconds since 1970."
)
BARREN = Variable(
    "XRUN_BARREN",
    "Hours and dollars of the machines on which no attempt has begun since the one before, as JSON;"
    " told by xrun's plugin in SkyPilot.",
    "{}",
)
BEGUN = Variable(
    "XRUN_BEGUN", "The file that an attempt makes once the run is its own, for the job's script."
)
EPOCH = Variable(
    "XRUN_EPOCH",
    "Seconds from 1970 to the start of this machine, as its clock said when the attempt began.",
)
HEARTBEAT = Variable("XRUN_HEARTBEAT", "The file in which a rank counts its steps.")
LOCK = Variable("XRUN_LOCK", "The file with the lock of a run that is made again.")
LAST_WORDS = Variable(
    "XRUN_LAST_WORDS", "The file for the sentence that an attempt ends with, which it also prints."
)
LEAVE_AT = Variable(
    "XRUN_LEAVE_AT",
    "When the attempt is to save and leave these machines for others, in seconds since 1970; told"
    " by xrun's plugin in SkyPilot.",
)
PARENT = Variable("XRUN_PARENT", "The process whose death ends this one.")
PARTS = Variable(
    "XRUN_PARTS",
    "The number of parts in which a rank computes a micro-batch. Default: the last that worked.",
)
PRICES = Variable(
    "XRUN_PRICES",
    "The file with the prices that the launcher saw, or they themselves: a JSON list.",
    "[]",
)
PROJECT = Variable("XRUN_PROJECT", "The project whose components are imported first.")
STAY = Variable(
    "XRUN_STAY",
    "What an attempt that knows its own speed decides by when to leave its machines, as JSON; told"
    " by xrun's plugin in SkyPilot.",
)
STOP = Variable("XRUN_STOP", "The file in which the reason and the deadline of a stop are told.")


def name_the_user() -> None:
    """For a user without a name, who is only a number as in containers: libraries ask for one, and
    for a home."""
    os.environ.setdefault("LOGNAME", user_name())
    os.environ.setdefault("HOME", os.path.expanduser("~").replace("~", "/"))


def cache_folder() -> Path:
    """Where what can be made again is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "xrun"


def user_name() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


ALL = [value for value in list(vars().values()) if isinstance(value, Variable)]
