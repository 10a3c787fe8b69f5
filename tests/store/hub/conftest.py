"""A run's store on an empty Hub, on a clock that is in hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from loopback.hub import Hub
from support.hub_store import (
    REPO,
    Clock,
    Opener,
)
from xrun.store.hub.store import HubStore


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub. The library reads HF_HUB_OFFLINE once, when it is imported, which was long
    ago."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with Hub(tmp_path / "hub") as hub:
        hub.clock = clock
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def attempt(hub: Hub, clock: Clock, tmp_path: Path) -> Opener:
    """Opens the run's store as an attempt, each one on an empty machine of its own."""

    def opened(
        name: str = "a1",
        *,
        form: str = "hub",
        run: str = "digits-1",
        repo: str = REPO,
        **options: Any,
    ) -> HubStore:
        settings = {
            "token": hub.token("alice"),
            "clock": clock,
            "sleep": clock.sleep,
            "patience": 60.0,
            **options,
        }
        cache = settings.pop("cache", tmp_path / f"cache-{name}")
        return HubStore(f"{form}://{repo}", run, name, f"{name}@host", cache, **settings)

    return opened


@pytest.fixture(params=["hub", "hub-bucket"])
def form(request: pytest.FixtureRequest) -> str:
    """Where the bulk lies."""
    return request.param


@pytest.fixture(params=["xet", "lfs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How large files are sent."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go by LFS, which takes half the time."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
