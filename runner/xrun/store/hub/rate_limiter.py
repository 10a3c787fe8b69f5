"""`RateLimiter`: how often the Hub takes a commit of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ...clock import now
from ...errors import StoreError


class RateLimiter:
    """At most one commit per `spacing` seconds and `hourly` an hour, over all attempts of the run
    and their machines."""

    def __init__(
        self,
        spacing: float,
        hourly: int,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.spacing, self.hourly, self.clock, self.sleep = spacing, max(1, hourly), clock, sleep
        self._times: set[float] = set()
        self._heard: set[float] = set()
        """What others have said last, as they said it."""

    def learn(self, times: Sequence[float]) -> None:
        """Others have committed at these times; where their clock is ahead of ours, the newest was
        now."""
        news, self._heard = set(times) - self._heard, set(times)
        ahead = max(0.0, max(news, default=0.0) - self.clock())
        self._times |= {time - ahead for time in news}

    def note(self) -> None:
        """A commit was made, or may have been."""
        self._times.add(self.clock())

    def recent(self) -> tuple[float, ...]:
        """The times that still count, oldest first."""
        hour_ago = self.clock() - 3600
        self._times = {time for time in self._times if time > hour_ago}
        return tuple(sorted(self._times))[-self.hourly :]

    def delay(self) -> float:
        """Seconds until the next commit."""
        times, now = self.recent(), self.clock()
        after_last = times[-1] + self.spacing - now if times else 0.0
        after_hour = times[0] + 3600 - now if len(times) >= self.hourly else 0.0
        return max(0.0, after_last, after_hour)

    def wait(self) -> None:
        """Wait until the next commit may be made; raises `StoreError` if the sleep gives up."""
        while (delay := self.delay()) > 0:
            if self.sleep(delay):
                raise StoreError(
                    f"Not committed: the Hub takes the next commit in {delay:.0f} s, which is too"
                    " late."
                )
