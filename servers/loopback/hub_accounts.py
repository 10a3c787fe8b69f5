"""Who asks the loopback Hub, and what they may do: users, organisations, tokens' roles, gated
repositories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from .hub_repository import Repository
from .server import Refused, Request, Server

READ, WRITE = "repo.content.read", "repo.write"


class Accounts(Server):
    """`users`: user -> token; None takes the token `hf_NAME` for any NAME.

    Everything else may be changed at any time: `organisations`: name -> its members, who may read
    and write everything there. `read_only`: users whose token has the role "read". `fine_grained`:
    user -> what the token may do, namespace or repository -> `repo.content.read`, `repo.write`.
    `granted`: gated repository -> users who were given access besides those of its namespace.
    """

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.users = dict(users) if users is not None else None
        self.organisations: dict[str, set[str]] = {}
        self.read_only: set[str] = set()
        self.fine_grained: dict[str, dict[str, list[str]]] = {}
        self.granted: dict[str, set[str]] = {}

    def token(self, user: str) -> str:
        """A user's token."""
        return self.users[user] if self.users else f"hf_{user}"

    def user_of(self, request: Request) -> str:
        """Who asks, "" for a request without a token; 401 for a token that nobody has."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        known = (
            {token: name for name, token in self.users.items()}
            if self.users
            else {token: token.removeprefix("hf_")}
        )
        if token and (token not in known or not token.startswith("hf_")):
            raise Refused(401, "Invalid credentials in Authorization header")
        return known.get(token, "")

    def signed_in(self, request: Request) -> str:
        """Who asks; 401 for nobody."""
        if user := self.user_of(request):
            return user
        raise Refused(401, "Invalid username or password.")

    def belongs(self, user: str, owner: str) -> bool:
        """True if a namespace is the user's own or of an organisation with the user."""
        return bool(user) and (user == owner or user in self.organisations.get(owner, ()))

    def scoped(self, user: str, repo_id: str, permission: str) -> bool:
        """True if the user's token is not fine-grained, or has this permission there."""
        scopes = self.fine_grained.get(user)
        owner = repo_id.partition("/")[0]
        return scopes is None or any(
            permission in scopes.get(entity, ()) for entity in (owner, repo_id)
        )

    def may_see(self, request: Request, repo_id: str, private: bool) -> None:
        """404 unless the repository is public or the user's; without a token 401, as the service
        does."""
        user = self.user_of(request)
        if private and not (
            self.belongs(user, repo_id.partition("/")[0]) and self.scoped(user, repo_id, READ)
        ):
            raise Refused(
                404 if user else 401, "Repository not found", {"X-Error-Code": "RepoNotFound"}
            )

    def may_read(self, request: Request, repository: Repository) -> None:
        """403 for the files of a gated repository unless the user was given access."""
        user = self.user_of(request)
        free = not repository.settings()["gated"] or self.belongs(user, repository.owner)
        if not free and user not in self.granted.get(repository.id, ()):
            message = (
                f"Access to {repository.kind} {repository.id} is restricted and you are not in the"
                " authorized list."
            )
            raise Refused(403 if user else 401, message, {"X-Error-Code": "GatedRepo"})

    def may_write(self, request: Request, repo_id: str) -> None:
        """403 unless the namespace is the user's and the token may write there."""
        user = self.signed_in(request)
        if not self.belongs(user, repo_id.partition("/")[0]):
            raise Refused(403, f"You don't have the rights to write to {repo_id}")
        if user in self.read_only or not self.scoped(user, repo_id, WRITE):
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")

    def role(self, user: str) -> dict[str, Any]:
        """What `whoami` says of the user's token."""
        if user not in self.fine_grained:
            return {"role": "read" if user in self.read_only else "write"}
        scoped = [
            {
                "entity": {"_id": name, "type": self.entity(name), "name": name},
                "permissions": permissions,
            }
            for name, permissions in self.fine_grained[user].items()
        ]
        return {
            "role": "fineGrained",
            "fineGrained": {"global": [], "scoped": scoped, "canReadGatedRepos": True},
        }

    def entity(self, name: str) -> str:
        """What a fine-grained token's permission is for."""
        return "model" if "/" in name else "org" if name in self.organisations else "user"


def whoami(hub: Accounts, request: Request) -> Response:
    """The token's user, organisations and role."""
    user = hub.signed_in(request)
    organisations = [
        {
            "type": "org",
            "id": name,
            "name": name,
            "fullname": name,
            "isEnterprise": False,
            "roleInOrg": "write",
        }
        for name, members in hub.organisations.items()
        if user in members
    ]
    token = {"displayName": "test", "createdAt": "2025-01-01T00:00:00.000Z", **hub.role(user)}
    return JSONResponse(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "email": f"{user}@localhost",
            "isPro": False,
            "orgs": organisations,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )
