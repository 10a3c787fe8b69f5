"""`xrun verify`: whether what is kept of a run has the bytes that were committed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..bar import bar
from ..errors import CheckpointCorrupt, CheckpointError, LaunchError
from ..files import sha256_of
from ..run.opened import OpenedRun, located, open_run
from ..run.page import Page
from .original import page_of


@dataclass(frozen=True)
class Verified:
    """What was hashed, by name, what is not as it was, why only a model was there to check, and
    what a finished run does not have of its model."""

    where: str
    checked: tuple[str, ...]
    wrong: tuple[str, ...]
    no_state: str = ""
    no_model: str = ""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "ok": not self.wrong}


def verify(text: str, environ: Mapping[str, str] = os.environ) -> Verified:
    """Hash the model that is there, and every file of the committed checkpoints.

    Raises:
        XrunError: there is neither, or this account may not read it.
    """
    page = page_of(text, environ, whole=True)
    checked, wrong = _model(page) if page else ([], [])
    try:
        run = open_run(text, environ=environ)
    except CheckpointError as error:
        if not checked:
            raise
        return Verified(text, (*checked,), (*wrong, str(error)))
    except LaunchError as error:
        if not checked:
            raise
        if _is_of_here(text, environ):  # it has finished, so that its state was there
            return Verified(text, (*checked,), (*wrong, error.message))
        return Verified(text, (*checked,), (*wrong,), error.message)  # published by itself
    if page is not None:
        wrong += _against(page, run)
    kept, damaged = _checkpoints(run)
    if not (checked or kept):
        raise LaunchError(
            f"{run.run} has neither a model nor a committed checkpoint; nothing was checked.",
            f"`xrun report {text}` says how far it is.",
        )
    lacks = "" if page else run.report(time.time(), metrics=False).lacks
    return Verified(text, (*checked, *kept), (*wrong, *damaged), no_model=lacks)


def _is_of_here(text: str, environ: Mapping[str, str]) -> bool:
    """Whether it is a run of this machine, which has its plan and with it the place of its
    state."""
    with contextlib.suppress(LaunchError):  # a model's folder alone
        return located(text, environ)[1] is not None
    return False


def _model(page: Page) -> tuple[list[str], list[str]]:
    wrong = []
    for name, known in page.facts.files.items():
        path = page.model / name
        if not path.is_file():
            wrong.append(f"{name} is not there")
        elif (found := sha256_of(path)) != known:
            wrong.append(f"{name} has the SHA-256 {found}, and was exported with {known}")
    return [*page.facts.files], wrong


def _against(page: Page, run: OpenedRun) -> list[str]:
    """Whether the page tells of the weights that the record tells of."""
    finished = run.record.finished
    known, told = finished and finished.weights_sha256, page.facts.weights_sha256
    if not known or run.run != page.facts.run or known == told:
        return []
    return [f"the page says that the weights are {told}, and the run's record says {known}"]


def _checkpoints(run: OpenedRun) -> tuple[Sequence[str], Sequence[str]]:
    checked, wrong = [], []
    kept = run.record.checkpoints
    size = sum(file.size for each in kept for file in each.files.values())
    with bar("Verifying the checkpoints", size) as shown:
        for checkpoint in kept:
            for name, file in checkpoint.files.items():
                checked.append(f"step {checkpoint.step}: {name}")
                try:
                    run.fetch(file)
                except CheckpointCorrupt as error:
                    wrong.append(f"step {checkpoint.step}: {name}: {error.message}")
                shown.advance(file.size)
    return checked, wrong
