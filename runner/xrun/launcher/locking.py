"""A launch -> the lock that goes along with its plan: what nobody can tell later."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from blake3 import blake3

from .. import environment
from ..errors import LaunchError
from ..files import read_json
from ..run.locked import Lock
from ..run.plan import Plan
from .git import git_answer

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def locked(plan: Plan, environ: Mapping[str, str] = os.environ) -> Plan:
    """The plan with its lock: the project as it is now, the container's image where it is named by
    its digest, and what was fixed before.

    Raises:
        LaunchError: the file that says what was fixed before is damaged.
    """
    before = {**_given(environ), **plan.locked.hub}
    lock = replace(plan.locked, hub=before, code=_code(plan), image=_image(plan))
    return replace(plan, lock=lock.to_json())


def _given(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The Hub's commits of a run that is made again."""
    path = environment.LOCK.of(environ)
    if not path:
        return {}
    try:
        return Lock.from_json(read_json(Path(path), dict)).hub
    except ValueError as error:
        raise LaunchError(f"{path} is damaged: {error}.", "Fetch the lock again.") from error


def _image(plan: Plan) -> str:
    images = {each.get("image") or "" for each in plan.recipe["hardware"]["any_of"]}
    named = [image for image in images if _DIGEST.search(image)]
    return named[0] if len(images) == 1 and named else ""


def _code(plan: Plan) -> dict[str, Any]:
    """The project's commit, where it can be had, and what differs from it."""
    if not plan.code.get("commit"):
        return {}
    project = Path(plan.project)
    told = {
        **plan.code,
        "remote": without_secrets(git_answer(project, "remote", "get-url", "origin")),
        "folder": git_answer(project, "rev-parse", "--show-prefix"),
        "difference": _difference(project) if plan.code.get("dirty") else "",
    }
    return {name: value for name, value in told.items() if value}


def _difference(project: Path) -> str:
    return blake3(git_answer(project, "diff", "--no-ext-diff", "HEAD").encode()).hexdigest()


def without_secrets(remote: str) -> str:
    """A remote's address without the password or token that may stand in it."""
    parts = urlsplit(remote)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        return urlunsplit(parts)
    return remote
