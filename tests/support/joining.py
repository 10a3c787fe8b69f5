"""A process that joins others, for test_world.py: what runs in a process of its own has to be
importable there."""

from __future__ import annotations

import os
import time
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it comes from C++

from xrun.errors import ProcessesApart
from xrun.training.world import Timeouts, join_world


def work(rank: int, size: int, port: int, what: str, line: Any) -> None:
    """Join, say what came of it, and wait until everybody has been heard."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
    if what == "silent" and rank == 1:  # it comes, and then says nothing
        store = TCPStore("127.0.0.1", port, size, False)
        store.set("here/1", "machine-b")
        line.send("")
        line.recv()
        os._exit(0)
    if what == "late" and rank == 0:
        time.sleep(0.5)
    try:
        world = join_world(
            False,
            Timeouts(
                meeting=2.0 if what == "absent" else 60.0, talking=2.0 if what == "silent" else 60.0
            ),
        )
        soon = world.sums_soon([rank + 1.0])  # the others are asked meanwhile
        least = world.all_reduce_min(5.0 - rank)
        sums = soon()
        line.send((sums, least, world.broadcast(rank)))
    except ProcessesApart as error:
        line.send(str(error))
    line.recv()
    os._exit(0)
