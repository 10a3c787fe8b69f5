"""The head of a run as commits on the branch `state` of a repository on the Hub.

The file head.json is one line of canonical JSON (`commits.py`) with its own BLAKE3 in it, so that
an edited one is not believed. The server's `parent_commit` is the compare-and-swap. Its answer can
be lost after the commit has landed, and what is read can be old; so after any error the branch is
read, and only what it shows decides: this attempt's own commit, another attempt's, or still the one
before, and then the same commit is sent again. An old answer costs a try more and nothing else.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from ...errors import CheckpointCorrupt, StoreError
from ..directory.commits import head_of, line_of
from ..protocol import Head
from .api import ConflictError, HubApi, MissingError, NoAnswerError, Operation, small
from .rate_limiter import RateLimiter

BRANCH = "state"
HEAD = "head.json"
CLAIM = "claim.json"
"""Written by who finds the branch without any commit of a run: if that succeeds, nothing was
overlooked."""
LOOKED_BACK = 32
"""Commits that are read when the newest one is damaged."""
_TITLE = re.compile(r"Commit (\d+) of ")


@dataclass(frozen=True)
class Tip:
    """The branch as it was read: its commit, the newest valid head, and the commit that was found
    in.

    `highest` is the highest number seen, valid or not.
    """

    commit: str
    head: Head | None = None
    found_in: str = ""
    highest: int = 0

    @property
    def id(self) -> str:
        """The head's id; "" without one."""
        return self.head.id if self.head else ""


class TakenError(Exception):
    """Another attempt's commit is the head: `head`."""

    def __init__(self, head: Head | None) -> None:
        super().__init__()
        self.head = head


class StateBranch:
    """The branch `state`, read and advanced for one run. `files` says whether the run has files
    that are not in the branch."""

    def __init__(
        self, api: HubApi, run: str, limiter: RateLimiter, files: Callable[[], bool]
    ) -> None:
        self.api, self.run, self.limiter = api, run, limiter
        self._files_elsewhere = files
        self.damaged: list[str] = []
        self.sent: set[str] = set()
        """Ids of own commits that may have landed, since the last one that certainly has."""
        self._made_here = False

    def look(self) -> Tip:
        """Read the branch, made where it is not there; no head in it is certain. Raises what
        `Store.head` raises."""
        return self.api.patience.tries()(self._look)

    def _look(self) -> Tip:
        try:
            tip = self._read(self._commit())
            return tip if tip.head else self._proven(tip)
        except ConflictError as error:
            raise self._unsure(error) from error

    def look_if_there(self) -> Tip | None:
        """Read the branch and make nothing; None if there is no repository, no branch, or no
        head."""
        try:
            commit = self.api.branches().get(BRANCH)
            tip = self._read(commit) if commit else None
        except MissingError:
            return None
        except ConflictError as error:
            raise self._unsure(error) from error
        return tip if tip and tip.head else None

    def advance(
        self, tip: Tip, line: Callable[[Tip], bytes], changes: Callable[[Tip], list[Operation]]
    ) -> Tip:
        """Commit what `line` makes of the tip as its successor, with these changes of other files.

        Raises:
            TakenError: another attempt was first.
            StoreUnavailable: nobody can tell; the commit may land later.
            StoreError: nothing was committed.
        """
        self.limiter.wait()
        text, end = line(tip), self.api.patience.end()

        def once() -> Tip:
            nonlocal tip, text
            try:
                return self._send(tip, text, changes(tip))
            except (ConflictError, NoAnswerError) as error:
                failure = self._unsure(error)
            if failure.refused:
                raise failure
            now = self.look_again(end)
            if now.id == head_of(text).id:
                return self._landed(now)
            if 0 < now.highest < tip.highest:  # an old answer
                raise failure
            if now.id != tip.id and now.id not in self.sent:
                raise TakenError(now.head)
            text, tip = (text if now.id == tip.id else line(now)), now
            raise failure

        return self.api.patience.tries(end)(once)

    def _send(self, tip: Tip, text: bytes, changes: list[Operation]) -> Tip:
        head = head_of(text)
        title, who = (
            title_of(head.number, self.run),
            f"Attempt {head.attempt} of {head.owner}",
        )
        operations = [*changes, small(HEAD, text + b"\n")]
        self.sent.add(head.id)
        self.limiter.note()
        try:
            commit = self.api.commit(BRANCH, operations, title, who, tip.commit)
        except MissingError as error:
            raise StoreError(
                f"Nothing was committed at {self.api.where}: {error} any more."
            ) from error
        return self._landed(Tip(commit, head, commit, head.number))

    def _landed(self, tip: Tip) -> Tip:
        self.sent.clear()
        return tip

    def look_again(self, end: float | None = None) -> Tip:
        """Read the branch in the middle of a run, until `end`: nothing is made, and that it is gone
        is not believed at once."""
        return self.api.patience.tries(end)(self._look_again)

    def _look_again(self) -> Tip:
        try:
            commit = self.api.branches().get(BRANCH)
            if commit is not None:
                return self._read(commit)
        except (MissingError, ConflictError) as error:
            raise self._unsure(error) from error
        raise NoAnswerError(f"The branch {BRANCH} at {self.api.where} is gone.")

    def _unsure(self, error: Exception) -> NoAnswerError:
        if isinstance(error, NoAnswerError):
            return error
        return NoAnswerError(
            f"Cannot tell what is committed at {self.api.where}: {str(error).rstrip('.')}."
        )

    def _commit(self) -> str:
        """The branch's commit; the repository and the branch are made if they are not there."""
        try:
            branches = self.api.branches()
        except MissingError:
            self._create_repository()
            branches = self._branches()
        if BRANCH not in branches:
            self.api.create_branch(BRANCH)
            self._made_here = True
            branches = self._branches()
        if BRANCH not in branches:
            raise ConflictError("the new branch is not to be seen yet")
        return branches[BRANCH]

    def _branches(self) -> dict[str, str]:
        try:
            return self.api.branches()
        except MissingError as error:
            raise ConflictError("the new repository is not to be seen yet") from error

    def _create_repository(self) -> None:
        """Only the server can say that there was none: what cannot be seen may belong to somebody
        else."""
        try:
            self.api.create()
        except ConflictError as error:
            if not self._can_be_seen():
                raise StoreError(
                    f"The repository {self.api.name} exists, and this token cannot see it.",
                    "Use a token of its owner, or another place: -s checkpoint.store=hub.",
                ) from error

    def _can_be_seen(self) -> bool:
        """Whether a repository that exists is there for this token; a new one may take a moment."""
        try:
            self.api.patience.tries(on=MissingError, times=5)(self.api.branches)
        except MissingError:
            return False
        return True

    def _read(self, commit: str) -> Tip:
        """The head at a commit of the branch, or the newest valid one before it."""
        self.damaged = []
        if tip := self._head_at(commit, commit):
            return tip
        self.damaged.append(commit[:12])
        titles = [(found, number_in(title)) for found, title in self._titles(commit)]
        ours = {found: number for found, number in titles if number is not None}
        numbers = list(ours.values())
        for found in [found for found in ours if found != commit][:LOOKED_BACK]:
            if tip := self._head_at(found, commit):
                return Tip(commit, tip.head, found, max(numbers))
            self.damaged.append(found[:12])
        return self._without_head(commit, numbers)

    def _without_head(self, commit: str, numbers: list[int]) -> Tip:
        if numbers:
            raise CheckpointCorrupt(
                f"Every commit in {self.api.where} is damaged: {', '.join(self.damaged)}."
            )
        there = self._files(commit)
        if HEAD in there or any(path.startswith("objects/") for path in there):
            what = "an unreadable head.json" if HEAD in there else "files, but no head.json"
            raise CheckpointCorrupt(
                f"The branch {BRANCH} at {self.api.where} holds {what}: cannot tell what was"
                " committed."
            )
        self._check_elsewhere(commit)
        self.damaged = []
        return Tip(commit)

    def _check_elsewhere(self, commit: str) -> None:
        """The first commit precedes the first file, so the branch is asked for once more after one
        was seen."""
        if not self._files_elsewhere():
            return
        if self.api.branches().get(BRANCH) != commit:
            raise ConflictError("the branch moves while it is read")
        raise CheckpointCorrupt(
            f"The bucket of {self.api.where} holds files of the run, and the branch {BRANCH} no"
            " head.json: cannot tell what was committed.",
            "Start another run with --again, or delete the bucket's files for this one to begin"
            " anew.",
        )

    def _head_at(self, found_in: str, tip: str) -> Tip | None:
        try:
            content = self.api.read(HEAD, found_in)
        except MissingError as error:
            if error.what == "file":
                return None
            raise ConflictError(f"commit {found_in[:12]} is not to be seen") from error
        value = checked(content)
        if value is None:
            return None
        head = head_of(content.removesuffix(b"\n"))
        if self.run and head.run != self.run:
            raise StoreError(
                f"{self.api.where} belongs to run {head.run}, not to {self.run}.",
                "Use another repository.",
            )
        self.limiter.learn(value["recent"])
        return Tip(tip, head, found_in, head.number)

    def _titles(self, commit: str) -> list[tuple[str, str]]:
        try:
            return self.api.titles(commit)
        except MissingError as error:
            raise ConflictError(f"commit {commit[:12]} is not to be seen") from error

    def _files(self, commit: str) -> dict[str, str]:
        try:
            return self.api.large_files(commit)
        except MissingError as error:
            raise ConflictError(f"commit {commit[:12]} is not to be seen") from error

    def _proven(self, tip: Tip) -> Tip:
        """A branch without a head is certain if this store has made it, or if a commit on top of
        what was read succeeds."""
        if not self._made_here:
            claim = json.dumps({"run": self.run, "claim": uuid.uuid4().hex}).encode()
            self.limiter.note()
            commit = self.api.commit(
                BRANCH, [small(CLAIM, claim)], f"Claim for {self.run}", "", tip.commit
            )
            self._made_here = True
            return Tip(commit)
        return tip


def checked_line(head: dict[str, Any]) -> bytes:
    """The line of a head, with the BLAKE3 of the line without it."""
    return line_of({**head, "blake3": blake3(line_of(head)).hexdigest()})


def checked(content: bytes) -> dict[str, Any] | None:
    """What a head.json says; None if it is damaged."""
    try:
        value = json.loads(content)
        rest = {key: entry for key, entry in value.items() if key != "blake3"}
        return value if checked_line(rest) + b"\n" == content else None
    except (ValueError, AttributeError, StoreError):
        return None


def title_of(number: int, run: str) -> str:
    """What a commit is called on the Hub."""
    return f"Commit {number} of {run}"


def number_in(title: str) -> int | None:
    """The number of the commit that is called so; None for a commit of somebody else."""
    found = _TITLE.match(title)
    return int(found[1]) if found else None
