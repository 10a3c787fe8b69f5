"""What the W&B server itself says of a run and of an account, in four questions over plain HTTPS.

The wandb library is for sending. It takes a second to import, its questions wait for days when
nobody answers, and it tells nobody that rows were refused; these come back at once, with an answer
or with the reason why there is none. The queries are the library's own, so every server that it
talks to knows them.
"""

from __future__ import annotations

import configparser
import json
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...run.plan import Plan

PUBLIC = ("https://api.wandb.ai", "https://api.forge.coreweave.com")
"""Two names of the public service; which one `wandb login` writes down depends on its version."""
KEY_LENGTH = 40
_SECONDS = 10.0

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
    model = ask(_RESUME_STATUS, address.variables).get("model") or {}
    bucket = model.get("bucket")
    if bucket is None:
        return None
    tail = json.loads(bucket.get("historyTail") or "[]") or []
    summary = json.loads(bucket.get("summaryMetrics") or "{}") or {}
    last = json.loads(tail[-1]) if tail else {}
    return RunStatus(
        bucket.get("historyLineCount") or 0, last, summary, bool(bucket.get("stopped"))
    )


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
    found = ask(_VIEWER, {}).get("viewer")
    if not found:
        raise Refused("the API key is not valid")
    edges = (found.get("teams") or {}).get("edges") or []
    return Viewer(
        found.get("entity") or found.get("username") or "",
        tuple(edge["node"]["name"] for edge in edges),
    )


def is_read_only(entity: str, project: str) -> bool:
    """Whether a project is there and takes nothing; one that is not there yet is made by its first
    run."""
    found = ask(_READ_ONLY, {"entity": entity, "project": project}).get("project")
    return bool(found and found.get("readOnly"))


def ask(query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """One GraphQL request; no answer, error or log has the key in it."""
    import requests

    if not (key := api_key()):
        raise Refused("there is no API key here")
    try:
        answer = requests.post(
            f"{base_url()}/graphql",
            json={"query": query, "variables": variables},
            auth=("api", key),
            timeout=_SECONDS,
            allow_redirects=False,
        )
        content = answer.json() if answer.status_code < 500 else {}
    except (requests.RequestException, ValueError) as error:
        raise Unreachable(f"{base_url()} does not answer ({type(error).__name__})") from error
    return _checked(answer.status_code, content if isinstance(content, dict) else {})


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
    data: dict[str, Any] = content.get("data") or {}
    return data
