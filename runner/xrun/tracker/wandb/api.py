"""What the W&B server itself says of a run and of an account, in four questions over plain HTTPS.

The wandb library is for sending. It takes a second to import, its questions wait for days when
nobody answers, and it tells nobody that rows were refused; these come back at once, with an answer
or with the reason why there is none. The queries are the library's own, so every server that it
talks to knows them.
"""

from __future__ import annotations

import configparser
import netrc
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...files import parsed
from ...run.plan import Plan

PUBLIC = ("https://api.wandb.ai", "https://api.forge.coreweave.com")
"""Two names of the public service; which one `wandb login` writes down depends on its version."""
KEY_LENGTH = 40
_STEPS = {"_step", "train/step", "xrun/commit_step"}
"""What of a run's last row and summary is a step."""
_SECONDS = 10.0
"""Seconds until an answer begins, and between its bytes."""
_WHOLE_SECONDS, _LARGEST = 20.0, 64 << 20
"""Seconds and bytes of a whole answer."""

_RESUME_STATUS = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
    model(name: $project, entityName: $entity) {
        name
        entity { name }
        bucket(name: $name, missingOk: true) {
            name historyLineCount historyTail summaryMetrics stopped
        }
    }
}
"""
_UPSERT_BUCKET = """
mutation UpsertBucket($project: String, $entity: String, $name: String!) {
    upsertBucket(input: {modelName: $project, entityName: $entity, name: $name}) {
        bucket { name } inserted
    }
}
"""
_VIEWER = "query Viewer { viewer { entity username teams { edges { node { name } } } } }"
_READ_ONLY = """
query IsProjectReadOnly($entity: String!, $project: String!) {
    project(entityName: $entity, name: $project) { readOnly }
}
"""


def run_url(address: RunPath) -> str:
    """Where people see a run: the public service shows its pages at another host than it is asked
    at."""
    host = "https://wandb.ai" if base_url() in PUBLIC else base_url()
    return f"{host}/{address.entity}/{address.project}/runs/{address.run}"


class Unreachable(Exception):
    """The server does not answer, or not now."""


class Refused(Exception):
    """The server answers and does not do it: a wrong key, no permission."""


class Deleted(Exception):
    """The run was there once and was deleted; its id cannot be used again."""


@dataclass(frozen=True)
class RunPath:
    """Where a run is: an empty entity is the default one of whoever has the key."""

    entity: str
    project: str
    run: str

    @classmethod
    def of(cls, plan: Plan, environ: Mapping[str, str] = os.environ) -> RunPath:
        """The address of a plan's run, whose recipe has `tracking.wandb`."""
        told = plan.wandb
        assert told is not None
        return cls(told.entity or environ.get("WANDB_ENTITY") or "", told.project, plan.run)

    @property
    def variables(self) -> dict[str, str | None]:
        """As the queries want it."""
        return {"entity": self.entity or None, "project": self.project, "name": self.run}


@dataclass(frozen=True)
class RunStatus:
    """What the server has of a run: how many rows, the last one, the summary, whether somebody has
    pressed its stop button."""

    rows: int
    last: Mapping[str, Any]
    summary: Mapping[str, Any]
    stopped: bool

    @property
    def next_step(self) -> int:
        """`_step` of the next row, as a client that resumes the run counts."""
        return int(self.last["_step"]) + 1 if "_step" in self.last else 0


@dataclass(frozen=True)
class Viewer:
    """Whose key it is."""

    entity: str
    teams: tuple[str, ...] = field(default=())


def base_url(environ: Mapping[str, str] = os.environ) -> str:
    """The server that this machine uses: from the environment, else what `wandb login --host` has
    written down."""
    config = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings"
    written = configparser.ConfigParser(interpolation=None)
    try:
        written.read(config)
    except (configparser.Error, OSError):
        written.clear()
    url = (
        environ.get("WANDB_BASE_URL")
        or written.get("default", "base_url", fallback="")
        or PUBLIC[0]
    )
    return url.rstrip("/")


def api_key(environ: Mapping[str, str] = os.environ) -> str:
    """The key for that server, from the environment or from where `wandb login` keeps it; "" if
    there is none."""
    if key := environ.get("WANDB_API_KEY", "").strip():
        return key
    path = Path(environ.get("NETRC") or "~/.netrc").expanduser()
    url = base_url(environ)
    try:
        entries = netrc.netrc(path) if path.is_file() else None
    except (netrc.NetrcParseError, OSError):
        return ""
    hosts = [urlsplit(each).netloc for each in (PUBLIC if url in PUBLIC else (url,))]
    found = (entries.authenticators(host) for host in hosts) if entries else ()
    return next((entry[2] for entry in found if entry and entry[2]), "")


def run_status(address: RunPath) -> RunStatus | None:
    """Return what the server has of a run; None if there is no such run.

    Raises:
        Unreachable: it does not answer.
        Refused: the key is not valid, or not for this.
    """
    data = ask(_RESUME_STATUS, address.variables)
    try:
        return _status_in(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _not_wandb(error) from error


def _status_in(data: Mapping[str, Any]) -> RunStatus | None:
    """What an answer says of a run; nothing at all is no word that there is none."""
    bucket = (data["model"] or {}).get("bucket")
    if bucket is None:
        return None
    tail = parsed(bucket.get("historyTail") or "[]") or []
    summary = parsed(bucket.get("summaryMetrics") or "{}") or {}
    last = parsed(tail[-1]) if tail else {}
    for values in (dict(last), dict(summary)):
        for name in _STEPS & values.keys():
            int(values[name])  # as whoever asks will read it
    rows = int(bucket.get("historyLineCount") or 0)
    return RunStatus(rows, dict(last), dict(summary), bool(bucket.get("stopped")))


def create_run(address: RunPath) -> None:
    """Make an empty run.

    Raises:
        Deleted: its id was used before.
        Unreachable: the server does not answer.
        Refused: this key may not write there.
    """
    ask(_UPSERT_BUCKET, address.variables)


def viewer() -> Viewer:
    """Return whose key it is.

    Raises:
        Unreachable: the server does not answer.
        Refused: the key is not valid.
    """
    data = ask(_VIEWER, {})
    try:
        found = data["viewer"] or None
        edges = ((found or {}).get("teams") or {}).get("edges") or []
        teams = tuple(str(edge["node"]["name"]) for edge in edges)
        entity = str((found or {}).get("entity") or (found or {}).get("username") or "")
    except (TypeError, KeyError, AttributeError) as error:
        raise _not_wandb(error) from error
    if found is None:
        raise Refused("the API key is not valid")
    return Viewer(entity, teams)


def is_read_only(entity: str, project: str) -> bool:
    """Whether a project is there and takes nothing; one that is not there yet is made by its first
    run."""
    found = ask(_READ_ONLY, {"entity": entity, "project": project}).get("project")
    return isinstance(found, dict) and bool(found.get("readOnly"))


def ask(query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """One GraphQL request; no answer, error or log has the key in it."""
    if not (key := api_key()):
        raise Refused("there is no API key here")
    status, text = _post({"query": query, "variables": variables}, key)
    try:
        content = parsed(text) if status < 500 else {}
        return _checked(status, content if isinstance(content, dict) else {})
    except (ValueError, TypeError) as error:
        raise _not_wandb(error) from error


def _post(asked: Mapping[str, Any], key: str) -> tuple[int, bytes]:
    """Status and body of an answer that comes within `_WHOLE_SECONDS`, its headers included, and is
    no larger than `_LARGEST`.

    Asked by a thread, since nothing else ends headers that come a byte at a time; one that is given
    up ends with the process.
    """
    answers: queue.Queue[tuple[int, bytes] | Exception] = queue.Queue()

    def ask_now() -> None:
        try:
            answers.put(_answered(asked, key))
        except Exception as error:  # for whoever waits
            answers.put(error)

    threading.Thread(target=ask_now, name="xrun-wandb-ask", daemon=True).start()
    try:
        answer = answers.get(timeout=_WHOLE_SECONDS)
    except queue.Empty:
        answer = TimeoutError()
    if isinstance(answer, Exception):
        raise Unreachable(f"{base_url()} does not answer ({type(answer).__name__})") from answer
    return answer


def _answered(asked: Mapping[str, Any], key: str) -> tuple[int, bytes]:
    """The key goes to the server that is meant, and nowhere else."""
    import requests

    with requests.post(
        f"{base_url()}/graphql",
        json=asked,
        auth=("api", key),
        headers={"Accept-Encoding": "identity"},
        timeout=_SECONDS,
        allow_redirects=False,
        stream=True,
    ) as answer:
        return answer.status_code, b"".join(_pieces(answer))


def _pieces(answer: Any) -> Iterator[bytes]:
    if answer.headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise ValueError("compressed, which nobody asked for")
    size = 0
    for piece in answer.iter_content(65536):
        size += len(piece)
        if size > _LARGEST:
            raise ValueError("too large")
        yield piece


def _not_wandb(error: Exception) -> Unreachable:
    return Unreachable(
        f"what answers at {base_url()} is not Weights & Biases ({type(error).__name__})"
    )


def _checked(status: int, content: dict[str, Any]) -> dict[str, Any]:
    """The data of an answer, or what it means that there are none."""
    said = "; ".join(
        str(error.get("message", ""))
        for error in content.get("errors") or []
        if isinstance(error, dict)
    )
    if "previously created and deleted" in said or status == 410:
        raise Deleted(said)
    if status == 401:
        raise Refused("the API key is not valid")
    if status in (403, 404) or (said and status in (200, 400, 409, 422)):
        raise Refused(said or f"HTTP {status}")
    if status != 200:
        raise Unreachable(f"{base_url()} answers HTTP {status}")
    data = content.get("data")
    if not isinstance(data, dict):
        raise ValueError("it has no data")
    return data
