"""The cluster of a file of tests, with a Hub and a W&B."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cluster.cluster import Cluster
from cluster.daemons import missing
from cluster.site import FREQUENT, Site
from loopback.hub import Hub
from loopback.wandb import Wandb


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if what := missing():
        assert not os.environ.get("CI"), what
        pytest.skip(what)
    with (
        Cluster() as cluster,
        Hub(cluster.root / "hub") as hub,
        Wandb(cluster.root / "wandb") as wandb,
    ):
        cluster.export(FREQUENT)
        yield Site(cluster, hub, wandb)
