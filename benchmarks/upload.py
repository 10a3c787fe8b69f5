"""Row 8: what a save sends to the Hub, over the bytes of the tensors that training changes.

A real attempt saves into `HubStore` on the tests' loopback Hub, which counts the bodies of all
requests: files, points, commits, questions. With a frozen backbone and a small head, and with
everything trained; by LFS and by Xet.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.lab import Enough, StepClock, lab, run
from benchmarks.result import Row, main, median, spread

TARGET = 1.02
WORKLOADS = {"head": "model.args.frozen=true", "all": "model.args.frozen=false"}


def measure(quick: bool) -> Iterator[Row]:
    saves = 2 if quick else 4
    found: dict[str, list[float]] = {}
    peers: dict[str, float] = {}
    for way in ("lfs", "xet"):
        os.environ["HF_HUB_DISABLE_XET"] = str(int(way == "lfs"))  # huggingface_hub reads it once
        for name, override in WORKLOADS.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                ours, theirs = process.submit(_ratios, override, saves).result()
            found[f"{name}, {way}"], peers[f"upload_file of a torch.save, {name}, {way}"] = (
                ours,
                theirs,
            )
    worst = max(found, key=lambda name: median(found[name]))
    yield Row(
        8,
        "bytes sent to the Hub per save, over the bytes that changed",
        median(found[worst]),
        TARGET,
        "lower",
        peers,
        spread(found[worst]),
        {name: median(ratios) for name, ratios in found.items()},
    )


def _ratios(override: str, saves: int) -> tuple[list[float], float]:
    """Of each save of a real attempt but the first, which sends everything; and of the same state
    as one file, sent again."""
    from loopback.hub import Hub

    with tempfile.TemporaryDirectory() as folder, Hub(Path(folder)) as hub, lab() as own:
        os.environ.update({**hub.environ("alice"), "XRUN_HUB_SPACING": "0.1"})
        training = own.training(own.plan("upload", "upload", override))
        watch = _Saves(training, hub, saves + 1)
        run(training, StepClock(None, watch))
        state = training.state
        changed = sum(
            tensor.nbytes for name, tensor in state.tensors().items() if name not in state.frozen()
        )
        return [sent / changed for sent in watch.sent[1:]], _whole(state, hub) / changed


class _Saves:
    """Asks for a save once the one before is committed, a few steps later; `sent` are the bytes of
    each."""

    def __init__(self, training: Any, hub: Any, count: int) -> None:
        self.checkpointer, self.hub, self.count = training.checkpointer, hub, count
        training.fresh = False
        self.sent: list[int] = []
        self.before = self.asked = 0

    def __call__(self, done: int) -> None:
        if (
            self.asked
            and self.checkpointer.lease.committed_step >= self.asked
            and not self.checkpointer.busy
        ):
            self.sent.append(_bytes(self.hub) - self.before)
            self.asked = 0
        if len(self.sent) == self.count:
            raise Enough
        if not self.asked and done % 5 == 4:
            self.before, self.asked = _bytes(self.hub), done
            self.checkpointer.want()


def _bytes(hub: Any) -> int:
    return sum(request.size for request in hub.requests)


def _whole(state: Any, hub: Any) -> int:
    """Bytes for a second `torch.save` of this state after one more step."""
    import torch
    from huggingface_hub import HfApi

    api, file = HfApi(endpoint=hub.url, token=hub.token("alice")), Path(hub.root) / "state.pt"
    api.create_repo("alice/whole", private=True)
    before = 0
    for _ in range(2):
        before = _bytes(hub)
        torch.save(state.tensors(), file)
        api.upload_file(path_or_fileobj=file, path_in_repo="state.pt", repo_id="alice/whole")
        for parameter in state.model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        state.optimizer.step()
    return _bytes(hub) - before


if __name__ == "__main__":
    main(measure)
