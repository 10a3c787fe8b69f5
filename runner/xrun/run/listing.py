"""What `xrun status WHERE` lists: the run at an address, or every run of a folder, a bucket's
prefix or an account of the Hub.

Of each run it asks for the head alone, several at a time: two requests far away.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ..errors import LaunchError, XrunError
from ..store.address import Address
from ..store.protocol import Head
from .folder import SWEEP, RunFolder, home_here, runs_in
from .opened import OpenedRun, is_run_id, located, open_run, parse
from .plan import Plan
from .record import RunRecord
from .report import RunReport
from .stores import is_board, open_place, open_store

AT_ONCE = 8
"""So many runs are asked for at a time."""
SILENCE_SECONDS = 2.0
"""So long nobody waits for stores of which none answers."""
OWN = "me"
"""The account of the token that is here."""


def list_runs(where: str, *, environ: Mapping[str, str] = os.environ) -> list[RunReport]:
    """The runs at a place, by their names; one that cannot be read is described by its error.

    Raises:
        LaunchError: there is no such place, or this account may not look.
        StoreError: the store refuses, or nobody can tell now.
    """
    if where.startswith("hub://") and "/" not in where.removeprefix("hub://").rstrip("/"):
        return _of_account(where.removeprefix("hub://").rstrip("/"), environ)
    if not is_run_id(where):
        address = parse(where, environ)
        if address.in_bucket:
            return _in_bucket(address, environ)
        if not address.durable and (inside := _folders_in(Path(address.name))) is not None:
            return of_folders(inside, metrics=False)
    return [open_run(where, environ=environ).report(time.time())]


def boards_at(where: str, *, environ: Mapping[str, str] = os.environ) -> list[Head]:
    """What the boards of the sweeps at a place say, "" being this project; one that cannot be read
    now is left out. Raises as `list_runs`."""
    if where.startswith("hub://") and "/" not in where.removeprefix("hub://").rstrip("/"):
        return _boards(_names_of(where.removeprefix("hub://").rstrip("/")), environ)
    if where and is_run_id(where):
        return []
    address = parse(where or str(home_here(environ)), environ)
    if address.in_bucket:
        return _boards(_below(address, environ), environ)
    if address.durable:
        return []
    return boards_of(_folders_in(Path(address.name)) or [])


def board_at(where: str, *, environ: Mapping[str, str] = os.environ) -> tuple[Head, str] | None:
    """What the board of a sweep says that lies at this address, or is a sweep's id in this project,
    and the place where its trials are; None if there is none. Raises XrunError."""
    if not SWEEP.search(where.rstrip("/")):
        return None
    here = is_run_id(where)
    address = parse(str(home_here(environ) / where) if here else where, environ)
    if not address.durable and not (Path(address.name) / "state" / "commits").is_dir():
        return None
    place, _ = located(str(address) if address.durable else address.name, environ)
    head = open_place(place, "reader", create=False, environ=environ).head()
    if head is None or not is_board(head.record):
        return None
    above = str(address).rpartition("/")[0] if address.durable else str(Path(address.name).parent)
    return head, "" if above == str(home_here(environ)) else above


def sweeps_of(reports: Sequence[RunReport]) -> dict[str, str]:
    """Of the runs whose folders are here the sweep that each was last started by, by the run."""
    folders = (RunFolder(Path(report.folder)) for report in reports if "://" not in report.folder)
    plans = {folder.run: _plan_of(folder) for folder in folders if folder.plan_file.exists()}
    return {run: plan.sweep for run, plan in plans.items() if plan is not None and plan.sweep}


def boards_of(folders: Sequence[RunFolder]) -> list[Head]:
    """What the boards say of the sweeps whose trials lie in these folders."""
    plans = {}
    for folder in folders:
        if (plan := _plan_of(folder)) is not None and plan.sweep:
            plans[plan.sweep] = replace(plan, run=plan.sweep, home=str(folder.path.parent))
    found = []
    for plan in plans.values():
        with contextlib.suppress(XrunError):
            found.append(open_store(plan, "reader", create=False).head())
    return [head for head in found if head is not None and is_board(head.record)]


def _boards(addresses: Sequence[Address], environ: Mapping[str, str]) -> list[Head]:
    found = []
    for address in addresses:
        if SWEEP.search(address.name):
            with contextlib.suppress(XrunError):
                place, _ = located(str(address), environ)
                found.append(open_place(place, "reader", create=False, environ=environ).head())
    return [head for head in found if head is not None and is_board(head.record)]


def of_folders(
    folders: Sequence[RunFolder], *, metrics: bool, silence: float = SILENCE_SECONDS
) -> list[RunReport]:
    """The runs in these folders, in their order. Stores far away are asked side by side; once none
    has answered for `silence` seconds, the runs that are left count as out of reach."""
    plans = [_plan_of(folder) for folder in folders]
    found: dict[int, RunReport] = {}
    far: dict[str, queue.SimpleQueue[int]] = {}
    for number, plan in enumerate(plans):
        if plan is not None and plan.address.durable:
            far.setdefault(plan.address.kind, queue.SimpleQueue()).put(number)
    answers: queue.Queue[tuple[int, RunReport]] = queue.Queue()

    def ask(waiting: queue.SimpleQueue[int]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number = waiting.get_nowait()
                told = folders[number].describe(metrics=metrics, plan=plans[number])
                answers.put((number, told))

    for kind, waiting in far.items():
        first = next(each for each in plans if each and each.address.kind == kind)
        with contextlib.suppress(XrunError):
            open_store(first, "reader", create=False)  # its library's import is nobody's silence
        for _ in range(min(AT_ONCE, waiting.qsize())):
            # Nobody waits for one that is still asking when the command is done.
            threading.Thread(target=ask, args=(waiting,), daemon=True).start()
    for number, (folder, plan) in enumerate(zip(folders, plans, strict=True)):
        if plan is None or not plan.address.durable:
            found[number] = folder.describe(metrics=metrics, plan=plan)
    with contextlib.suppress(queue.Empty):
        while len(found) < len(folders):
            number, report = answers.get(timeout=silence)
            found[number] = report
    for number, plan in enumerate(plans):
        if number not in found and plan is not None:
            found[number] = _out_of_reach(folders[number], plan, silence)
    return [found[number] for number in range(len(folders))]


def _plan_of(folder: RunFolder) -> Plan | None:
    """None where it cannot be read, which the run's own report tells."""
    try:
        return folder.plan()
    except XrunError:
        return None


def _out_of_reach(folder: RunFolder, plan: Plan, silence: float) -> RunReport:
    why = (
        f"{plan.place} does not answer within {silence:g} s; `xrun report {folder.run}` waits"
        " longer."
    )
    return RunReport(folder.run, str(folder.path), "unreachable", error=why)


def _folders_in(path: Path) -> list[RunFolder] | None:
    """The runs in a folder of runs, or in that of a project; None if it is a run itself, or not
    there."""
    if not path.is_dir() or any((path / own).exists() for own in ("plan.json", "state", "commits")):
        return None
    return runs_in(path) or runs_in(path / "runs")


def _in_bucket(address: Address, environ: Mapping[str, str]) -> list[RunReport]:
    places = _below(address, environ)
    if any(each.name == f"{address.name}/commits" for each in places):
        return [open_run(str(address), environ=environ).report(time.time())]
    return _described(places, environ)


def _below(address: Address, environ: Mapping[str, str]) -> list[Address]:
    """Whatever lies below a bucket's prefix."""
    from ..libraries import BUCKET, require

    require(BUCKET)
    from ..store.bucket.client import BucketClient
    from ..store.bucket.store import READERS_PATIENCE

    client = BucketClient(address, environ=environ, patience=READERS_PATIENCE)
    return [replace(address, name=f"{address.name}/{name}") for name in client.folders()]


def _of_account(name: str, environ: Mapping[str, str]) -> list[RunReport]:
    return _described(_names_of(name), environ)


def _names_of(name: str) -> list[Address]:
    """The repositories of an account of the Hub.

    Raises:
        LaunchError: it has none that this account may see.
    """
    owner, found = _repositories("" if name == OWN else name)
    if not found:
        what = f"{owner} has no repositories on the Hub that this account may see."
        raise LaunchError(what, "Check the spelling; private ones need a token (`hf auth login`).")
    return found


def _repositories(owner: str) -> tuple[str, list[Address]]:
    from ..libraries import HUB, require

    require(HUB)
    from ..store.hub.client import repositories_of

    owner, names = repositories_of(owner)
    return owner, [Address("hub", each) for each in names]


def addresses_beside(plan: Plan, environ: Mapping[str, str] = os.environ) -> list[Address]:
    """Where the runs may be that lie at the same place as a plan's: in its bucket's prefix, or in
    the account that its repository belongs to; none where its state is on this machine only.

    Raises:
        LaunchError: this account may not look.
        StoreError: the store refuses, or nobody can tell now.
    """
    address = plan.address
    if address.in_bucket:
        return _below(address, environ)
    if not address.on_hub:
        return []
    return _repositories(address.name.partition("/")[0])[1]


def _described(addresses: Sequence[Address], environ: Mapping[str, str]) -> list[RunReport]:
    def described(address: Address) -> RunReport | None:
        return _described_one(address, environ)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(described, addresses))
    return [each for each in found if each is not None]


def _described_one(address: Address, environ: Mapping[str, str]) -> RunReport | None:
    """What the head says; None where there is no run, or the board of a sweep."""
    try:
        run = run_at(address, environ)
        return run.report(time.time(), metrics=False) if run else None
    except XrunError as error:
        return RunReport(str(address), str(address), "unreadable", error=str(error))


def run_at(address: Address, environ: Mapping[str, str] = os.environ) -> OpenedRun | None:
    """The run whose state is there; None where there is none, or the board of a sweep. Raises
    XrunError."""
    place, _ = located(str(address), environ)
    store = open_place(place, "reader", create=False, environ=environ)
    if (head := store.head()) is None or is_board(head.record):
        return None
    return OpenedRun(place, head, RunRecord.of(head), store)
