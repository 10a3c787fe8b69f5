"""What this process asks of the Hugging Face Hub, by whatever library: every name that moves is
answered by one commit, the run's where it has one, else the one that it was at the first question.

It is done where all of it passes, in the HTTP client that huggingface_hub lets programs choose.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ..errors import CheckpointError
from ..run.locked import asked
from ..store.hub.watching import watch_clients

_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEY = "xrun.asked"
_SECONDS = 5.0
"""For the question where a branch is now, which nothing waits for."""
_REPOSITORY = r"(?P<name>[^/?]+(?:/[^/?]+)?)"
_INFO = re.compile(rf"/api/(?P<kind>model|dataset|space)s/{_REPOSITORY}(?P<rest>\?.*)?")
_AT = re.compile(
    rf"/api/(?P<kind>model|dataset|space)s/{_REPOSITORY}"
    r"/(?:revision|tree|paths-info|xet-read-token)/(?P<revision>[^/?]+)(?P<rest>.*)"
)
_FILE = re.compile(
    rf"/(?:(?P<kind>dataset|space)s/)?{_REPOSITORY}/resolve/(?P<revision>[^/?]+)(?P<rest>/.*)"
)


@dataclass(frozen=True)
class _Asked:
    """What a path asks for: the name as a lock has it, and the same path at a commit."""

    name: str
    at: Callable[[str], str]


def read(path: str) -> _Asked | None:
    """What a path of a Hub asks for, where it names a revision that may move, or none."""
    if found := _INFO.fullmatch(path):
        base, rest = path.partition("?")[0], found["rest"] or ""
        name = asked(found["kind"], found["name"], None)
        return _Asked(name, lambda commit: f"{base}/revision/{commit}{rest}")
    found = _AT.fullmatch(path) or _FILE.fullmatch(path)
    if found is None or _COMMIT.fullmatch(found["revision"]):
        return None
    before, after = path[: found.start("revision")], path[found.end("revision") :]
    name = asked(found["kind"] or "model", found["name"], unquote(found["revision"]))
    return _Asked(name, lambda commit: f"{before}{commit}{after}")


@dataclass
class HubRevisions:
    """`commits` by the names of a lock: those of the run, and those that are added by what is asked
    for. Nothing is done about the repositories `own`, where the run's state is."""

    commits: dict[str, str]
    own: frozenset[str] = frozenset()
    told: dict[str, str] = field(default_factory=dict)
    """Where names lead today, as people were told by this attempt."""
    _given: dict[str, str] = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._given = dict(self.commits)

    def now(self) -> Mapping[str, str]:
        """What was asked for so far, the run's own included."""
        with self._lock:
            return dict(self.commits)

    def use(self) -> None:
        """From now on, in this process and those that it forks."""
        watch_clients(self.watch)

    @property
    def is_offline(self) -> bool:
        """Whether nothing is asked, because the Hub is to be left alone."""
        from huggingface_hub import constants

        return bool(constants.is_offline_mode())

    def taken_offline(self, text: str) -> None:
        """What the cache on the disk says that was taken: of the repositories that are named in
        this text, which is the recipe and its components.

        Raises:
            CheckpointError: it has another commit than the run's.
        """
        from huggingface_hub import constants

        for name, commit in _cached(Path(constants.HF_HUB_CACHE), text):
            if self._given.get(name, commit) != commit:
                raise _elsewhere(name, self._given[name], commit)
            self.commits.setdefault(name, commit)

    def moved(self) -> dict[str, str]:
        """Where the run's names lead today, of those that lead elsewhere than to its commits; a Hub
        that does not answer is no obstacle."""
        return {
            name: now
            for name, commit in self._given.items()
            if (now := _newest(name)) not in ("", commit)
        }

    def watch(self, client: Any) -> Any:
        """The client, whose questions to the Hub are answered by commits."""
        from huggingface_hub import constants

        endpoint = constants.ENDPOINT
        client.event_hooks["request"].append(lambda request: self._ask(request, endpoint))
        client.event_hooks["response"].append(self._hear)
        return client

    def _ask(self, request: Any, endpoint: str) -> None:
        start, own = f"{endpoint.rstrip('/')}/", str(request.url)
        if not own.startswith(start) or request.method not in ("GET", "HEAD", "POST"):
            return
        meant = read(own[len(start) - 1 :])
        if meant is None or meant.name.partition("/")[2].partition("@")[0] in self.own:
            return
        request.extensions[_KEY] = meant.name
        if commit := self.now().get(meant.name):
            request.url = type(request.url)(start[:-1] + meant.at(commit))

    def _hear(self, response: Any) -> None:
        name = response.request.extensions.get(_KEY)
        if name is None:
            return
        code = response.headers.get("X-Error-Code")
        if code == "RevisionNotFound" and name in self._given:
            raise _vanished(name, self._given[name])
        if response.status_code < 400 and (commit := _commit_of(response)):
            with self._lock:
                self.commits.setdefault(name, commit)


def _commit_of(response: Any) -> str:
    """Which commit an answer is of; "" if it does not say."""
    if commit := response.headers.get("X-Repo-Commit"):
        return str(commit)
    info = str(response.request.url.path)
    if response.status_code != 200 or not (_INFO.fullmatch(info) or "/revision/" in info):
        return ""
    response.read()
    told = response.json()
    return str(told.get("sha") or "") if isinstance(told, dict) else ""


def _vanished(name: str, commit: str) -> CheckpointError:
    where, _, revision = name.partition("@")
    return CheckpointError(
        f"The commit {commit} of {where} ({revision} when the run began) is no longer on the Hub,"
        " so the run cannot go on with what it was made from.",
        "Bring the commit back, or begin another run with --again.",
    )


def _elsewhere(name: str, commit: str, cached: str) -> CheckpointError:
    return CheckpointError(
        f"The Hub's cache on this machine has {name} at {cached[:12]}, and the run was made from"
        f" {commit[:12]}.",
        "Unset HF_HUB_OFFLINE so that the run's own commit is taken.",
    )


def _cached(cache: Path, text: str) -> Iterator[tuple[str, str]]:
    """What the cache's branches and tags were when they were last asked for."""
    for folder in cache.glob("*--*"):
        kind, _, name = folder.name.partition("--")
        repository = name.replace("--", "/")
        for ref in sorted(folder.glob("refs/**/*")) if repository in text else ():
            if ref.is_file():
                revision = ref.relative_to(folder / "refs").as_posix()
                yield asked(kind.removesuffix("s"), repository, revision), ref.read_text().strip()


def _newest(name: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    from ..store.hub.client import plain_client

    where, _, revision = name.partition("@")
    address = f"{constants.ENDPOINT}/api/{where}/revision/{quote(revision, safe='')}"
    with contextlib.suppress(Exception), plain_client() as client:
        told = client.get(address, headers=build_hf_headers(), timeout=_SECONDS).json()
        return str(told.get("sha") or "")
    return ""
