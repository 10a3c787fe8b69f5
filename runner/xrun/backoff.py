"""How xrun tries again: one policy for everybody who may not answer, by tenacity."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tenacity import RetryCallState, Retrying, retry_if_exception_type

Errors = type[Exception] | tuple[type[Exception], ...]


@dataclass(frozen=True)
class Backoff:
    """The waits between tries: `first` seconds, twice as long each time, at most `longest`.

    Each is up to `spread` times longer by chance, so that many who wait for one server do not come
    back at once. An error may have an attribute `pause`, the seconds that the server has asked for:
    it is never tried again before.
    """

    first: float
    longest: float
    spread: float = 0.0

    def seconds(self, tries: int, error: BaseException | None = None) -> float:
        """How long to wait after so many tries (from 1), the last of which ended in `error`."""
        doubled = self.first * 2.0 ** min(tries - 1, 64)  # a float ends at 2 to the 1024
        wait = min(self.longest, doubled) * random.uniform(1, 1 + self.spread)
        return max(wait, getattr(error, "pause", 0.0))

    def tries(
        self,
        on: Errors,
        *,
        end: float | None = None,
        times: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        before: Callable[[BaseException], None] = lambda error: None,
    ) -> Retrying:
        """`tries(...)(function, *arguments)` calls the function again after each of these errors,
        until it does not raise.

        The last error is raised when the next try would begin after `end`, by this clock, after so
        many `times`, or if `sleep` returns True. `before` hears of each error before the
        wait.
        """
        errors: list[BaseException] = []

        def wait(state: RetryCallState) -> float:
            return self.seconds(state.attempt_number, _error_of(state))

        def stop(state: RetryCallState) -> bool:
            late = end is not None and clock() + state.upcoming_sleep > end
            return late or (times is not None and state.attempt_number >= times)

        def hear(state: RetryCallState) -> None:
            errors.append(_error_of(state))
            before(errors[-1])

        def pause(seconds: float) -> None:
            if sleep(seconds):
                raise errors[-1]

        return Retrying(
            retry=retry_if_exception_type(on),
            wait=wait,
            stop=stop,
            before_sleep=hear,
            sleep=pause,
            reraise=True,
        )


def _error_of(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None, "only errors are tried again"
    return error
