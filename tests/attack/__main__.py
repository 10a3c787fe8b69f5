"""`python -m attack`: tries for so many minutes, or one by its seed. Exits 1 if one went wrong.

Each try that goes wrong is one line, with the command that repeats it; its folder is kept.
"""

from __future__ import annotations

import os

# Before torch: a try is one thread's work, and a process with threads cannot be forked well.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.tensor
import torch.nn.parallel

import xrun.training.build  # noqa: F401  every try needs it
from support import running

from .mix import KINDS
from .pool import Outcome, Try, outcomes, to_json
from .started import SHARED

FOUND = Path(__file__).with_name("found.json")
"""Cases that went wrong once: `make test` plays them again."""


def main() -> int:
    """The command."""
    told = _arguments()
    if told.drawn:
        print(json.dumps(vars(Try(told.seed, told.kind or "").drawn())))
        return 0
    torch.set_num_threads(1)
    running.START = "fork"
    for name in [name for name in os.environ if name.startswith(("XRUN_", "WANDB_", "HF_TOKEN"))]:
        del os.environ[name]
    folder = Path(told.folder or tempfile.mkdtemp(prefix="xrun-attack-", dir=_memory()))
    os.environ.setdefault(SHARED, str(folder))
    until = time.monotonic() + 60 * told.minutes
    counts, seconds = Counter[str](), Counter[str]()
    wrong: list[Outcome] = []
    for outcome in outcomes(_tries(told), told.workers, folder, until):
        counts[outcome.kind] += 1
        seconds[outcome.kind] += outcome.seconds
        if outcome.wrong:
            wrong.append(outcome)
            print(_line(outcome), flush=True)
    (folder / "wrong.json").write_text(json.dumps([to_json(each) for each in wrong], indent=1))
    print(_summary(counts, seconds, wrong, folder))
    return int(bool(wrong))


def _memory() -> str | None:
    """Where a synced file costs nothing, if there is such a place: the damage is done by hand."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="only this try")
    parser.add_argument("--first", type=int, help="the first seed (default: by the clock)")
    parser.add_argument("--tries", type=int, help="at most so many")
    parser.add_argument("--kind", choices=KINDS, help="only tries of this kind")
    parser.add_argument("--cases", type=Path, help="these cases, from a file as found.json")
    parser.add_argument("--found", action="store_const", const=FOUND, dest="cases")
    parser.add_argument("--drawn", action="store_true", help="only print what --seed draws")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", help="where the tries that went wrong are kept")
    return parser.parse_args()


def _tries(told: argparse.Namespace) -> Iterable[Try]:
    if told.cases:
        found = json.loads(told.cases.read_text())
        return [Try(number, each["kind"], each["case"]) for number, each in enumerate(found)]
    if told.seed is not None:
        return [Try(told.seed, told.kind or "")]
    first = int(time.time()) if told.first is None else told.first
    print(f"Seeds from {first} on.", flush=True)
    return itertools.islice(_seeds(first, told.kind or ""), told.tries)


def _seeds(first: int, kind: str) -> Iterator[Try]:
    return (Try(seed, kind) for seed in itertools.count(first))


def _line(outcome: Outcome) -> str:
    again = f"make attack SEED={outcome.seed} KIND={outcome.kind}"
    return f"{outcome.kind}: {outcome.wrong} -- {again} ({outcome.folder})"


def _summary(
    counts: Counter[str], seconds: Counter[str], wrong: list[Outcome], folder: Path
) -> str:
    bad = Counter(outcome.kind for outcome in wrong)
    rows = [
        f"{name:>8} {counts[name]:6} tries {seconds[name]:8.0f} s {bad[name]:4} wrong   {kind.what}"
        for name, kind in KINDS.items()
    ]
    rows.append(f"{counts.total()} tries, {len(wrong)} wrong.")
    return "\n".join([*rows, f"What went wrong is kept in {folder}."] if wrong else rows)


if __name__ == "__main__":
    sys.exit(main())
