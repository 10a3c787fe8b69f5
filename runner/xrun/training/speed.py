"""How fast a run trains, as it stands beside the loss: what a step takes, what the device does.

These values tell of the machine and not of the mathematics, so they have names of their own
(`speed/...`) that no comparison of two runs looks at (`points.reproducible`). They go along with
the training points that are logged anyway, as means over the steps since they were told last, which
are at least a second of training: so they cost a step two looks at the clock.

| name | meaning |
|---|---|
| `speed/samples_per_second` | samples of the global batch, on all processes together |
| `speed/tokens_per_second` | language modeling: labels that the loss is a mean over, likewise |
| `speed/step_seconds` | a step from asking for its data to its end; no evaluation, no save |
| `speed/data_wait_seconds` | of that, what the first process waited for its data, or its GPU did |
| `speed/mfu` | model FLOPs per second, as a fraction of the peak of all devices |
| `speed/memory_gib` | the first process's peak so far: tensors on its GPU, else its resident set |
| `speed/gpu_utilization` | per cent of time with a kernel on its GPU, as NVML says, each 10 s |
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..run.points import SPEED

_TOLD_SECONDS = 1.0
"""Steps that take less together are told with the next ones."""
_ASK_SECONDS = 10.0
"""Between two questions to NVML, which may take its time."""
_CPU = torch.device("cpu")


@dataclass
class Speed:
    """Measures one process's steps. `flops` are what the model computes for one sample, forward and
    backward, and `peak` what all devices could per second; 0 where that is not known. Of a loss
    over `tokens`, tokens are told as well."""

    device: torch.device = _CPU
    tokens: bool = False
    flops: float = 0.0
    peak: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    _began: float = 0.0
    _totals: list[float] = field(default_factory=lambda: [0.0] * 5)
    """Seconds, seconds of waiting, steps, samples, tokens since the last time."""
    _asked: float = -_ASK_SECONDS
    _utilization: float | None = None
    _has_nvml: bool = True

    def begin(self) -> None:
        """A step asks for its data."""
        self._began = self.clock()

    def fetched(self) -> None:
        """It has them."""
        self._totals[1] += self.clock() - self._began

    def looked_ahead(self, look: Callable[[], None]) -> None:
        """The next step's data are fetched while the device computes; if it has nothing more to do
        then, it has waited for them."""
        began = self.clock()
        look()
        if self.device.type != "cuda" or torch.cuda.current_stream(self.device).query():
            self._totals[1] += self.clock() - began

    def stepped(self, samples: int, count: float) -> None:
        """It has been done, on so many samples; its loss is a mean over `count`."""
        totals = self._totals
        totals[0] += self.clock() - self._began
        totals[2] += 1
        totals[3] += samples
        totals[4] += count

    def values(self, last: bool) -> dict[str, float]:
        """What goes along with a point; nothing where it would be about less than a second, unless
        it is the `last` point."""
        seconds, waited, steps, samples, tokens = self._totals
        if not seconds or (seconds < _TOLD_SECONDS and not last):
            return {}
        self._totals = [0.0] * 5
        found = {"samples_per_second": samples / seconds}
        if self.tokens:
            found["tokens_per_second"] = tokens / seconds
        found |= {"step_seconds": seconds / steps, "data_wait_seconds": waited / steps}
        if self.flops and self.peak:
            found["mfu"] = self.flops * samples / seconds / self.peak
        found["memory_gib"] = peak_memory(self.device) / 2**30
        if (utilization := self._gpu()) is not None:
            found["gpu_utilization"] = utilization
        return {f"{SPEED}{name}": float(f"{value:.6g}") for name, value in found.items()}

    def _gpu(self) -> float | None:
        """What NVML has last said; None where it is not there."""
        now = self.clock()
        if self.device.type == "cuda" and self._has_nvml and now - self._asked >= _ASK_SECONDS:
            self._asked = now
            try:
                self._utilization = float(torch.cuda.utilization(self.device))
            except Exception:  # the library or the driver is not there, or has troubles of its own
                self._has_nvml, self._utilization = False, None
        return self._utilization


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has used so far: tensors on its GPU, else its resident
    set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
