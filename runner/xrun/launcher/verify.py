"""`xrun verify`: whether what is kept of a run has the bytes that were committed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointCorrupt, LaunchError
from ..run.opened import open_run
from ..run.page import Page
from .original import page_of


@dataclass(frozen=True)
class Verified:
    """What was hashed, by name, and what is not as it was."""

    where: str
    checked: tuple[str, ...]
    wrong: tuple[str, ...]

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
        checkpoints = _checkpoints(text, environ)
    except LaunchError:
        if page is None:
            raise
        checkpoints = [], []  # a model may lie where no state does
    return Verified(text, (*checked, *checkpoints[0]), (*wrong, *checkpoints[1]))


def _model(page: Page) -> tuple[list[str], list[str]]:
    wrong = []
    for name, known in page.facts.files.items():
        path = page.model / name
        if not path.is_file():
            wrong.append(f"{name} is not there")
        elif (found := _sha256(path)) != known:
            wrong.append(f"{name} has the SHA-256 {found}, and was exported with {known}")
    return [*page.facts.files], wrong


def _checkpoints(text: str, environ: Mapping[str, str]) -> tuple[Sequence[str], Sequence[str]]:
    run = open_run(text, environ=environ)
    checked, wrong = [], []
    for checkpoint in run.record.checkpoints:
        for name, file in checkpoint.files.items():
            checked.append(f"step {checkpoint.step}: {name}")
            try:
                run.fetch(file)
            except CheckpointCorrupt as error:
                wrong.append(f"step {checkpoint.step}: {name}: {error.message}")
    return checked, wrong


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
