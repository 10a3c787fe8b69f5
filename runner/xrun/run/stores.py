"""Where a run's state is -> its store, opened for one attempt or a reader: the one place that opens
any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import environment
from ..libraries import BUCKET, HUB, require
from ..store.address import Address
from ..store.directory.store import DirectoryStore
from ..store.protocol import Publisher, Store
from .plan import Plan

if TYPE_CHECKING:
    from ..store.bucket.store import BucketStore
    from ..store.hub.store import HubStore

    AnyStore = DirectoryStore | HubStore | BucketStore


@dataclass(frozen=True)
class Place:
    """The state of one run: its own `address` (a folder's is the path of the state itself), who may
    go on with it, and where this machine keeps what it has fetched. `run` is "" for whoever reads
    and does not know which one lies there. `env` is what the recipe adds to the environment."""

    address: Address
    cache: Path
    run: str = ""
    owner: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Place:
        """Where the state of a plan's run is."""
        folder = Address("folder", str(plan.folder / "state"))
        address = plan.place if plan.address.durable else folder
        return cls(address, plan.folder / "cache", plan.run, plan.owner, plan.env)


BOARD = "sweep"
"""What the record of a sweep's board has, and no run's."""


def is_board(record: Mapping[str, Any]) -> bool:
    """Whether a head's record is that of a sweep's board, which lies among the runs of its
    trials."""
    return BOARD in record


def open_store(
    plan: Plan, attempt: str, *, create: bool = True, environ: Mapping[str, str] = os.environ
) -> AnyStore:
    """The store of a plan's run; without `create` nothing is made where nothing is.

    Raises:
        LaunchError: the library of a store far away is not installed, or it has no account there.
    """
    return open_place(Place.of(plan), attempt, create=create, environ=environ)


def open_place(
    place: Place, attempt: str, *, create: bool = True, environ: Mapping[str, str] = os.environ
) -> AnyStore:
    """The same, for whoever knows no more than where the state is."""
    if place.address.in_bucket:
        return _in_bucket(place, attempt, create, environ)
    if not place.address.durable:
        return DirectoryStore(Path(place.address.name), place.run, attempt, place.owner)
    require(HUB)
    # Its library takes a second to import, which a run without it does not pay.
    from ..store.hub.store import HubStore

    return HubStore(
        place.address,
        place.run,
        attempt,
        place.owner,
        place.cache,
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


def _in_bucket(place: Place, attempt: str, create: bool, environ: Mapping[str, str]) -> BucketStore:
    """What the recipe adds to the environment of its processes says where the bucket is, too."""
    require(BUCKET)
    from ..store.bucket.store import BucketStore

    return BucketStore(
        place.address,
        place.run,
        attempt,
        place.owner,
        place.cache,
        reads=not create,
        environ={**environ, **place.env},
        patience=float(environment.BUCKET_PATIENCE.of(environ)),
    )
