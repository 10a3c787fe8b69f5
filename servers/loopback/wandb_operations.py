"""The GraphQL operations of the loopback W&B, by name. Each answers a superset of the fields that
the clients ask for."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .server import Refused
from .wandb_filters import ordered, wanted
from .wandb_runs import UPSERTED, Run, date, place

if TYPE_CHECKING:
    from .wandb import Wandb

FEATURES = ("FILESTREAM_GZIP", "MARK_RUN_FILES_UPLOADED")
"""What the server says it can do beyond the oldest one that the client knows."""


@dataclass(frozen=True)
class Query:
    """One GraphQL request of a user who is logged in."""

    server: Wandb
    user: str
    document: str
    variables: dict[str, Any]
    stale: bool = False

    def get(self, *names: str) -> Any:
        """The first of these variables that has a value."""
        return next((self.variables[name] for name in names if self.variables.get(name)), None)

    @property
    def entity(self) -> str:
        """The entity that is asked for, or else the user's own."""
        return self.get("entity", "entityName") or self.user

    @property
    def project(self) -> str:
        """The project that is asked for, or else the one for runs without any."""
        return self.get("project", "projectName") or "uncategorized"

    @property
    def run(self) -> Run | None:
        """The run that is asked for, if it exists and may be seen; a stale read sees it as it was
        before its last change."""
        name = self.get("runName", "runId", "run", "name")
        seen = self.server.may_read(self.user, self.entity)
        run = self.server.store.find(self.entity, self.project, name) if seen else None
        return run.before if run and self.stale else run

    @property
    def run_by_id(self) -> Run:
        """The run that a mutation names by its id, if it may be changed."""
        entity, project, name = place((self.get("input") or self.variables)["id"])
        self.server.check_writable(self.user, entity, project)
        if run := self.server.store.find(entity, project, name):
            return run
        raise Refused(404, f"run {entity}/{project}/{name} not found")


# What is shown of users, projects, runs and files.


def shown_user(query: Query, user: str) -> dict[str, Any]:
    teams = [
        {"node": {"id": team, "name": team, "isTeam": True}} for team in query.server.teams_of(user)
    ]
    return {
        "__typename": "User",
        "id": f"User:{user}",
        "name": user,
        "username": user,
        "entity": user,
        "email": f"{user}@localhost",
        "admin": False,
        "flags": "{}",
        "deletedAt": None,
        "apiKeys": {"edges": []},
        "teams": {"edges": teams},
        "organizations": [],
        "defaultEntity": {"name": user},
    }


def shown_project(query: Query, entity: str, project: str) -> dict[str, Any]:
    return {
        "__typename": "Project",
        "id": f"Project:{entity}/{project}",
        "internalId": "1",
        "name": project,
        "entityName": entity,
        "entity": {"id": f"Entity:{entity}", "name": entity, "organization": None},
        "createdAt": date(query.server.clock()),
        "isBenchmark": False,
        "isPublished": False,
        "readOnly": f"{entity}/{project}" in query.server.read_only,
        "tags": [],
        "description": "",
        "access": "PRIVATE",
        "views": None,
        "user": shown_user(query, query.user),
    }


def shown_run(query: Query, run: Run) -> dict[str, Any]:
    """A run. The client takes it for one that has begun if `wandbConfig` has "t", the telemetry of
    its first request."""
    own = run.config.get("_wandb", {}).get("value", {})
    told = run.attributes
    return {
        "__typename": "Run",
        "id": run.id,
        "name": run.name,
        "displayName": told.get("displayName", run.name),
        "description": told.get("description"),
        "notes": told.get("notes"),
        "tags": told.get("tags", []),
        "group": told.get("groupName"),
        "jobType": told.get("jobType"),
        "commit": told.get("commit"),
        "host": told.get("host"),
        "sweepName": told.get("sweep"),
        "state": run.state(query.server.clock()),
        "stopped": run.stopped,
        "createdAt": date(run.created),
        "heartbeatAt": date(run.heartbeat),
        "readOnly": False,
        "projectId": "1",
        "config": json.dumps(run.config),
        "wandbConfig": json.dumps({"t": own["t"]} if "t" in own else {}),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": (run.streams["events"] or ["{}"])[-1],
        "historyLineCount": len(run.streams["history"]),
        "historyTail": json.dumps(run.streams["history"][-1:]),
        "eventsLineCount": len(run.streams["events"]),
        "eventsTail": json.dumps(run.streams["events"][-1:]),
        "logLineCount": len(run.streams["output"]),
        "historyKeys": run.keys(),
        "patch": None,
        "project": shown_project(query, run.entity, run.project),
        "user": shown_user(query, query.user),
    }


def shown_files(query: Query, run: Run, names: list[str]) -> dict[str, Any]:
    files = {
        name: path
        for name, path in query.server.store.files(run).items()
        if not names or name in names
    }
    nodes = [
        {
            "id": f"File:{run.path}/{name}",
            "name": name,
            "sizeBytes": path.stat().st_size,
            "mimetype": "",
            "md5": None,
            "url": storage(query, run, name),
            "directUrl": storage(query, run, name),
            "updatedAt": date(path.stat().st_mtime),
        }
        for name, path in files.items()
    ]
    return connection(nodes)


def storage(query: Query, run: Run, name: str) -> str:
    """Where a file of a run is put and got."""
    return f"{query.server.url}/storage/{urllib.parse.quote(run.path)}/{urllib.parse.quote(name)}"


def connection(nodes: list[Any], first: int = 0, after: str | None = None) -> dict[str, Any]:
    """A page of a list in the form that GraphQL gives to all of them; a cursor is the number of
    what came before."""
    begin = int(after or 0)
    end = begin + first if first else len(nodes)
    edges = [
        {"node": node, "cursor": str(begin + i + 1)} for i, node in enumerate(nodes[begin:end])
    ]
    page = {
        "__typename": "PageInfo",
        "endCursor": str(begin + len(edges)),
        "hasNextPage": end < len(nodes),
    }
    return {"edges": edges, "pageInfo": page, "totalCount": len(nodes)}


# Users, entities, projects, the server.


def viewer(query: Query) -> dict[str, Any]:
    return {"viewer": shown_user(query, query.user)}


def server_info(query: Query) -> dict[str, Any]:
    features = [{"name": name, "isEnabled": True} for name in FEATURES]
    return {
        "serverInfo": {"features": features, "cliVersionInfo": {}, "latestLocalVersionInfo": None}
    }


def no_organization(query: Query) -> dict[str, Any]:
    return {"entity": {"organization": None}}


def project(query: Query) -> dict[str, Any]:
    name = query.variables["name"]
    seen = query.server.may_read(query.user, query.entity) and name in query.server.store.projects(
        query.entity
    )
    return {"project": shown_project(query, query.entity, name) if seen else None}


def projects(query: Query) -> dict[str, Any]:
    names = (
        query.server.store.projects(query.entity)
        if query.server.may_read(query.user, query.entity)
        else []
    )
    nodes = [shown_project(query, query.entity, name) for name in names]
    return {"models": connection(nodes, query.get("perPage") or 50, query.get("cursor"))}


def is_read_only(query: Query) -> dict[str, Any]:
    return {"project": {"readOnly": f"{query.entity}/{query.project}" in query.server.read_only}}


# Views of projects.


def view(query: Query) -> dict[str, Any]:
    """The views of this name; a project that nobody has made is none."""
    if project(query)["project"] is None:
        return {"project": None}
    found = query.server.views.get((query.entity, query.variables["name"], query.get("viewName")))
    return {"project": {"allViews": {"edges": [{"node": found}] if found else []}}}


def upsert_view(query: Query) -> dict[str, Any]:
    """Save a view. Without the id of one it is a new one, and this server has one of each name."""
    name = query.variables["name"]
    query.server.check_writable(query.user, query.entity, query.project)
    if query.project not in query.server.store.projects(query.entity):
        raise Refused(404, f"project {query.entity}/{query.project} not found")
    key = (query.entity, query.project, name)
    if key in query.server.views and not query.get("id"):
        raise Refused(409, f"there is a view {name}")
    told = {each: query.variables[each] for each in ("name", "displayName", "spec")}
    query.server.views[key] = {"id": f"View:{name}", **told}
    return {"upsertView": {"view": query.server.views[key], "inserted": not query.get("id")}}


# Runs: written.


def upsert_bucket(query: Query) -> dict[str, Any]:
    """Create or change a run. Only the mutation of a client that trains has `$commit`; its first
    one brings the run to life.

    The public API's `create_run` names a state instead, and changes nothing else of a run that
    exists.
    """
    if query.get("id"):
        run, inserted = query.run_by_id, False
    else:
        run, inserted = created(query)
    with query.server.store.changing(run):
        if "$commit" in query.document or query.get("state"):
            run.heartbeat = query.server.clock()
        if "$commit" in query.document and query.get(
            *UPSERTED
        ):  # later ones bring the configuration alone
            run.begin()
        run.upsert(query.variables)
    return {"upsertBucket": {"bucket": shown_run(query, run), "inserted": inserted}}


def created(query: Query) -> tuple[Run, bool]:
    """The run with the name that is asked for, and whether it is new."""
    query.server.check_writable(query.user, query.entity, query.project)
    place = query.entity, query.project, query.variables["name"]
    if run := query.server.store.find(*place):
        return run, False
    return query.server.store.create(*place), True


def delete_run(query: Query) -> dict[str, Any]:
    run = query.run_by_id
    query.server.delete(run.entity, run.project, run.name)
    return {"deleteRun": {"clientMutationId": None}}


def stop_run(query: Query) -> dict[str, Any]:
    run = query.run_by_id
    query.server.stop(run.entity, run.project, run.name)
    return {"stopRun": {"success": True}}


def create_run_files(query: Query) -> dict[str, Any]:
    query.server.check_writable(query.user, query.entity, query.project)
    run = query.run
    if run is None:
        return {"createRunFiles": {"runID": "", "uploadHeaders": [], "files": []}}
    files = [
        {"name": name, "uploadUrl": storage(query, run, name)} for name in query.variables["files"]
    ]
    return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}


def done(field: str) -> Callable[[Query], dict[str, Any]]:
    """An operation that there is nothing to do for."""
    return lambda query: {field: {"success": True}}


# Runs: read.


def resume_status(query: Query) -> dict[str, Any]:
    run = query.run
    shown = shown_project(query, query.entity, query.project)
    return {"model": shown | {"bucket": shown_run(query, run) if run else None}}


def one_run(query: Query) -> dict[str, Any]:
    run = query.run
    return {
        "project": shown_project(query, query.entity, query.project)
        | {"run": shown_run(query, run) if run else None}
    }


def many_runs(query: Query) -> dict[str, Any]:
    if not query.server.may_read(
        query.user, query.entity
    ) or query.project not in query.server.store.projects(query.entity):
        return {"project": None}
    condition = json.loads(query.get("filters") or "{}")
    shown = [
        shown_run(query, run) for run in query.server.store.living(query.entity, query.project)
    ]
    shown = ordered(
        [run for run in shown if wanted(run, condition)], query.get("order") or "+created_at"
    )
    page = connection(shown, query.get("perPage") or 50, query.get("cursor"))
    return {
        "project": shown_project(query, query.entity, query.project)
        | {"runCount": len(shown), "runs": page}
    }


def history(query: Query) -> dict[str, Any]:
    """Lines of the history and of the events, by step or a sample of so many."""
    run = query.run
    if run is None:
        return {"project": {"run": None}}
    low, high = query.get("minStep") or 0, query.variables.get("maxStep", float("inf"))
    rows = zip(run.rows(), run.streams["history"], strict=True)
    lines = [line for row, line in rows if low <= row.get("_step", 0) < high]
    count = query.get("samples") or len(lines)
    return {
        "project": {
            "run": {"history": spread(lines, count), "events": spread(run.streams["events"], count)}
        }
    }


def sampled_history(query: Query) -> dict[str, Any]:
    """Per specification the rows that have all of its keys, at most so many."""
    run = query.run
    specifications = [json.loads(text) for text in query.get("specs") or [query.get("spec")]]
    return {
        "project": {
            "run": run and {"sampledHistory": [sampled(run, each) for each in specifications]}
        }
    }


def sampled(run: Run, wish: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one specification; unlike the history's, its last step counts."""
    keys, low, high = (
        wish.get("keys") or [],
        wish.get("minStep", 0),
        wish.get("maxStep", float("inf")),
    )
    rows = [
        row
        for row in run.rows()
        if low <= row.get("_step", 0) <= high and all(key in row for key in keys)
    ]
    return [
        {key: row[key] for key in keys or row} for row in spread(rows, wish.get("samples") or 500)
    ]


def spread(rows: list[Any], count: int) -> list[Any]:
    """At most so many of the rows, evenly."""
    return rows if len(rows) <= count else [rows[i * len(rows) // count] for i in range(count)]


def parquet_history(query: Query) -> dict[str, Any]:
    """Nothing is exported to parquet here: all steps are live."""
    run = query.run
    live = [{"_step": row.get("_step", 0)} for row in run.rows()] if run else []
    return {"project": {"run": run and {"parquetHistory": {"parquetUrls": [], "liveData": live}}}}


def run_files(query: Query) -> dict[str, Any]:
    run = query.run
    if run is None:
        return {"project": {"internalId": "1", "run": None}}
    files = shown_files(query, run, query.get("fileNames", "files") or [])
    return {
        "project": {
            "internalId": "1",
            "run": {"fileCount": files["totalCount"], "projectId": "1", "files": files},
        }
    }


OPERATIONS: dict[str, Callable[[Query], dict[str, Any]]] = {
    "CreateRunFiles": create_run_files,
    "DeleteRun": delete_run,
    "GetDefaultEntity": viewer,
    "GetProject": project,
    "GetProjects": projects,
    "GetViewer": viewer,
    "HistoryPage": history,
    "IsProjectReadOnly": is_read_only,
    "MarkRunFilesUploaded": done("markRunFilesUploaded"),
    "NotifyScriptableRunAlert": done("notifyScriptableRunAlert"),
    "OrganizationCoreWeaveOrganizationID": no_organization,
    "QueryRunInfo": one_run,
    "Run": one_run,
    "RunFiles": run_files,
    "RunFullHistory": history,
    "RunHistoryKeys": one_run,
    "RunParquetHistory": parquet_history,
    "RunResumeStatus": resume_status,
    "RunSampledHistory": sampled_history,
    "RunState": one_run,
    "RunStoppedStatus": one_run,
    "Runs": many_runs,
    "SampledHistoryPage": sampled_history,
    "ServerFeaturesQuery": server_info,
    "ServerInfo": server_info,
    "StopRun": stop_run,
    "UpsertBucket": upsert_bucket,
    "UpsertView2": upsert_view,
    "View": view,
    "Viewer": viewer,
    "viewer": viewer,
}
"""What wandb 0.26 and 0.31 ask about runs, their files and who may see them."""
