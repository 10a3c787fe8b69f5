"""Whether a bucket can hold a run's state, asked before money is spent: that it lets this account
in, and that it keeps what was there first.

All that fences a machine which was believed dead is that an object is not made where one is. A
server may ignore that condition and say yes to both.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..errors import CloudUnavailable, LaunchError, Problem, StoreError, StoreUnavailable
from ..libraries import BUCKET, require
from ..run.plan import Plan

if TYPE_CHECKING:
    from ..store.bucket.client import BucketClient

KEY = "checkpoint.store"
_UNFENCED = (
    "the server overwrites an object in spite of If-None-Match, so two machines could train one run"
)
_FENCED = "Use a server that knows conditional writes (If-None-Match), or `checkpoint.store: hub`."


def check_bucket(
    plan: Plan, environ: Mapping[str, str] = os.environ, patience: float = 10.0
) -> list[Problem]:
    """Make an object twice, read it and delete it; what is wrong with the bucket, which is asked
    for so many seconds.

    Raises:
        LaunchError: the library is not installed.
        CloudUnavailable: the bucket does not answer.
    """
    require(BUCKET)
    from ..store.bucket.client import BucketClient

    try:
        place = {**environ, **plan.env}
        client = BucketClient(plan.address, environ=place, patience=patience)
        return [_problem(plan, *wrong) for wrong in _made_twice(client)]
    except StoreUnavailable as error:
        raise CloudUnavailable(error.message, error.hint or "Try again.") from error
    except (StoreError, LaunchError) as error:
        return [_problem(plan, error.message.rstrip("."), error.hint)]


def _made_twice(client: BucketClient) -> Iterator[tuple[str, str]]:
    key = f".xrun-check/{uuid.uuid4().hex}"
    first, second = b"first\n", b"second\n"
    made = client.create(key, first), client.create(key, second)
    if made != (True, False) or client.read(key) != first:
        yield _UNFENCED, _FENCED
    client.delete([key])
    if client.read(key) is not None:
        yield "this account cannot delete objects there", "Allow it to delete, or the bucket grows."


def _problem(plan: Plan, what: str, hint: str) -> Problem:
    return Problem(plan.recipe_path, 0, 0, KEY, what, plan.store, hint)
