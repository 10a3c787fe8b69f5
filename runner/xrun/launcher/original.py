"""`Original`: a run as it was made, by its address, its model page, or a folder of either: what
`xrun reproduce` makes again and `xrun verify` checks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from blake3 import blake3

from ..bar import bar
from ..environment import cache_folder
from ..errors import CloudUnavailable, LaunchError
from ..libraries import BUCKET, HUB, require
from ..run.folder import RunFolder, find_run
from ..run.locked import Lock
from ..run.opened import OpenedRun, is_run_id, open_run, parse
from ..run.page import FOLDER, RUN, Facts, Page
from ..run.points import Point, reproducible
from ..store.address import Address


@dataclass(frozen=True)
class Original:
    """`recipe` is YAML, `points` what was logged by step, `code` the folder of its published
    components, where they are, `project` that of whoever has trained it here."""

    where: str
    facts: Facts
    recipe: str
    lock: Lock
    points: Sequence[Point]
    code: Path | None = None
    project: Path | None = None


def original(text: str, environ: Mapping[str, str] = os.environ) -> Original:
    """The run that a person means; the page of its model says it, else its record.

    Raises:
        XrunError: there is nothing, this account may not read it, or nobody has noted how it was
            made.
    """
    if page := page_of(text, environ):
        return _of_page(text, page)
    run = open_run(text, environ=environ)
    page = _published(run)
    return _of_page(text, page) if page else _of_record(text, run)


def page_of(
    text: str, environ: Mapping[str, str] = os.environ, *, whole: bool = False
) -> Page | None:
    """The model's folder, fetched where it is far away; `whole` with its weights. None where there
    is no page that xrun has written."""
    address = None if is_run_id(text) else parse(text, environ)
    if address is not None and address.on_hub:
        return _fetched(address.name, whole)
    if address is not None and address.in_bucket:
        return _in_bucket(address, environ, whole)
    path = Path(address.name) if address else find_run(text).path
    found = [each for each in (path, path / "model") if (each / FOLDER / RUN).is_file()]
    return Page(found[0]) if found else None


def _fetched(name: str, whole: bool) -> Page | None:
    require(HUB)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from ..store.hub.client import hub_api, reaching

    folder = _kept(name)
    patterns = None if whole else [f"{FOLDER}/*"]
    # Of weights people see how far they are; small files are there at once.
    fetch = snapshot_download if whole else hub_api().snapshot_download
    try:
        with reaching(), bar(f"Downloading {name}"):
            fetch(name, local_dir=folder, allow_patterns=patterns)
    except GatedRepoError as error:
        hint = "Request access on its page."
        raise LaunchError(f"{name} is gated: your token has no access.", hint) from error
    except RepositoryNotFoundError as error:
        hint = "Check the spelling; a private one needs a token that may read it (`hf auth login`)."
        what = f"There is no repository {name} on the Hub, or this account may not see it."
        raise LaunchError(what, hint) from error
    except RevisionNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise CloudUnavailable(f"The Hub does not answer: {error}.", "Try again.") from error
    page = Page(folder)
    return page if (page.folder / RUN).is_file() else None


def _in_bucket(address: Address, environ: Mapping[str, str], whole: bool) -> Page | None:
    require(BUCKET)
    from ..store.bucket.client import BucketClient
    from ..store.bucket.model import BucketModel
    from ..store.bucket.store import READERS_PATIENCE

    folder = _kept(str(address))
    client = BucketClient(address, environ=environ, patience=READERS_PATIENCE)
    BucketModel(client).fetch(folder, "" if whole else FOLDER)
    page = Page(folder)
    return page if (page.folder / RUN).is_file() else None


def _kept(name: str) -> Path:
    return cache_folder() / "pages" / blake3(name.encode()).hexdigest()[:32]


def _published(run: OpenedRun) -> Page | None:
    """The page of the run's model where its recipe names a repository for it, and that is there to
    be read; a repository of that name may be another run's by now."""
    named = str((run.record.recipe or {}).get("publish") or "")
    with contextlib.suppress(LaunchError):
        page = _fetched(parse(named).name, whole=False) if "://" in named else None
        return page if page and page.facts.run == run.run else None
    return None


def _of_page(text: str, page: Page) -> Original:
    recipe = page.recipe.read_text(encoding="utf-8")
    project = _project_of(RunFolder(page.model.parent))
    return Original(text, page.facts, recipe, page.lock, page.points(), page.code, project)


def _project_of(folder: RunFolder) -> Path | None:
    return Path(folder.plan().project) if folder.plan_file.is_file() else None


def _of_record(text: str, run: OpenedRun) -> Original:
    record = run.record
    if not record.lock:
        raise LaunchError(
            f"The record of {run.run} has no lock: it is from before runs kept one.",
            "Nobody can tell which versions it was made with, so it cannot be made again.",
        )
    processes = int(record.lock.machine.get("processes", 1))
    sha256 = record.finished.weights_sha256 if record.finished else None
    facts = Facts(
        run.run, record.digest, record.rule, processes, sha256 or "", sources=record.sources
    )
    points = [reproducible(point) for point in run.points()]
    recipe = yaml.safe_dump(dict(run.recipe), sort_keys=False)
    project = _project_of(run.beside) if run.beside else None
    return Original(text, facts, recipe, record.lock, points, project=project)
