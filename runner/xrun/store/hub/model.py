"""The finished model in a repository of the Hub: one commit on `main`, tagged with the run.

The repository may be the one of the run's state, or any other, of a run whose state is elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from ... import environment
from ...clock import now
from ...errors import StoreError
from .api import ConflictError, HubApi, MissingError, NoAnswerError, Patience
from .rate_limiter import RateLimiter


class HubModel:
    """The `Publisher` of an attempt's model in one repository."""

    def __init__(self, api: HubApi, limiter: RateLimiter, attempt: str) -> None:
        self._api, self._limiter, self._attempt = api, limiter, attempt

    @classmethod
    def elsewhere(
        cls,
        name: str,
        attempt: str,
        *,
        token: str | None = None,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], object] | None = None,
        patience: float = float(environment.HUB_PATIENCE.default),
    ) -> HubModel:
        """In a repository (`owner/name`) that has no state, as far as this attempt knows."""
        sleep = sleep or threading.Event().wait
        api = HubApi(name, token, Patience(patience, clock, sleep))
        return cls(api, RateLimiter(0.0, 1 << 30, clock, sleep), attempt)

    def publish(self, folder: Path, run: str, message: str) -> str:
        """See `Publisher`; one commit of these files on `main`, whatever else lies there. A
        repository that is not there is made, private."""
        self._limiter.wait()
        self._make()
        mark = f"Published by attempt {self._attempt}, {uuid.uuid4().hex}"
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        additions = [CommitOperationAdd(str(path.relative_to(folder)), str(path)) for path in paths]
        self._api.upload_all(additions, "main")
        revision: str = self._api.patience.tries()(self._once, additions, message, mark)
        self._api.tag(run, revision)
        return revision

    def _make(self) -> None:
        """Only the server can say that there was none: what cannot be seen may be somebody's."""
        try:
            self._api.branches()
            return
        except MissingError:
            pass
        with contextlib.suppress(ConflictError):  # or made by a request whose answer was lost
            self._api.patience.tries()(self._api.create)
        try:
            self._api.patience.tries(on=MissingError, times=5)(self._api.branches)
        except MissingError as error:
            raise StoreError(
                f"The repository {self._api.name} exists, and this token cannot see it.",
                "Use a token of its owner, or another repository: `publish: hub`.",
            ) from error

    def _once(self, additions: Sequence[CommitOperationAdd], title: str, mark: str) -> str:
        """One commit, or the one that landed although its answer was lost."""
        self._limiter.note()
        try:
            return self._api.commit("main", additions, title, mark, self._api.branches()["main"])
        except (ConflictError, NoAnswerError) as error:
            failure = error if isinstance(error, NoAnswerError) else NoAnswerError(str(error))
        landed = [commit for commit, said in self._api.titles("main") if mark in said]
        if not landed:
            raise failure
        return landed[0]
