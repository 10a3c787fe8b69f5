"""What git knows of repositories elsewhere: their branches, and the files of one commit.

A stranger's repository is asked in a way in which it can neither run anything here nor wait for
anybody: no hooks, no prompts, no protocol but the one that was typed, and every name behind `--`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ..errors import CloudUnavailable, LaunchError, Problem, RecipeError, XrunError

_SAFE = (
    "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.askPass=",
    "-c", "init.templateDir=", "-c", "advice.detachedHead=false", "-c", "gc.auto=0",
    "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60",
)  # fmt: skip
_PROTOCOLS = {"https": "https:ssh", "ssh": "https:ssh", "http": "http:https:ssh", "file": "file"}
"""By a repository's own protocol, those that git may speak for it and its submodules."""
_SETTINGS = ("GIT_SSH", "GIT_SSL_", "GIT_PROXY_", "GIT_CONFIG_", "GIT_EXEC_PATH")
"""What a person has told git about the way to servers."""
_ASK_SECONDS, _FETCH_SECONDS = 60, 3600
_SHORT = re.compile(r"[0-9a-f]{7,39}")
_UNADVERTISED = "unadvertised object"
_UNKNOWN = re.compile(r"not our ref|couldn't find remote ref|unadvertised object|bad object")
_CLOSED = re.compile(
    r"could not read Username|could not read Password|Authentication failed|Permission denied|"
    r"terminal prompts disabled|error: 40[13]|Host key verification failed"
)
_ABSENT = re.compile(
    r"[Rr]epository .*not found|error: 404|not appear to be a git repository|does not exist|"
    r"No such file or directory"
)
_REACHED_NOT = re.compile(
    r"Could not resolve|Failed to connect|Couldn't connect|refused|timed out|Timeout|reset by|"
    r"early EOF|RPC failed|error: 5\d\d|Empty reply|hung up|too slow|unreachable|TLS|SSL"
)


def branches(repository: str) -> dict[str, str]:
    """The commit of every branch and tag by its name, and of `HEAD`; a branch comes before a tag of
    its name.

    Raises:
        LaunchError: it is not there, or not for this account, or there is no git here.
        CloudUnavailable: its host does not answer.
    """
    said = _asked(repository, _ASK_SECONDS, "ls-remote", "--", repository)
    found: dict[str, str] = {}
    lines = [line.split("\t") for line in said.splitlines() if "\t" in line]
    for kind in ("refs/tags/", "refs/heads/", ""):
        named = [(commit, name) for commit, name in lines if name.startswith(kind or "HEAD")]
        found |= {name.removeprefix(kind).removesuffix("^{}"): commit for commit, name in named}
    return found


def no_branch(revision: str, repository: str, typed: str) -> RecipeError:
    """The answer for a branch, tag or short commit that the repository does not have."""
    what = f"{repository} has no branch or tag {revision}"
    hint = "Look at its branches, or name a commit."
    if _SHORT.fullmatch(revision):
        hint = "A commit is named by all of its 40 digits."
    return RecipeError([Problem(typed, 0, 0, "", what, hint=hint)])


def fetch(repository: str, commit: str, folder: Path, typed: str) -> None:
    """The files of a commit, submodules included, in a new folder that becomes a repository.

    Raises:
        RecipeError: the repository has no such commit.
        LaunchError, CloudUnavailable: see `branches`.
    """
    git = ("-C", str(folder))
    _asked(repository, _ASK_SECONDS, "init", "--quiet", "--template=", "--", str(folder))
    _ignore_what_python_writes(folder)
    try:
        _fetched(repository, commit, git)
        _asked(repository, _FETCH_SECONDS, *git, "checkout", "--quiet", "--detach", commit)
    except _UnknownCommit:
        what = f"{repository} has no commit {commit}"
        hint = "Check the digits, and whether the commit was pushed."
        raise RecipeError([Problem(typed, 0, 0, "", what, hint=hint)]) from None
    if (folder / ".gitmodules").is_file():
        modules = ("submodule", "--quiet", "update", "--init", "--recursive", "--checkout")
        _asked(repository, _FETCH_SECONDS, *git, *modules, "--depth", "1")


def _fetched(repository: str, commit: str, git: tuple[str, str]) -> None:
    """The commit alone; all of the branches of a server that gives no commit by its name."""
    fetching = (*git, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head")
    try:
        _asked(repository, _FETCH_SECONDS, *fetching, "--depth", "1", "--", repository, commit)
    except _UnknownCommit as error:
        if _UNADVERTISED not in str(error):
            raise
        every = ("refs/heads/*:refs/remotes/origin/*", "refs/tags/*:refs/tags/*")
        _asked(repository, _FETCH_SECONDS, *fetching, "--", repository, *every)


def _ignore_what_python_writes(folder: Path) -> None:
    """What Python leaves beside modules is no change of the commit, and does not travel."""
    info = folder / ".git" / "info"
    info.mkdir(exist_ok=True)
    (info / "exclude").write_text("__pycache__/\n*.pyc\n")


def is_as_committed(folder: Path, commit: str) -> bool:
    """Whether a clone is at the commit, and every file of it as it was committed."""
    git = ("-C", str(folder))
    try:
        at = _asked("", _ASK_SECONDS, *git, "rev-parse", "HEAD").strip()
        changed = _asked("", _ASK_SECONDS, *git, "status", "--porcelain", "--untracked-files=no")
    except XrunError:
        return False
    return at == commit and not changed


class _UnknownCommit(LaunchError):
    """The server has no such commit, or does not give it by its name."""


def _asked(repository: str, seconds: float, *arguments: str) -> str:
    """What git prints; it has no terminal to ask for anything."""
    try:
        done = subprocess.run(
            ["git", *_SAFE, *arguments],
            env=_surroundings(repository, os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            start_new_session=True,  # ssh would ask on the terminal itself
        )
    except (FileNotFoundError, PermissionError) as error:
        what = "A recipe by URL needs git, which is not installed here."
        hint = "Install it (https://git-scm.com/downloads), then run the same command again."
        raise LaunchError(what, hint) from error
    except subprocess.TimeoutExpired as error:
        what = f"git has not ended within {seconds:.0f} s for {repository}."
        raise CloudUnavailable(what, "Try again.") from error
    if done.returncode:
        raise _meaning(repository, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def _surroundings(repository: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for git: whatever repository this process works for is not meant."""
    kept = {name: environ[name] for name in environ if not name.startswith("GIT_")}
    kept |= {name: environ[name] for name in environ if name.startswith(_SETTINGS)}
    protocols = _PROTOCOLS.get(repository.partition(":")[0], "")
    return {
        **kept,
        "GIT_ALLOW_PROTOCOL": protocols,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS_REQUIRE": "never",
        "LC_ALL": "C",
    }


def _meaning(repository: str, said: str) -> XrunError:
    """What git's words mean for whoever typed the URL."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    first = (told or lines or ["it has said nothing"])[0].strip()
    if _UNKNOWN.search(said):
        return _UnknownCommit(said)
    if _CLOSED.search(said):
        hint = (
            "Check the spelling; for a private one give git an account that may read it (`gh auth"
            " login`, `hf auth login --add-to-git-credential`, or git+ssh:// with your key)."
        )
        return LaunchError(f"{repository} is not there, or is private: git may not read it.", hint)
    if _ABSENT.search(said) and not _REACHED_NOT.search(said):
        return LaunchError(f"There is no repository {repository}.", "Check the spelling.")
    if _REACHED_NOT.search(said):
        what = f"The host of {repository} does not answer: {_plain(first)}."
        return CloudUnavailable(what, "Try again when it does.")
    return LaunchError(f"git cannot fetch {repository}: {_plain(first)}.")


def _plain(line: str) -> str:
    return re.sub(r"^(fatal|error|ERROR): ", "", line).rstrip(".")
