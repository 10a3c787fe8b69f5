"""The calls of huggingface_hub that the store makes: its exceptions become ours here, and nowhere
else.

Every call but a commit is harmless to repeat and is repeated: after a 429, a 5xx or a broken
connection, as late as the server asks for or twice as late each time, until the patience is over.
Whoever commits has to look first (`branch.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    hf_hub_url,
)
from huggingface_hub.errors import (
    BucketNotFoundError,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import LFSFileInfo
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)
from tenacity import Retrying

from ...backoff import Backoff, Errors
from ...errors import LaunchError, StoreError, StoreUnavailable, XrunError
from ..durable import FULL
from .client import LARGEST, NOT_OF_A_HUB, hub_api, in_time, is_of_the_library, room_for

Result = TypeVar("Result")
Operation = CommitOperationAdd | CommitOperationDelete

_SAID = 300
"""Characters of what a server says that are repeated."""
BACKOFF = Backoff(first=0.25, longest=60.0, spread=1.0)


class MissingError(Exception):
    """The Hub says that there is no such repository, bucket, revision or file: `what` is one of
    these words."""

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no such {what}")
        self.what = what


class ConflictError(Exception):
    """It exists already (409), or the branch is not where the commit expected it (412)."""


class NoRangesError(Exception):
    """The server answers with a whole file where some bytes of it were asked for."""


class NoAnswerError(StoreUnavailable):
    """Nobody can tell whether it was done. `refused`: the server has said that it was not, but may
    be later."""

    def __init__(self, message: str, pause: float = 0.0, refused: bool = False) -> None:
        super().__init__(message)
        self.pause, self.refused = pause, refused


@dataclass(frozen=True)
class Patience:
    """For how long what the Hub does not do is tried again; `sleep` may return True for "give up
    now"."""

    seconds: float
    clock: Callable[[], float]
    sleep: Callable[[float], object]

    def end(self) -> float:
        """When a piece of work that begins now is given up."""
        return self.clock() + self.seconds

    def tries(
        self, end: float | None = None, on: Errors = NoAnswerError, times: int | None = None
    ) -> Retrying:
        """Tries until `end`, by default that of work that begins now, and at most so many."""
        until = self.end() if end is None else end
        return BACKOFF.tries(on, end=until, times=times, clock=self.clock, sleep=self.sleep)


class HubApi:
    """One repository `name` ("owner/name") of models on the Hub, and the bucket of the same
    name."""

    def __init__(self, name: str, token: str | None, patience: Patience) -> None:
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise StoreError(
                f"{name!r} cannot be a repository's name on the Hub: {error}."
            ) from error
        self.name, self.patience = name, patience
        self._api = hub_api(token)

    @property
    def where(self) -> str:
        """What people open to see the repository."""
        return f"{self._api.endpoint}/{self.name}"

    # The repository and its branches

    def create(self) -> None:
        """Create the private repository; raises `ConflictError` if it exists."""
        self._once("create the repository", lambda: self._api.create_repo(self.name, private=True))

    def create_branch(self, branch: str) -> None:
        """Create a branch where `main` is; raises `ConflictError` if it exists."""
        self._once(
            f"create the branch {branch}", lambda: self._api.create_branch(self.name, branch=branch)
        )

    def delete_branch(self, branch: str) -> None:
        """Delete a branch; one that is gone already is fine."""
        with contextlib.suppress(MissingError):
            self._once(
                f"delete the branch {branch}",
                lambda: self._api.delete_branch(self.name, branch=branch),
            )

    def branches(self) -> dict[str, str]:
        """The commit of every branch."""
        refs = self._call("list the branches", lambda: self._api.list_repo_refs(self.name))
        return {ref.name: ref.target_commit for ref in refs.branches}

    def all_refs(self) -> dict[str, str]:
        """The commit of everything that keeps a commit alive, by its full name
        (refs/heads/main)."""
        refs = self._call(
            "list the refs", lambda: self._api.list_repo_refs(self.name, include_pull_requests=True)
        )
        every = [*refs.branches, *refs.tags, *refs.converts, *(refs.pull_requests or [])]
        return {ref.ref: ref.target_commit for ref in every}

    def titles(self, revision: str) -> list[tuple[str, str]]:
        """The commits of a branch as (id, title and description), newest first."""
        commits = self._call(
            "list the commits", lambda: self._api.list_repo_commits(self.name, revision=revision)
        )
        return [(commit.commit_id, f"{commit.title}\n{commit.message}") for commit in commits]

    def read(self, path: str, revision: str) -> bytes:
        """The content of a small file at a commit; what was cut or changed on the way is asked for
        again."""
        url = hf_hub_url(self.name, path, revision=revision, endpoint=self._api.endpoint)
        headers = {**build_hf_headers(token=self._api.token), "Accept-Encoding": "identity"}

        def get() -> bytes:
            with room_for(LARGEST):
                response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
            named = response.headers.get("etag", "").removeprefix("W/").strip('"')
            if len(named) == 40 and named != blob_id(response.content):
                raise OSError(f"{path} did not arrive as it was sent")
            return response.content

        return self._call(f"read {path}", get)

    def large_files(self, revision: str, folder: str | None = None) -> dict[str, str]:
        """The files at a commit that are kept beside git: path -> SHA-256. Others are there as path
        -> ""."""

        def listing() -> dict[str, str]:
            entries = self._api.list_repo_tree(self.name, folder, recursive=True, revision=revision)
            return {entry.path: _sha256(entry) for entry in entries if hasattr(entry, "blob_id")}

        try:
            return self._call("list the files", listing)
        except MissingError as error:
            if folder and error.what == "file":
                return {}
            raise

    # Commits

    def upload(self, path: Path, place: str, branch: str) -> str:
        """Send a file's content, which no commit names yet; returns its SHA-256."""

        def send() -> str:
            addition = _by_lfs(CommitOperationAdd(place, str(path)))
            self._api.preupload_lfs_files(self.name, [addition], revision=branch)
            return addition.upload_info.sha256.hex()

        return self._move("upload", path.stat().st_size, send)

    def upload_all(self, additions: Sequence[CommitOperationAdd], branch: str) -> None:
        """Send what of these files goes beside git."""
        self._move(
            "upload",
            sum(addition.upload_info.size for addition in additions),
            lambda: self._api.preupload_lfs_files(self.name, additions, revision=branch),
        )

    def commit(
        self,
        branch: str,
        operations: Iterable[Operation],
        title: str,
        description: str,
        parent: str,
    ) -> str:
        """One commit on top of `parent`; returns its id. Never repeated.

        Raises `ConflictError` if the branch is elsewhere, `NoAnswerError` if nobody can tell.
        """
        listed = list(operations)

        def send() -> str:
            return self._api.create_commit(
                self.name,
                listed,
                commit_message=title,
                commit_description=description,
                revision=branch,
                parent_commit=parent,
            ).oid

        return self._once("commit", send)

    def squash(self, branch: str, title: str) -> None:
        """Replace a branch's history by one commit."""
        self._call(
            "squash",
            lambda: self._api.super_squash_history(self.name, branch=branch, commit_message=title),
        )

    def tag(self, name: str, revision: str) -> None:
        """Make a tag, or move it."""

        def move() -> None:
            tags = {tag.name: tag.target_commit for tag in self._api.list_repo_refs(self.name).tags}
            if name in tags and tags[name] != revision:
                self._api.delete_tag(self.name, tag=name)
            if tags.get(name) != revision:
                self._api.create_tag(self.name, tag=name, revision=revision, exist_ok=True)

        self._call("tag", move)

    # Files

    def download(self, place: str, size: int, revision: str, folder: Path) -> None:
        """Download a file of so many bytes at a commit to `folder/place`, in one move that replaces
        what is there."""
        self._move(
            f"download {place}",
            size,
            lambda: self._api.hf_hub_download(
                self.name, place, revision=revision, local_dir=folder, force_download=True
            ),
        )

    def read_range(self, place: str, revision: str | None, begin: int, end: int) -> bytes:
        """Some bytes, at most 64 MB, of a file at a commit, or of the bucket without one.

        The library downloads whole files; its file system asks for ranges in this way.

        Raises:
            NoRangesError: the server does not read parts of files.
        """
        url = (
            hf_hub_url(self.name, place, revision=revision, endpoint=self._api.endpoint)
            if revision is not None
            else f"{self._api.endpoint}/buckets/{self.name}/resolve/{quote(place)}"
        )
        headers = {**build_hf_headers(token=self._api.token), "Range": f"bytes={begin}-{end - 1}"}

        def get() -> bytes:
            with room_for(LARGEST), get_session().stream("GET", url, headers=headers) as response:
                if response.status_code == 200:
                    raise NoRangesError
                response.read()
            if response.status_code == 416:  # the file is shorter than the one that was sent
                raise MissingError("file")
            hf_raise_for_status(response)
            if len(response.content) != end - begin:
                raise OSError(f"{place} did not arrive as it was sent")
            content: bytes = response.content
            return content

        return self._move(f"read {place}", end - begin, get)

    def lfs_objects(self) -> list[LFSFileInfo]:
        """Every large file of the repository, named by a commit or not."""
        return self._once("list the large files", lambda: list(self._api.list_lfs_files(self.name)))

    def delete_lfs_objects(self, objects: Sequence[LFSFileInfo]) -> None:
        """Delete the content of large files for good; the history goes on naming them. Not
        repeated."""
        self._once(
            "delete large files",
            lambda: self._api.permanently_delete_lfs_files(
                self.name, objects, rewrite_history=False
            ),
        )

    # The bucket

    def create_bucket(self) -> None:
        """Create the private bucket, if it is not there."""
        self._call(
            "create the bucket",
            lambda: self._api.create_bucket(self.name, private=True, exist_ok=True),
        )

    def upload_to_bucket(self, path: Path, place: str) -> None:
        """Send a file to a place in the bucket."""
        self._move(
            "upload",
            path.stat().st_size,
            lambda: self._api.batch_bucket_files(self.name, add=[(path, place)]),
        )

    def download_from_bucket(self, place: str, size: int, path: Path) -> None:
        """Download a file of so many bytes of the bucket to a new path."""

        def download() -> None:
            found = list(self._api.get_bucket_paths_info(self.name, [place]))
            if not found:
                raise MissingError("file")
            self._api.download_bucket_files(self.name, [(found[0], path)])

        self._move(f"download {place}", size, download)

    def bucket_files(self, folder: str) -> list[str]:
        """The places of all files in a folder of the bucket."""

        def listing() -> list[str]:
            entries = self._api.list_bucket_tree(self.name, prefix=folder, recursive=True)
            return [entry.path for entry in entries if entry.type == "file"]

        return self._once("list the bucket", listing)

    def delete_from_bucket(self, places: list[str]) -> None:
        """Delete files of the bucket. Not repeated."""
        self._once("delete files", lambda: self._api.batch_bucket_files(self.name, delete=places))

    # Errors

    def _call(self, what: str, call: Callable[[], Result]) -> Result:
        return self.patience.tries()(self._once, what, call)

    def _move(self, what: str, size: int, call: Callable[[], Result]) -> Result:
        return self._call(what, lambda: in_time(size, call))

    def _once(self, what: str, call: Callable[[], Result]) -> Result:
        with self._translated(what):
            return call()

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Whatever the library raises becomes one of ours; what it does not mean to raise is a bug
        and stays what it is."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            hint = (
                "Unset HF_HUB_OFFLINE. Where models and data are on this machine already, the run"
                " does without the Hub by -s checkpoint.store=local."
            )
            raise LaunchError(
                f"Cannot {what}: HF_HUB_OFFLINE forbids to ask {self.where}.", hint
            ) from error
        except Exception as error:
            ours = isinstance(error, XrunError | MissingError | ConflictError | NoRangesError)
            if ours or not is_of_the_library(error):
                raise
            raise self._ours(what, error) from error

    def _ours(self, what: str, error: Exception) -> Exception:
        answer = _answer(error)
        if answer is None:
            return self._without_answer(what, error)
        status = answer.response.status_code
        said = (answer.server_message or str(answer)).strip().splitlines()[-1:] or [""]
        sentence = f"Cannot {what} at {self.where}: {status}, {said[0][:_SAID].rstrip('.')}."
        if status in (408, 429) or status >= 500:
            return NoAnswerError(
                sentence,
                _retry_after(answer.response.headers.get("retry-after")),
                refused=status == 429,
            )
        if status in (401, 403):
            return LaunchError(sentence, _credentials_hint(status, self.name))
        if status in (409, 412):
            return ConflictError(sentence)
        return MissingError(_missing(answer)) if status == 404 else StoreError(sentence)

    def _without_answer(self, what: str, error: Exception) -> Exception:
        if isinstance(error, EntryNotFoundError):
            return MissingError("file")
        if isinstance(error, OSError) and error.errno in FULL:
            return StoreError(
                f"Disk full: cannot {what}; no space left on {error.filename or 'this machine'}."
            )
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if isinstance(error, NOT_OF_A_HUB):
            return NoAnswerError(
                f"Cannot {what} at {self.where}: what answers there is not a Hub"
                f" ({type(error).__name__})."
            )
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return NoAnswerError(f"Cannot {what} at {self.where}: {reason[0][:_SAID].rstrip('.')}.")


def blob_id(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def uploaded(place: str, sha256: str, size: int) -> CommitOperationAdd:
    """The addition of a file whose content any process has uploaded; what the library's own upload
    makes of its argument."""
    addition = CommitOperationAdd(place, b"")
    if not size:
        addition._upload_mode, addition._should_ignore = (
            "regular",
            False,
        )  # git keeps an empty file; LFS cannot
        return addition
    addition.upload_info = UploadInfo(sha256=bytes.fromhex(sha256), size=size, sample=b"")
    _by_lfs(addition)._is_uploaded = True
    return addition


def small(path: str, content: bytes) -> CommitOperationAdd:
    """The addition of a file that git itself keeps; no question to the server about how to send
    it."""
    addition = CommitOperationAdd(path, content)
    addition._upload_mode, addition._should_ignore = "regular", False
    return addition


def _by_lfs(addition: CommitOperationAdd) -> CommitOperationAdd:
    """State never goes into git itself, however small it is; the server would choose by size and
    name."""
    addition._upload_mode, addition._should_ignore = "lfs", False
    return addition


def _sha256(entry: Any) -> str:
    return entry.lfs.sha256 if entry.lfs else ""


def _answer(error: BaseException | None) -> HfHubHTTPError | None:
    """The server's answer behind an error, which the library sometimes wraps."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _missing(error: HfHubHTTPError) -> str:
    kinds: list[tuple[type[Exception], str]] = [
        (BucketNotFoundError, "bucket"),
        (RepositoryNotFoundError, "repository"),
        (RevisionNotFoundError, "revision"),
        (EntryNotFoundError, "file"),
    ]
    return next((what for kind, what in kinds if isinstance(error, kind)), "place")


def _retry_after(value: str | None) -> float:
    """Seconds; a date, which the Hub does not send, counts as nothing."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


def _credentials_hint(status: int, name: str) -> str:
    if status == 401:
        return "Log in with `hf auth login` or set HF_TOKEN."
    owner = name.split("/")[0]
    return (
        f"Use a token that may write to {owner} and has room there, or another place: -s"
        " checkpoint.store=hub."
    )
