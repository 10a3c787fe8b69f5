"""What most of the loopback Hub's answers begin and end with: the repository that the address
names, and pages of a list."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from .hub_repository import Repository
from .server import Request

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


def seeing(handler: Callable[..., Response]) -> Callable[..., Response]:
    """The handler gets the repository that the address names, if the user may see it."""

    @functools.wraps(handler)
    def wrapped(
        hub: Any, request: Request, owner: str, name: str, kind: str = "models", **rest: str
    ) -> Response:
        repository = hub.repository(f"{owner}/{name}", KINDS.get(kind, kind))
        hub.may_see(request, repository.id, repository.settings()["private"])
        return handler(hub, request, repository, **rest)

    return wrapped


def reading(handler: Callable[..., Response]) -> Callable[..., Response]:
    """Likewise, if the user may read the files as well."""

    def wrapped(hub: Any, request: Request, repository: Repository, **rest: str) -> Response:
        hub.may_read(request, repository)
        return handler(hub, request, repository, **rest)

    return seeing(wrapped)


def writing(handler: Callable[..., Response]) -> Callable[..., Response]:
    """Likewise, if the user may write there."""

    def wrapped(hub: Any, request: Request, repository: Repository, **rest: str) -> Response:
        hub.may_write(request, repository.id)
        return handler(hub, request, repository, **rest)

    return seeing(wrapped)


def page(hub: Any, request: Request, rows: Sequence[Any]) -> Response:
    """One page of a list, and where the next one is."""
    start = int(request.query.get("cursor", 0))
    end = start + min(int(request.query.get("limit", hub.page)), hub.page)
    query = urllib.parse.urlencode({**request.query, "cursor": end})
    link = {"Link": f'<{hub.url}{request.path}?{query}>; rel="next"'} if end < len(rows) else {}
    return JSONResponse(list(rows[start:end]), headers=link)
