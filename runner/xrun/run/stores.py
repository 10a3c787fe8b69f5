"""A plan's run -> its store, opened for one attempt: the one place that opens any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import environment
from ..errors import XrunError
from ..libraries import BUCKET, HUB, require
from ..store.directory.store import DirectoryStore
from ..store.protocol import Publisher, Store
from .plan import Plan
from .record import RunRecord

if TYPE_CHECKING:
    from ..store.bucket.store import BucketStore
    from ..store.hub.store import HubStore

    AnyStore = DirectoryStore | HubStore | BucketStore


def open_store(
    plan: Plan, attempt: str, *, create: bool = True, environ: Mapping[str, str] = os.environ
) -> AnyStore:
    """The store of a plan's run; without `create` nothing is made where nothing is.

    Raises:
        LaunchError: the library of a store far away is not installed, or it has no account there.
    """
    if plan.address.in_bucket:
        return _in_bucket(plan, attempt, create, environ)
    if not plan.address.durable:
        return DirectoryStore(plan.folder / "state", plan.run, attempt, plan.owner)
    require(HUB)
    # Its library takes a second to import, which a run without it does not pay.
    from ..store.hub.store import HubStore

    return HubStore(
        plan.address,
        plan.run,
        attempt,
        plan.owner,
        plan.folder / "cache",
        create=create,
        spacing=float(environment.HUB_SPACING.of(environ)),
        hourly=int(environment.HUB_HOURLY.of(environ)),
        patience=float(environment.HUB_PATIENCE.of(environ)),
    )


def open_publisher(
    plan: Plan, attempt: str, store: Store, environ: Mapping[str, str] = os.environ
) -> Publisher | None:
    """Where an attempt that has this store publishes the plan's model; None if it stays in the
    run's folder.

    Raises:
        LaunchError: the Hub's library is not installed.
    """
    if not plan.publish or plan.publish == plan.store:
        return store if isinstance(store, Publisher) else None
    require(HUB)
    from ..store.hub.model import HubModel

    patience = float(environment.HUB_PATIENCE.of(environ))
    return HubModel.elsewhere(plan.repository.name, attempt, patience=patience)


def _in_bucket(plan: Plan, attempt: str, create: bool, environ: Mapping[str, str]) -> BucketStore:
    """What the recipe adds to the environment of its processes says where the bucket is, too."""
    require(BUCKET)
    from ..store.bucket.store import BucketStore

    return BucketStore(
        plan.place,
        plan.run,
        attempt,
        plan.owner,
        plan.folder / "cache",
        reads=not create,
        environ={**environ, **plan.env},
        patience=float(environment.BUCKET_PATIENCE.of(environ)),
    )


def restore_soon(store: Store) -> None:
    """Begin to verify what the attempt will probably restore; a store that cannot be read is
    somebody else's news."""
    with contextlib.suppress(XrunError):
        newest = RunRecord.of(store.head()).newest
        store.fetch_soon(newest.files.values() if newest else ())
