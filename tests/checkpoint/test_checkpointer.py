"""Checkpoints in a real folder: when the copy is made, what is committed, what a bad byte or a full
disk can do.

Covers `xrun.checkpoint.lease`, `xrun.checkpoint.restore`, `xrun.checkpoint.saving` and
`xrun.checkpoint.snapshot`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import mmap
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from support.paths import FIXTURES
from xrun.checkpoint import tensor_file
from xrun.checkpoint.checkpointer import Checkpointer
from xrun.checkpoint.lease import Keep, Lease
from xrun.checkpoint.restore import load, newest
from xrun.checkpoint.schedule import SaveSchedule
from xrun.checkpoint.snapshot import _NOT_FINITE, Snapshot, is_finite
from xrun.checkpoint.state import TrainState
from xrun.errors import (
    AttemptEnd,
    CheckpointCorrupt,
    LeaseLost,
    NonFiniteWeights,
    StoreError,
    TrainError,
)
from xrun.recipe.interval import Every
from xrun.recipe.schema import Train
from xrun.run.checkpoint import ARITHMETIC, Checkpoint
from xrun.run.record import AttemptRecord, RunRecord
from xrun.store.directory.store import DirectoryStore
from xrun.store.protocol import Chunk, Head, StoredFile
from xrun.tracker.jsonl import JsonlTracker
from xrun.training.objective import Objective
from xrun.training.optimizer import build_optimizer

STORES = FIXTURES / "stores"


class Model(nn.Module):
    """A trained layer, a frozen one, and a buffer that forward changes."""

    seen: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.linear(self.frozen(x))


class Gate(DirectoryStore):
    """A real store that waits until a test lets it go on, before `put` or `commit`, to hold a save
    at a delicate place."""

    where = ""

    def guard(self, where: str) -> None:
        """From now on."""
        self.where, self.reached, self.open = where, threading.Event(), threading.Event()

    def _pass(self, where: str) -> None:
        if where == self.where:
            self.reached.set()
            assert self.open.wait(60)

    def put(
        self, chunks: Iterable[Chunk], suffix: str = ".safetensors", *, blocks: bool = False
    ) -> StoredFile:
        self._pass("put")
        return super().put(chunks, suffix, blocks=blocks)

    def commit(self, record: dict[str, Any], parent: Head | None) -> Head:
        self._pass("commit")
        return super().commit(record, parent)


class Run:
    """A run's state with its checkpointer in a folder."""

    def __init__(
        self,
        folder: Path,
        attempt: str = "a1",
        width: int = 5,
        gate: str = "",
        keep: Keep | None = None,
        small: int = 0,
    ) -> None:
        torch.manual_seed(0)
        self.model = Model(width)
        objective = Objective(self.model, "classification")
        self.width = width
        optimizer = build_optimizer(Train(steps=99, global_batch=4), objective)
        self.objective = objective
        self.state = TrainState(self.model, optimizer, micro_batch=4)
        self.store = Gate(folder / "state", "run", attempt, "me")
        found = self.store.head()
        before = RunRecord.of(found)
        record = replace(before, digest="d", attempts=(*before.attempts, AttemptRecord(attempt)))
        head = self.store.commit(record.to_json(), found)
        if gate:
            self.store.guard(gate)
        tracker = JsonlTracker(folder)
        tracker.start({}, 0)
        self.lease = Lease(self.store, head, environment={"threads": 1}, keep=keep or Keep())
        schedule = SaveSchedule(Every.parse("1 step"), 1, lambda: 1.0, lambda: 0.0)
        self.checkpointer = Checkpointer(self.state, self.lease, schedule, tracker, small=small)

    def forward(self) -> None:
        x = torch.randn(4, self.width, generator=torch.Generator().manual_seed(self.state.step))
        self.objective((x, torch.tensor([0, 1, 2, 0])))["loss"].backward()

    def step(self) -> None:
        self.forward()
        self.checkpointer.before_step()
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1

    def save(self, *, alone: bool = False) -> None:
        self.checkpointer.begin(alone)
        self.checkpointer.wait()

    def values(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state.tensors().items()}

    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in RunRecord.of(self.store.head()).checkpoints]

    def files(self, step: int) -> list[Path]:
        (found,) = [c for c in RunRecord.of(self.store.head()).checkpoints if c.step == step]
        return [self.store.root / copy for file in found.files.values() for copy in file.copies]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def test_the_thread_that_saves_asks_the_model_for_nothing(tmp_path: Path) -> None:
    """A sharded model that tells its state_dict shards itself for it, wherever the main thread's
    forward pass is."""
    run, asked = Run(tmp_path), list[threading.Thread]()
    model: Any = run.model
    model.register_state_dict_pre_hook(lambda *_: asked.append(threading.current_thread()))
    for _ in range(3):
        run.save()
        run.step()
    assert set(asked) == {threading.main_thread()}


def restored(folder: Path, width: int = 5) -> dict[str, Tensor]:
    """What a new attempt finds."""
    run = Run(folder, f"a{len(list((folder / 'state' / 'commits').iterdir())) + 10}", width)
    head = run.store.head()
    assert head is not None
    _, found, paths = newest(run.store, head)
    assert found is not None
    load(run.state, found, paths)
    assert run.state.step == found.step
    return run.values()


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    """A new attempt has the state of the last commit bit by bit, optimizer and buffers included."""
    run = Run(tmp_path)
    run.step()
    run.step()
    run.save()
    assert run.checkpointer.is_current()
    assert equal(restored(tmp_path), run.values())
    assert JsonlTracker(tmp_path).last_commit() == (2, run.lease.head.id)


def test_the_state_may_change_once_before_step_has_returned(tmp_path: Path) -> None:
    """While the file is still being written the next steps change everything, and the checkpoint
    has the old values."""
    run = Run(tmp_path, gate="put")
    run.step()
    before = run.values()
    run.checkpointer.begin()
    run.forward()  # changes the buffer at once, while the copy may be going on
    run.checkpointer.before_step()
    run.state.optimizer.step()
    run.step()
    assert run.store.reached.wait(60)
    assert run.checkpointer.busy
    run.store.open.set()
    run.checkpointer.wait()
    assert not equal(run.values(), before)
    assert equal(restored(tmp_path), before)


def test_buffers_are_copied_at_once(tmp_path: Path) -> None:
    """What a forward pass does to buffers after `begin` has returned is not saved."""
    run = Run(tmp_path)
    run.step()
    forward = threading.Event()
    run.checkpointer._thread.submit(
        forward.wait
    )  # the rest is copied after the buffers have changed
    run.checkpointer.begin()
    run.model.seen.fill_(99)
    forward.set()
    run.checkpointer.wait()
    assert torch.equal(restored(tmp_path)["model.seen"], torch.ones(4))


def test_a_change_outside_of_the_step_loses_that_save_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A parameter changed while it is copied fails that save by its name; the commit before stands
    and the next save works."""
    run = Run(tmp_path)
    run.step()
    run.save()
    run.step()
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(60)

    run.checkpointer._thread.submit(hold)  # the copying thread is busy, so the copy comes later
    assert held.wait(60)
    run.checkpointer.begin()
    with torch.no_grad():
        run.model.linear.weight.mul_(2)
    go.set()
    run.checkpointer.before_step()
    run.checkpointer.wait()
    assert (
        "The save of step 2 failed: model.linear.weight changed while a save copied it"
        in caplog.text
    )
    assert run.steps() == [1]
    run.step()
    run.save()
    assert run.steps() == [1, 3]


def committed(run: Run, other: Path) -> dict[str, Tensor]:
    """What the newest checkpoint holds, in another run's state; this one goes on."""
    reader = Run(other, f"r{run.state.step}")
    head = run.store.head()
    assert head is not None
    load(reader.state, *newest(run.store, head)[1:])
    return reader.values()


class Late:
    """Holds the copying thread, so that what is copied beside a forward pass is copied after it."""

    def __init__(self, run: Run) -> None:
        self.run, self.held, self.go = run, threading.Event(), threading.Event()

    def save_over_a_step(self, move: Callable[[], None]) -> dict[str, Tensor]:
        """Save, and move something in the forward pass of the next step; what the state was."""
        run = self.run
        self.held.clear()
        self.go.clear()
        run.checkpointer.wait()
        run.checkpointer._thread.submit(self._hold)
        assert self.held.wait(60)
        before = run.values()
        run.checkpointer.begin()
        move()
        run.forward()
        self.go.set()
        run.checkpointer.before_step()
        run.state.optimizer.step()
        run.state.optimizer.zero_grad(set_to_none=True)
        run.state.step += 1
        run.checkpointer.wait()
        return before

    def _hold(self) -> None:
        self.held.set()
        self.go.wait(60)


def still(run: Run) -> None:
    """Nothing moves."""


def teacher(run: Run) -> None:
    """A write that no version shows."""
    run.model.frozen.weight.data.mul_(0.9).add_(0.1)


def watched_teacher(run: Run) -> None:
    """A write that autograd knows of."""
    with torch.no_grad():
        run.model.frozen.weight.mul_(0.9).add_(0.1)


def renormed(run: Run) -> None:
    """What `nn.Embedding(max_norm=1)` does to trained weights."""
    table = run.model.linear.weight.detach()
    torch.embedding_renorm_(table, torch.arange(3), 0.5, 2.0)
    table.mul_(0.99)


@pytest.mark.parametrize("move", [teacher, watched_teacher, renormed])
def test_what_a_forward_pass_moves_is_saved_as_it_was_before(
    tmp_path: Path, move: Callable[[Run], None]
) -> None:
    """Whether its versions tell or not, from the first save on, every checkpoint is the state
    between two steps."""
    run = Run(tmp_path)
    late = Late(run)
    for step in range(5):
        before = late.save_over_a_step(lambda: move(run))
        assert run.steps()[-1] == step
        assert equal(committed(run, tmp_path / "other"), before)


def decayed(run: Run) -> None:
    """Trained weights behind autograd's back, as some own weight decays and clamps do."""
    run.model.linear.weight.data.mul_(0.99)


@pytest.mark.parametrize("move", [teacher, watched_teacher, renormed, decayed])
def test_what_begins_to_move_later_loses_one_save_at_most(
    tmp_path: Path, move: Callable[[Run], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that it spoiled is not committed, the next save is made at the next step, and that one
    and all later ones are right."""
    run = Run(tmp_path)
    late = Late(run)
    for _ in range(3):
        late.save_over_a_step(lambda: still(run))
    good = run.steps()
    assert not run.checkpointer._wanted
    late.save_over_a_step(lambda: move(run))
    assert "The save of step 3 failed" in caplog.text
    assert run.steps() == good
    assert run.checkpointer.due(run.state.step)
    for step in (4, 5, 6):
        before = late.save_over_a_step(lambda: move(run))
        assert run.steps()[-1] == step
        assert equal(committed(run, tmp_path / "other"), before)


def test_frozen_weights_are_copied_beside_the_forward_pass(tmp_path: Path) -> None:
    """The first two saves copy them before it; once they have been seen to stay, the loop does not
    wait for a large base."""
    run = Run(tmp_path)
    late = Late(run)
    names = {"model.frozen.weight", "model.frozen.bias"}
    for expected in (names, names, set(), set()):
        assert run.checkpointer._early(run.state.tensors()) - run.state.changing() == expected
        late.save_over_a_step(lambda: still(run))


def test_nothing_that_a_small_model_does_tears_its_copy(tmp_path: Path) -> None:
    """Its trained weights, which it clamps behind autograd's back from some step on, are copied
    before; of a larger model, those that are small."""
    run = Run(tmp_path, small=1 << 20)
    late = Late(run)
    for step in range(4):
        weight = run.model.linear.weight.data
        clamp = functools.partial(weight.clamp_, -0.3 / (step + 1), 0.3)
        before = late.save_over_a_step(clamp)
        assert run.steps()[-1] == step
        assert equal(committed(run, tmp_path / "other"), before)
    run.checkpointer.small = 15  # bytes: three biases are 12
    assert run.checkpointer._early(run.state.tensors()) == {"model.linear.bias", "model.seen"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_never_committed(tmp_path: Path, value: float) -> None:
    """The save that finds one ends the run, names it, and leaves the checkpoint before; buffers may
    hold what they like."""
    run = Run(tmp_path)
    run.model.seen.fill_(float("-inf"))
    run.step()
    run.save()
    run.step()
    with torch.no_grad():
        run.model.linear.bias[1] = value
    run.checkpointer.begin()
    with pytest.raises(NonFiniteWeights, match=r"linear\.bias is not finite after step 2"):
        run.checkpointer.wait()
    with pytest.raises(NonFiniteWeights):
        run.checkpointer.check()
    assert run.steps() == [1]


@pytest.mark.parametrize("kind", sorted(_NOT_FINITE, key=str))
def test_every_kind_of_number_is_judged_as_torch_judges_it(kind: torch.dtype) -> None:
    """Every pattern of bits of the small kinds, and the edges of the large ones, wherever they
    lie."""
    plain = torch.float32 if kind.is_complex else kind
    limits = torch.finfo(plain)
    odd = [float("nan"), float("inf"), float("-inf")]
    for value in [*odd, limits.max, limits.min, limits.tiny, -0.0]:
        numbers = torch.full((7,), 1.0).to(plain)
        numbers[3] = value
        expected = bool(torch.isfinite(numbers.double()).all())
        assert is_finite(numbers.view(torch.uint8), kind) == expected, value
    if plain.itemsize == 1:
        for bits in range(256):
            number = torch.tensor([bits], dtype=torch.uint8)
            finite = bool(torch.isfinite(number.view(plain).double()))
            assert is_finite(number, kind) == finite, bits


class Broken(Gate):
    """A store whose disk is full."""

    def put(
        self, chunks: Iterable[Chunk], suffix: str = ".safetensors", *, blocks: bool = False
    ) -> StoredFile:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_save_of_step_0_ends_the_run(tmp_path: Path) -> None:
    """Even for trouble of the store's, since there is nothing to come back to."""
    run = Run(tmp_path)
    run.lease.store = Broken(tmp_path / "state", "run", "a1", "me")
    run.checkpointer.begin()
    with pytest.raises(StoreError, match="No space left"):
        run.checkpointer.wait()


def test_only_trouble_of_the_store_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Later a full disk loses a save; what would go wrong at every save ends the run, as its
    sentence says."""
    run = Run(tmp_path)
    run.save()
    run.step()
    store, run.lease.store = run.lease.store, Broken(tmp_path / "state", "run", "a1", "me")
    run.save()
    assert "The save of step 1 failed" in caplog.text
    run.lease.store = store
    run.state.stream = {"position": object()}
    run.checkpointer.begin()
    with pytest.raises(TrainError, match=r"state of step 1 cannot be saved: TypeError"):
        run.checkpointer.wait()
    assert run.steps() == [0]


@pytest.mark.parametrize("kind", [torch.float32, torch.complex128])
def test_a_buffer_that_a_forward_pass_has_reshaped_comes_back(
    tmp_path: Path, kind: torch.dtype
) -> None:
    """A buffer's shape is state, as its values are; it stays the same buffer."""
    first, second = Run(tmp_path), Run(tmp_path / "other")
    second.model.seen = second.model.seen.to(kind)
    first.model.seen = torch.zeros(2, 3, dtype=kind)
    first.step()
    first.save()
    buffer = second.model.seen
    load(second.state, *newest(first.store, first.lease.head)[1:])
    assert second.model.seen is buffer
    assert torch.equal(second.model.seen, torch.ones(2, 3, dtype=kind))
    assert equal(second.values(), first.values())


def test_one_save_is_in_flight_and_the_newest_request_wins(tmp_path: Path) -> None:
    """Requests while a save is on its way wait, become one, and save the state of the first step at
    which none is."""
    run = Run(tmp_path, gate="put")
    run.step()
    assert run.checkpointer.due(1)
    run.checkpointer.begin()
    assert run.store.reached.wait(60)
    for _ in range(3):
        run.step()
        assert not run.checkpointer.due(run.state.step)
    run.store.open.set()
    run.checkpointer.wait()
    assert run.checkpointer.due(run.state.step)
    run.save()
    assert run.steps() == [1, 4]


def test_saving_takes_one_copy_of_the_state(tmp_path: Path) -> None:
    """After many saves the memory held for them is the state's own size, in the same tensors as
    after the first."""
    run = Run(tmp_path, width=64)
    run.step()
    run.save()
    rooms = {name: room.data_ptr() for name, room in run.checkpointer._snapshot.rooms.items()}
    for _ in range(3):
        run.step()
        run.save()
    held = run.checkpointer._snapshot.rooms
    assert {name: room.data_ptr() for name, room in held.items()} == rooms
    assert sum(t.nbytes for t in held.values()) == sum(
        t.nbytes for t in run.state.tensors().values()
    )


def test_a_snapshot_of_any_layout_is_right() -> None:
    """Transposed, 0-d, empty and bf16 tensors lie one after the other as they are in a file, which
    begins with a page."""
    sources = {
        "t": torch.randn(3, 4).t(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "half": torch.randn(5).bfloat16(),
    }
    snapshot = Snapshot()
    files = {"file": sources, "nothing": {"none": torch.zeros(0)}}
    snapshot.copy(files, {"t", "empty", "none"})
    snapshot.copy(files, {"scalar", "half"})
    room = snapshot.rooms["file"]
    assert room.data_ptr() % mmap.PAGESIZE == 0
    assert equal(
        safetensors.torch.load(tensor_file.header(sources, {}) + bytes(tensor_file.bytes_of(room))),
        sources,
    )
    assert snapshot.rooms["nothing"].nbytes == 0


def frozen(checkpoint: Checkpoint) -> StoredFile:
    """The file of the first process's frozen tensors; its name ends with who wrote it."""
    (file,) = (file for name, file in checkpoint.files.items() if name.startswith("frozen-0-0-"))
    return file


def test_the_next_attempt_names_the_frozen_tensors_of_the_one_before(tmp_path: Path) -> None:
    """Frozen tensors carry who wrote them first, like all others, and are not written again by a
    successor."""
    run = Run(tmp_path)
    run.step()
    run.save()
    before = frozen(RunRecord.of(run.store.head()).checkpoints[-1])
    successor = Run(tmp_path, attempt="a2")
    successor.step()
    successor.save()
    now = RunRecord.of(successor.store.head()).checkpoints[-1]
    assert frozen(now).hash == before.hash
    assert next(name for name in now.files if name.startswith("frozen")).endswith("-a1")


def test_a_run_that_an_older_xrun_began_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files have another kind of hash, and are verified by that; the next save's files have the
    kind of today."""
    shutil.copytree(STORES / "v1", tmp_path / "v1")
    again = Run(tmp_path / "again")
    again.step()
    again.step()
    values = restored(tmp_path / "v1")
    torch.testing.assert_close(values, again.values())
    successor = Run(tmp_path / "v1", attempt="a2")
    load(successor.state, *newest(successor.store, successor.lease.head)[1:])
    successor.step()
    successor.save()
    assert successor.steps() == [2, 3]
    assert [
        {len(file.hash) for file in c.files.values()}
        for c in RunRecord.of(successor.store.head()).checkpoints
    ] == [{64}, {32}]
    assert equal(restored(tmp_path / "v1"), successor.values())
    for path in successor.files(3):
        path.unlink()
    assert equal(restored(tmp_path / "v1"), values)
    assert "step 3" in caplog.text
    for path in successor.files(2):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointCorrupt):
        restored(tmp_path / "v1")


def test_frozen_tensors_are_written_once_and_kept_twice(tmp_path: Path) -> None:
    """A second checkpoint names the first one's file of frozen tensors, which then has a second
    copy."""
    run = Run(tmp_path)
    for _ in range(3):
        run.step()
        run.save()
    first, second = RunRecord.of(run.store.head()).checkpoints
    assert frozen(first) == frozen(second)
    assert len(frozen(second).copies) == 2
    assert first.files["model-0-0"] != second.files["model-0-0"]
    (run.store.root / frozen(second).copies[0]).unlink()
    assert equal(restored(tmp_path), run.values())


def test_a_damaged_file_of_frozen_tensors_is_written_again(tmp_path: Path) -> None:
    """Frozen tensors whose only copy is damaged before the next save are written anew, and saving
    goes on."""
    run = Run(tmp_path)
    run.step()
    run.save()
    (file,) = {frozen(c) for c in RunRecord.of(run.store.head()).checkpoints}
    path = run.store.root / file.copies[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for _ in range(2):
        run.step()
        run.save()
    assert equal(restored(tmp_path), run.values())


def manifest(step: int, best: int | None = None) -> Checkpoint:
    return Checkpoint(
        step, "a", "d", 0.0, {"best": None if best is None else {"step": best, "value": 0.0}}, {}
    )


@pytest.mark.parametrize(
    ("keep", "best", "stay"),
    [
        (Keep(2), None, [40, 50]),
        (Keep(3), None, [30, 40, 50]),
        (Keep(0), None, [40, 50]),
        (Keep(2, every=20), None, [20, 40, 50]),
        (Keep(2), 10, [10, 40, 50]),
        (Keep(2), 11, [40, 50]),
    ],
)
def test_what_is_kept(keep: Keep, best: int | None, stay: list[int]) -> None:
    """The newest ones, never fewer than two, multiples of `every`, and the best; in any order they
    come in."""
    all_of_them = [manifest(step, best) for step in (50, 0, 20, 10, 40, 30)]
    assert [checkpoint.step for checkpoint in keep.select(all_of_them)] == stay
    assert keep.select([]) == []


def test_the_best_that_was_saved_stays() -> None:
    """Where the best state was not saved itself, because a save was on its way, the one before it
    is still there."""
    kept = Keep(2).select([manifest(10, 10), manifest(20, 20), manifest(30, 20), manifest(40, 35)])
    assert [checkpoint.step for checkpoint in kept] == [20, 30, 40]


def test_a_note_beside_a_commit_is_not_lost(tmp_path: Path) -> None:
    """How an attempt ends is noted while a save is on its way; the next commit has it."""
    run = Run(tmp_path, gate="commit")
    run.checkpointer.begin()
    assert run.store.reached.wait(60)
    run.lease.note(code=7, end=AttemptEnd.STOPPED)
    run.store.open.set()
    assert run.checkpointer.is_current()
    run.step()
    run.save()
    (attempt,) = RunRecord.of(run.store.head()).attempts
    assert (attempt.code, attempt.end) == (7, AttemptEnd.STOPPED)


def test_every_commit_is_a_sign_of_life(tmp_path: Path) -> None:
    """Its time, and the longest time between two of them; a clock that is set back or forth moves
    neither back, nor makes that time longer."""
    run, wall, ticks = Run(tmp_path), [1000.0], [0.0]
    run.lease.clock, run.lease.ticks = lambda: wall[0], lambda: ticks[0]
    seen = []
    for wall[0], ticks[0] in [(1050.0, 50.0), (1060.0, 60.0), (1090.0, 90.0), (90.0, 91.0)]:
        run.save()
        run.step()
        (attempt,) = RunRecord.of(run.store.head()).attempts
        seen.append((attempt.last_seen, attempt.silence))
    assert seen == [(1050.0, 0.0), (1060.0, 10.0), (1090.0, 30.0), (1090.0, 30.0)]


def test_old_checkpoints_leave_the_disk(tmp_path: Path) -> None:
    """After many saves there are the files of two checkpoints and no others."""
    run = Run(tmp_path)
    for _ in range(6):
        run.step()
        run.save()
    named = {path for step in (5, 6) for path in run.files(step)}
    assert run.steps() == [5, 6]
    assert {path for path in (run.store.root / "objects").rglob("*") if path.is_file()} == named


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["model-0-0", "optimizer-0-0"])
def test_a_damaged_file_falls_back_to_the_checkpoint_before(
    tmp_path: Path, damage: str, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happens to a file of the newest, the one before is used, said and recorded; the step
    may be written again."""
    run = Run(tmp_path)
    run.step()
    run.save()
    before = run.values()
    run.step()
    run.save()
    newest_one = RunRecord.of(run.store.head()).checkpoints[-1]
    DAMAGE[damage](run.store.root / newest_one.files[which].copies[0])
    second = Run(tmp_path, "a2")
    head, found, paths = newest(second.store, second.lease.head)
    assert found is not None
    load(second.state, found, paths)
    assert equal(second.values(), before)
    assert head.record["rejected"] == [2]
    assert second.store.head() == head
    assert "The checkpoint of step 2 is damaged" in caplog.text
    third = Run(tmp_path, "a3")
    assert equal(restored_into(third), before)
    third.step()
    third.save()
    assert third.steps() == [1, 2]
    assert third.store.head().record["rejected"] == []
    assert equal(restored(tmp_path), run.values())


def restored_into(run: Run) -> dict[str, Tensor]:
    head, found, paths = newest(run.store, run.lease.head)
    assert found is not None
    run.lease.head, run.lease.record = head, RunRecord.of(head)
    load(run.state, found, paths)
    return run.values()


def test_if_all_are_damaged_nothing_starts(tmp_path: Path) -> None:
    """Without a whole checkpoint there is an error that names each of them, never a start from step
    0."""
    run = Run(tmp_path)
    for _ in range(2):
        run.step()
        run.save()
        (newest_one,) = RunRecord.of(run.store.head()).checkpoints[-1:]
        flip(run.store.root / newest_one.files["model-0-0"].copies[0])
    with pytest.raises(
        CheckpointCorrupt,
        match=r"Every checkpoint.*step 2: .*step 1: .*Nothing was started from step 0",
    ):
        newest(run.store, run.store.head())


def test_a_run_without_a_checkpoint_is_told_apart(tmp_path: Path) -> None:
    """No checkpoint was ever committed: that is an answer, not an error."""
    run = Run(tmp_path)
    head = run.lease.head
    assert newest(run.store, head) == (head, None, [])


def test_a_lost_lease_ends_training(tmp_path: Path) -> None:
    """Once another attempt has taken the run, the older one's save changes nothing and its next
    look raises LeaseLost."""
    first = Run(tmp_path)
    first.step()
    first.save()
    second = Run(tmp_path, "a2")
    first.step()
    first.checkpointer.begin()
    with pytest.raises(LeaseLost):
        first.checkpointer.wait()
    with pytest.raises(LeaseLost):
        first.checkpointer.check()
    assert second.steps() == [1]


def test_a_manifest_of_a_newer_xrun_is_read() -> None:
    """Keys that this version does not know change nothing of its own, and stay."""
    one = Checkpoint(
        3,
        "a",
        "d",
        1.5,
        {"step": 3},
        {"model-0-0": StoredFile("ab", 7, ("objects/a/ab",))},
        {"threads": 2},
    )
    newer = Checkpoint.from_json({**one.to_json(), "later": {"x": 1}})
    assert (replace(newer, more={}), newer.to_json()["later"]) == (one, {"x": 1})
    head = Head(
        1, "", "", "", "", "", 0.0, {"checkpoints": [manifest(5).to_json(), manifest(3).to_json()]}
    )
    assert [checkpoint.step for checkpoint in RunRecord.of(head).checkpoints] == [3, 5]
    assert RunRecord.of(None).checkpoints == ()


def test_differences_name_what_changed() -> None:
    """Only what differs is said, missing values included."""
    known = {"threads": 2, "torch": "2", "cuda": None}
    before = Checkpoint(1, environment=known, arithmetic=ARITHMETIC)
    assert before.differences({"threads": 1, "torch": "2"}) == "threads 2 -> 1"
    assert before.differences(known) == ""
    assert "arithmetic" in Checkpoint(1, environment=known, arithmetic=0).differences(known)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small filesystem needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_one_save_and_nothing_else(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without room for a save training goes on, the old checkpoint stays whole, it is said, and
    with room saves go on."""
    run = Run(small_disk, width=100)
    run.step()
    run.save()
    before = run.values()
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - 3 * 4096)  # room for a head, not for a checkpoint
    run.step()
    with caplog.at_level(logging.WARNING):
        run.save()
    assert "of step 2 failed: Disk full" in caplog.text
    assert "checkpoint.keep" not in caplog.text, "fewer than two are never kept"
    assert "Training goes on." in caplog.text
    assert run.steps() == [1]
    caplog.clear()
    run.lease.keep = Keep(last=5)
    with caplog.at_level(logging.WARNING):
        run.save(alone=True)  # by an attempt that is asked to stop
    assert "Training goes on." not in caplog.text
    assert "`-s checkpoint.keep=2` keeps fewer checkpoints." in caplog.text
    left = {path for path in (run.store.root / "objects").rglob("*") if path.is_file()}
    assert left == set(run.files(1))  # what the failed save has written takes no room
    run.step()
    filler.unlink()
    assert equal(restored(small_disk, width=100), before)


def test_saves_go_on_when_the_disk_has_room_again(small_disk: Path) -> None:
    """The same checkpointer that failed on a full disk commits its next save."""
    run = Run(small_disk, width=100)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1000 << 10))
    run.step()
    run.save()
    assert run.steps() == []
    filler.unlink()
    run.step()
    run.save()
    assert run.steps() == [2]
