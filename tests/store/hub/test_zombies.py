"""A machine that was believed dead comes back, and overwrites nothing."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from starlette.responses import Response

from loopback.hub import Hub
from loopback.server import Request
from support.hub_store import (
    HUB_WARNINGS,
    Clock,
    own,
)
from xrun.errors import LeaseLost
from xrun.store.directory.commits import head_of
from xrun.store.hub.store import HubStore
from xrun.store.protocol import Head

pytestmark = HUB_WARNINGS


class Gates(Hub):
    """A Hub on which one attempt's next request of a kind stops, before or after its work, until
    somebody opens."""

    where = ""

    def gate(self, store: HubStore, where: str, after: bool) -> None:
        """Guard the requests that carry this attempt's token from now on."""
        self.token_held, self.after = (
            f"Bearer {self.token(('even', 'odd')[int(store.attempt[1:]) % 2])}",
            after,
        )
        self.arrived, self.opened = threading.Event(), threading.Event()
        self.where = where

    def respond(self, request: Request) -> Response:
        held = (
            self.where in request.line and request.headers.get("authorization") == self.token_held
            if self.where
            else False
        )
        if held:
            self.where = ""
        if held and not self.after:
            self.pause()
        response = super().respond(request)
        if held and self.after:
            self.pause()
        return response

    def pause(self) -> None:
        self.arrived.set()
        assert self.opened.wait(30)


WHERE = {
    "hub": [
        "objects/batch",
        "PUT /lfs",
        "commit/state",
        "commit/state",
        "lfs-files",
        "refs",
        "lfs-files/batch",
        "lfs-files/batch",
    ],
    "hub-bucket": ["batch", "commit/state", "tree/run-1", "refs"],
}
"""Where an attempt is held."""


@pytest.mark.once
@pytest.mark.parametrize(
    ("form", "races"),
    [("hub", 40), ("hub-bucket", 10), pytest.param("hub", 1000, marks=pytest.mark.soak)],
)
def test_a_zombie_overwrites_nothing(
    tmp_path: Path, clock: Clock, lfs: None, monkeypatch: pytest.MonkeyPatch, form: str, races: int
) -> None:
    """Many times an attempt is held at some request of a save while its successor takes over and
    saves the same step.

    Then it goes on. Whatever it was about to do: commits follow one another without a gap, none
    that was acknowledged is lost, after the lease none is the zombie's, and what the head names is
    whole.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    rng = random.Random(3)
    with Gates(tmp_path / "hub") as hub, ThreadPoolExecutor(1) as thread:
        hub.clock = clock
        hub.organisations = {"team": {"odd", "even"}}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        acknowledged: list[str] = []

        def opened(number: int) -> HubStore:
            options: dict[str, Any] = {
                "clock": clock,
                "sleep": clock.sleep,
                "spacing": 0.0,
                "hourly": 1e6,
            }
            token = hub.token(("even", "odd")[number % 2])
            return HubStore(
                f"{form}://team/run",
                "run-1",
                f"a{number}",
                "me",
                tmp_path / "cache",
                token=token,
                **options,
            )

        def committed(store: HubStore, record: dict[str, Any], parent: Head | None) -> Head:
            head = store.commit(record, parent)
            acknowledged.append(head.id)
            return head

        def save(store: HubStore, head: Head) -> Head:
            """Two are kept. A part of each says who wrote it; the other's bytes come again every
            third step, whoever saves it, and hours after they were dropped."""
            step = head.record.get("step", 0) + 1
            pair = [store.put([own(store.attempt, b"%d" % step)]), store.put([b"%d" % (step % 3)])]
            kept = [*head.record.get("kept", []), [file.to_json() for file in pair]]
            head = committed(store, {"step": step, "kept": kept[-2:]}, head)
            store.sweep()
            return head

        zombie = opened(0)
        head = save(zombie, committed(zombie, {}, zombie.head()))
        for race in range(1, races + 1):
            clock.sleep(rng.choice([0, 600, 4000]))
            hub.gate(zombie, rng.choice(WHERE[form]), rng.random() < 0.3)
            saving = thread.submit(save, zombie, head)
            while not hub.arrived.wait(0.001) and not saving.done():
                pass
            successor = opened(race)
            found = successor.head()
            assert found is not None
            theirs = save(successor, committed(successor, found.record, found))
            hub.opened.set()
            parent = head if saving.exception() else saving.result()
            with pytest.raises(LeaseLost):
                save(zombie, parent)
            zombie, head = successor, theirs
            assert opened(race).head() == head
            whole(hub, form, head)
        chain = heads(hub)
        assert [head.number for head in chain] == list(range(len(chain), 0, -1))
        assert [head.parent for head in chain] == [*(head.id for head in chain[1:]), ""]
        assert set(acknowledged) <= {head.id for head in chain}
        assert len(acknowledged) >= 2 * races


def heads(hub: Hub) -> list[Head]:
    """Every head that was ever committed, newest first."""
    repository = hub.repository("team/run")
    trees = [repository.tree(commit.id) for commit in hub.history("team/run", "state")[:-1]]
    return [head_of(repository.blob(tree["head.json"].oid).removesuffix(b"\n")) for tree in trees]


def whole(hub: Hub, form: str, head: Head) -> None:
    """The server has the content of everything that the head names."""
    places = {place for pair in head.record["kept"] for file in pair for place in file["copies"]}
    if form == "hub":
        repository = hub.repository("team/run")
        assert all(repository.large(Path(place).name[:64]) for place in places)
    else:
        assert (
            places
            <= json.loads((hub.root / "buckets" / "team--run.json").read_text())["files"].keys()
        )
