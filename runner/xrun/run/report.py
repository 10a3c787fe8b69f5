"""What is known of a run, for `status` and `report`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from .record import AttemptRecord


def speed_words(speed: Mapping[str, float]) -> Iterator[str]:
    """What a run's speed is, for people: rates, and what the device does meanwhile."""
    for name, unit in (("samples_per_second", "samples/s"), ("tokens_per_second", "tokens/s")):
        if name in speed:
            yield f"{_three_digits(speed[name])} {unit}"
    if "mfu" in speed:
        yield f"{100 * speed['mfu']:.1f} % MFU"
    if "memory_gib" in speed:
        yield f"{speed['memory_gib']:.3g} GiB"
    if "gpu_utilization" in speed:
        yield f"GPU {speed['gpu_utilization']:.0f} %"
    step, waited = speed.get("step_seconds", 0.0), speed.get("data_wait_seconds", 0.0)
    if step and waited >= 0.01 * step:
        yield f"{100 * waited / step:.0f} % waiting for data"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class RunReport:
    """Everything that is known of a run; of an `unreadable` one only the `error`.

    `status` is `running`, `finished`, `failed` (it will not go on by itself), `stopped` (the same
    command goes on) or `unreadable`, and on a cloud SkyPilot's word for the job while it lives.
    `step` is the newest kept checkpoint's, `committed` when it was (seconds since 1970),
    `logged_step` the newest logged point's. `speed` is what `training/speed.py` names, the newest.
    `export_failed` is why a finished run has no model, or one that is not published.
    """

    run: str
    folder: str
    status: str
    step: int | None = None
    logged_step: int | None = None
    checkpoints: tuple[int, ...] = ()
    committed: float | None = None
    rejected: tuple[int, ...] = ()
    exact: bool = True
    attempts: tuple[AttemptRecord, ...] = ()
    steps_recomputed: int = 0
    seconds_lost: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    speed: Mapping[str, float] = field(default_factory=dict)
    weights_sha256: str | None = None
    model: str | None = None
    export_failed: str | None = None
    error: str = ""

    @property
    def knows_what_was_lost(self) -> bool:
        """Whether the numbers of what was lost are whole: what a machine had computed that has gone
        with its log, nobody knows."""
        return all(
            after.steps_recomputed is not None
            for before, after in pairwise(self.attempts)
            if before.was_lost
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        if self.error:
            told = {"run": self.run, "status": self.status, "error": self.error}
            return {**told, "folder": self.folder}
        told = {name: value for name, value in asdict(self).items() if name != "error"}
        lists = {"checkpoints": list(self.checkpoints), "rejected": list(self.rejected)}
        return {**told, **lists, "attempts": [attempt.to_json() for attempt in self.attempts]}
