"""`OpenedRun`: a run as anybody sees it who has its address and may read there, on any machine.

Nothing is made where nothing is: not in the store, and not in `runs/`. What is fetched is verified
and kept in this user's cache.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from blake3 import blake3

from ..environment import cache_folder
from ..errors import LaunchError
from ..store.address import Address, NoAddressError
from ..store.protocol import Head, StoredFile
from . import logs, points
from .folder import RunFolder, find_run, no_run_but_a_sweep
from .page import FOLDER, RUN
from .plan import Plan
from .points import Seen
from .record import RunRecord
from .report import RunReport, report_of, status_of, with_metrics
from .stores import Place, is_board, open_place

if TYPE_CHECKING:
    from .stores import AnyStore

SILENCE = 900.0
"""Seconds without a commit after which an attempt that has not said how it ended counts as gone,
besides twice those between two commits where the recipe says them."""
HUGGING_FACE = "https://huggingface.co"
FORMS = (
    "Give a run's id, a folder, `hub://owner/name`, `hub-bucket://owner/name`,"
    " `s3://bucket/prefix/RUN` (`gs://`, `az://`), or the URL of its model page."
)
_NAME = r"[\w.-]+"
_MODEL_PAGE = re.compile(rf"/({_NAME}/{_NAME})(/(tree|blob|resolve|commits?)/.*)?/?", re.ASCII)
_NO_MODEL = ("datasets", "spaces", "buckets", "api", "docs", "models")


@dataclass(frozen=True)
class OpenedRun:
    """A run with a commit: where its state is, what its head says, typed, and its store to read
    from. `beside` is its folder on this machine, where it has one."""

    place: Place
    head: Head
    record: RunRecord
    store: AnyStore = field(repr=False, compare=False)
    beside: RunFolder | None = None

    @property
    def run(self) -> str:
        """The run's id."""
        return self.head.run

    @property
    def owner(self) -> str:
        """Who may go on with it."""
        return self.head.owner

    @property
    def address(self) -> str:
        """What leads to it from everywhere; a folder's is the path of the state."""
        return str(self.place.address)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe, as a plan has it.

        Raises:
            LaunchError: the run is from before records had it.
        """
        if self.record.recipe is None:
            raise LaunchError(
                f"The record of {self.run} has no recipe: an older xrun has written it.",
                "Start the recipe itself once more; then the record has it.",
            )
        return self.record.recipe

    def fetch(self, file: StoredFile) -> Path:
        """A local path with the verified content of a file that the record names. Raises
        `CheckpointCorrupt` and `StoreUnavailable`."""
        return self.store.fetch(file)

    def points(self) -> list[dict[str, Any]]:
        """Every logged point, up to the newest commit where the state is far away. Raises
        XrunError."""
        if self.place.address.durable:
            last = max(self.record.newest_step, 0)
            return points.stored(self.store, self.record.points, last)
        return self.beside.points() if self.beside else []

    def report(self, now: float, *, metrics: bool = True) -> RunReport:
        """Everything that is known of the run there. Raises XrunError."""
        if self.beside and not self.place.address.durable and self.beside.plan_file.exists():
            return self.beside.report(metrics=metrics)
        status = self.status(now)
        durable = self.place.address.durable
        beside = Path(self.address).parent / "model"
        model = self.address if durable else str(beside) if beside.is_dir() else ""
        plan = self._known_plan()
        made = report_of(self.run, self.address, status, self.record, plan, model, now)
        if not metrics:
            return made
        logged = self.record.points[-1].last if self.record.points else None
        return with_metrics(made, logged, self._seen())

    def status(self, now: float) -> str:
        """See RunReport; an attempt runs that has not ended and was heard of a while ago."""
        last = self.record.attempts[-1] if self.record.attempts else None
        if last is not None and last.ended is None and last.id == self.head.attempt:
            seen = max(last.last_known, self.head.time)
            if now - seen < SILENCE + 2 * (last.silence or 0.0):
                return "running"
        return status_of(self.record, self._known_plan())

    def _known_plan(self) -> Plan | None:
        """None of a run from before records had the recipe."""
        return None if self.record.recipe is None else self.plan(Path(), Path())

    def plan(self, home: Path, project: Path) -> Plan:
        """The run's plan as its record has it, on a machine with this project and folder of
        runs. Raises LaunchError."""
        address = self.place.address
        return Plan(
            run=self.run,
            digest=self.record.digest,
            rule=self.record.rule,
            mathematics={"sources": dict(self.record.sources)},
            recipe=self.recipe,
            recipe_path=str(project / "recipes" / f"{self.recipe['name']}.yaml"),
            project=str(project),
            home=str(home),
            owner=self.owner,
            store=str(_of_all_runs(address, self.run)) if address.durable else "",
            fork=self.record.fork,
            fork_store=self.record.fork_store,
            launched=self.record.launched,
        )

    def _seen(self) -> Seen:
        if self.place.address.durable:
            return points.seen_stored(self.store, self.record.points)
        return points.seen_in(self.beside.metrics) if self.beside else Seen()

    def log_text(self, attempt: int | None = None, rank: int = 0) -> str:
        """What one training process of an attempt (counted from 1, default the last) has printed,
        from this machine or from the store.

        Raises:
            LaunchError: there is no such attempt, or its process has left nothing.
        """
        attempts = self.record.attempts
        number = len(attempts) if attempt is None else attempt
        if not 1 <= number <= len(attempts):
            raise LaunchError(f"{self.run} has {len(attempts)} attempts (got {number}).")
        own = attempts[number - 1].id
        text = logs.here(self.beside.logs(own), rank) if self.beside else None
        if text is None:
            text = logs.read(self.store, self.record.logs, own, rank)
        if text is None:
            what = f"Attempt {number} of {self.run} has left no log of process {rank}"
            raise LaunchError(f"{what} at {self.address}.")
        return text


def open_run(
    text: str, *, environ: Mapping[str, str] = os.environ, by_page: bool = True
) -> OpenedRun:
    """The run that a person means: its id in this project, its address, or its model page; with
    `by_page` also where such a page says that the state is elsewhere.

    Raises:
        LaunchError: that is none of these, there is nothing, it holds no run, this account may not
            read it, or a library is missing.
        StoreError: the store refuses, or nobody can tell now.
        CheckpointError: its state is damaged.
    """
    place, beside = located(text, environ)
    store = open_place(place, "reader", create=False, environ=environ)
    if (head := beside.head_in(store) if beside else store.head()) is None:
        if elsewhere := _by_its_page(place.address) if by_page else "":
            return open_run(elsewhere, environ=environ, by_page=False)
        raise LaunchError(_nothing(place.address), _looked_for(place.address))
    if is_board(head.record):
        raise no_run_but_a_sweep(str(place.address), text)
    record = RunRecord.of(head)
    if place.address.on_hub:
        place = replace(_with_its_bulk(place, record), run=head.run)
        store = open_place(place, "reader", create=False, environ=environ)
        store.head()
    return OpenedRun(place, head, record, store, beside or _here(head.run, place.address))


def located(text: str, environ: Mapping[str, str] = os.environ) -> tuple[Place, RunFolder | None]:
    """Where the run is that a person means, and its folder here if the text names that one; nothing
    far away is asked.

    Raises:
        LaunchError: the text is neither a run of this project nor an address.
    """
    if is_run_id(text):
        folder = find_run(text)
        return _of_folder(folder), folder
    address = parse(text, environ)
    if not address.durable:
        return _in_folder(Path(address.name))
    cache = cache_folder() / "runs" / blake3(str(address).encode()).hexdigest()[:32]
    return Place(address, cache), None


def is_run_id(text: str) -> bool:
    """Whether a person means a run of this project by its name."""
    return "/" not in text and not text.startswith((".", "~"))


def parse(text: str, environ: Mapping[str, str] = os.environ) -> Address:
    """The address that a person has typed; a folder's is its path.

    Raises:
        LaunchError: it is none.
    """
    if text.startswith(("https://", "http://")):
        return _of_page(text, environ)
    if "://" not in text:
        return Address("folder", str(Path(text).expanduser().absolute()))
    try:
        return Address.parse(text)
    except NoAddressError as error:
        raise LaunchError(f"{text!r} is not an address: {error.what}.", error.hint) from error


def _of_page(text: str, environ: Mapping[str, str]) -> Address:
    url, hub = urlsplit(text), urlsplit(environ.get("HF_ENDPOINT") or HUGGING_FACE)
    hosts = {hub.netloc, urlsplit(HUGGING_FACE).netloc}
    page = _MODEL_PAGE.fullmatch(url.path)
    if url.netloc not in hosts or page is None or page[1].split("/")[0] in _NO_MODEL:
        what = f"{text!r} is not the URL of a model page ({HUGGING_FACE}/owner/name)."
        raise LaunchError(what, FORMS)
    return Address("hub", page[1])


def _of_folder(folder: RunFolder) -> Place:
    """By the run's plan; the folder may have been moved since it was written."""
    return Place.of(replace(folder.plan(), home=str(folder.path.parent)))


def _in_folder(path: Path) -> tuple[Place, RunFolder | None]:
    """A run's folder, or its state, which may be all that is left of it.

    Raises:
        LaunchError: there is nothing of the kind.
    """
    if (path / "plan.json").is_file():
        return _of_folder(RunFolder(path)), RunFolder(path)
    for state in (path, path / "state"):
        if (state / "commits").is_dir():
            folder = RunFolder(state.parent) if state.name == "state" else None
            return Place(Address("folder", str(state)), state.parent / "cache"), folder
    if not path.is_dir():
        raise LaunchError(f"There is no folder {path}.", FORMS)
    raise LaunchError(f"{path} holds no run.", f"`xrun status {path}` lists the runs in it.")


def _of_all_runs(address: Address, run: str) -> Address:
    """What a plan calls the store of this run: a bucket's prefix without the run's id."""
    if not address.in_bucket:
        return address
    return replace(address, name=address.name.removesuffix(f"/{run}"))


def _here(run: str, address: Address) -> RunFolder | None:
    """The run's folder in this project, if its state is the one at this address."""
    try:
        folder = find_run(run)
        return folder if _of_folder(folder).address == address else None
    except LaunchError:
        return None


def _with_its_bulk(place: Place, record: RunRecord) -> Place:
    """A model page does not tell whether files lie in the repository or in a bucket of its name;
    the recipe does."""
    store = str((record.recipe or {}).get("checkpoint", {}).get("store", ""))
    if not store.startswith("hub"):
        return place
    kind = Address.parse(store).kind
    return replace(place, address=replace(place.address, kind=kind))


def _by_its_page(address: Address) -> str:
    """Where the page of a published model says that its run's state is; "" if not elsewhere. A
    page may be a stranger's: it leads to nothing on this machine."""
    if not address.on_hub:
        return ""
    from ..store.hub.client import small_file

    try:
        state = json.loads(small_file(address.name, f"{FOLDER}/{RUN}") or b"{}").get("state", "")
        return str(state) if Address.parse(str(state)).durable else ""
    except (ValueError, AttributeError):  # no JSON, no object, or no address
        return ""


def _nothing(address: Address) -> str:
    if address.on_hub and not _is_there(address):
        return f"There is no repository {address.name} on the Hub, or this account may not see it."
    return f"{address} holds no run."


def _looked_for(address: Address) -> str:
    if address.on_hub:
        return "Check the spelling; a private one needs a token that may read it (`hf auth login`)."
    above = str(address).rpartition("/")[0]
    return (
        f"Check the spelling; `xrun status {above}` lists the runs there, `xrun status {address}`"
        " those below it."
    )


def _is_there(address: Address) -> bool:
    from ..store.hub.client import hub_api, reaching

    with reaching():
        return bool(hub_api().repo_exists(address.name))
