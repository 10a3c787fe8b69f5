"""Recipes by URL, fetched from real git: over http by `git http-backend`, and from bare
repositories on this disk.

Covers `xrun.launcher.git_server` and `xrun.run.origin`.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.git_host import PASSWORD, STRANGER, GitHost, bare, commit, git, strangers_host
from xrun.component import project_root
from xrun.errors import CloudUnavailable, LaunchError, RecipeError
from xrun.launcher.clone import Clone, bring_back, cloned
from xrun.launcher.git_server import branches
from xrun.recipe.git_url import RecipeURL
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.origin import Origin
from xrun.run.plan import Plan, make_plan

pytestmark = pytest.mark.once


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    with strangers_host(tmp_path, monkeypatch) as made:
        yield made


def work(host: GitHost, name: str = "stranger") -> Path:
    return host.root / f"{name}.work"


def head(host: GitHost, name: str = "stranger") -> str:
    return git(work(host, name), "rev-parse", "HEAD")


def fetched(url: str, said: list[str] | None = None) -> Clone:
    return cloned(RecipeURL.parse(url), [].append if said is None else said.append)


def planned(clone: Clone) -> Plan:
    return make_plan(load_recipe(clone.recipe), clone.recipe, origin=clone.origin)


def test_a_commit_is_fetched_once_and_then_nobody_is_asked(host: GitHost, tmp_path: Path) -> None:
    """The second time works without its host; files, project and where the runs go are as said."""
    said: list[str] = []
    clone = fetched(host.page("stranger", head(host)), said)
    host.stop()
    again = fetched(host.page("stranger", head(host)), said)
    assert again == clone
    assert said == [f"Fetching {host.url}/stranger at {head(host)}"]
    assert clone.recipe.read_text() == STRANGER["recipes/tiny.yaml"]
    assert project_root(clone.recipe) == clone.folder
    plan = planned(clone)
    assert (plan.home, plan.project) == (str(tmp_path / "here" / "runs"), str(clone.folder))
    assert Plan.from_json(plan.to_json()).shared == clone.origin
    assert clone.origin.url == host.page("stranger", head(host))
    assert git(clone.folder, "rev-list", "--count", "HEAD") == "1"


def test_runs_belong_to_where_the_command_is_typed(host: GitHost, tmp_path: Path) -> None:
    """Also those whose recipe names a folder, and TensorBoard's; on a machine they begin at the
    project."""
    recipe = STRANGER["recipes/tiny.yaml"].replace(
        "{every: 5 steps", "{store: ./kept, every: 5 steps"
    )
    text = f"{recipe}tracking: {{tensorboard: {{folder: boards}}}}\n"
    commit(work(host), {"recipes/tiny.yaml": text})
    plan = planned(fetched(host.recipe("stranger", head(host))))
    here = tmp_path / "here"
    assert plan.home == str(here / "kept")
    assert plan.tensorboard == here / "boards" / plan.run
    there = replace(plan, origin={**plan.origin, "here": ""}, project="/there")
    assert there.tensorboard == Path("/there/boards") / plan.run


def test_the_same_files_are_the_same_run_wherever_they_lie(host: GitHost) -> None:
    """The id is that of the project's own recipe: where it was fetched from changes nothing."""
    mine = work(host) / "recipes" / "tiny.yaml"
    assert (
        planned(fetched(host.recipe("stranger", "main"))).run
        == make_plan(load_recipe(mine), mine).run
    )


def test_a_branch_is_said_with_its_commit(host: GitHost) -> None:
    """Also HEAD, a tag, and a branch whose name has a `/` in a page's URL."""
    at = head(host)
    git(work(host), "push", "--quiet", "origin", "HEAD:refs/heads/exp/a", "HEAD:refs/tags/v1")
    for url, revision in (
        (host.recipe("stranger", "main"), "main"),
        (host.page("stranger", "exp/a"), "exp/a"),
        (host.page("stranger", "v1"), "v1"),
        (f"git+{host.url}/stranger#recipes/tiny.yaml", "HEAD"),
        (f"git+file://{host.root}/stranger@main#recipes/tiny.yaml", "main"),
    ):
        said: list[str] = []
        origin = fetched(url, said).origin
        assert (origin.revision, origin.commit, origin.path) == (revision, at, "recipes/tiny.yaml")
        assert said[0] == f"{revision} of {origin.repository} is at {at}."


def test_an_unfinished_run_stays_with_its_commit(host: GitHost) -> None:
    """A branch that has moved is said with the command for the new commit; another command, and a
    new run, take the new one."""
    url, old = RecipeURL.parse(host.recipe("stranger", "main")), head(host)
    plan = planned(cloned(url, [].append, goes_on=()))
    RunFolder(plan.folder).write_plan(plan)
    new = commit(work(host), {"own/width.py": "WIDTH = 16\n"})
    said: list[str] = []
    assert cloned(url, said.append, goes_on=()).origin.commit == old
    assert said == [
        f"main of {host.url}/stranger is at {new}.",
        (
            f"The unfinished run {plan.run} goes on with {old}, where main was when it began. For"
            f" the new commit type: xrun '{host.recipe('stranger', new)}'"
        ),
    ]
    assert cloned(url, said.append, goes_on=("train.steps=9",)).origin.commit == new
    assert cloned(url, said.append).origin.commit == new


def test_two_at_once_fetch_once(host: GitHost) -> None:
    """The second waits for the first, and finds what it has made."""
    said: list[str] = []
    url = host.recipe("stranger", head(host))
    threads = [threading.Thread(target=fetched, args=(url, said)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [f"Fetching {host.url}/stranger at {head(host)}"]


@pytest.mark.parametrize("damage", ["marker", "file", "head"])
def test_a_torn_clone_is_fetched_again(host: GitHost, damage: str) -> None:
    """Without its marker, with a file that is not the commit's, at another commit."""
    url = host.recipe("stranger", head(host))
    clone = fetched(url)
    match damage:
        case "marker":
            (clone.folder.parent / "xrun-clone.json").unlink()
        case "file":
            (clone.folder / "own" / "width.py").write_text("")
        case "head":
            git(clone.folder, "commit", "--quiet", "--allow-empty", "--message", "x")
    (clone.folder.parent.parent / ".new-left").mkdir()
    said: list[str] = []
    assert fetched(url, said).recipe.is_file()
    assert len(said) == 1
    assert (clone.folder / "own" / "width.py").read_text() == "WIDTH = 8\n"
    assert not (clone.folder.parent.parent / ".new-left").exists()


def test_submodules_come_along(host: GitHost, tmp_path: Path) -> None:
    """By their own commits, over the repository's own protocol; a way to files of this machine is
    not taken."""
    bare(host.root / "module", {"width.py": "WIDTH = 4\n"})
    allowed = ("-c", "protocol.file.allow=always")
    git(work(host), *allowed, "submodule", "--quiet", "add", f"{host.url}/module", "lib")
    at = commit(work(host), {})
    assert (
        fetched(host.recipe("stranger", at)).folder / "lib/width.py"
    ).read_text() == "WIDTH = 4\n"
    git(work(host), *allowed, "submodule", "--quiet", "add", f"file://{host.root}/module", "local")
    at = commit(work(host), {})
    with pytest.raises(LaunchError, match="transport 'file' not allowed"):
        fetched(host.recipe("stranger", at))


@pytest.mark.parametrize(
    ("revision", "path", "why"),
    [
        ("f" * 40, "recipes/tiny.yaml", "has no commit ffff"),
        ("nowhere", "recipes/tiny.yaml", "has no branch or tag nowhere"),
        ("abcdef1", "recipes/tiny.yaml", "A commit is named by all of its 40 digits"),
        ("main", "recipes/tinny.yaml", r"no recipes/tinny.yaml at .* It has recipes/tiny"),
    ],
)  # fmt: skip
def test_what_the_repository_does_not_have(
    host: GitHost, revision: str, path: str, why: str
) -> None:
    """A commit, a branch, a file: one sentence each, and nothing is left in the cache."""
    with pytest.raises(RecipeError, match=why) as refused:
        fetched(host.recipe("stranger", revision, path))
    assert refused.value.exit_code == 2
    assert str(refused.value).count("\n") == 0


def test_a_private_repository(host: GitHost, tmp_path: Path) -> None:
    """Nobody is asked for a password; whoever has told git one gets it."""
    bare(host.root / "private")
    url = host.recipe("private", head(host, "private"))
    with pytest.raises(LaunchError, match="is not there, or is private") as refused:
        fetched(url)
    assert refused.value.exit_code == 3
    store = Path(os.environ["HOME"]) / ".git-credentials"
    store.write_text(host.url.replace("http://", f"http://alice:{PASSWORD}@") + "\n")
    (store.parent / ".gitconfig").write_text("[credential]\n  helper = store\n")
    assert fetched(url).recipe.is_file()


@pytest.mark.parametrize("revision", ["main", "f" * 40])
def test_a_repository_that_is_not_there(host: GitHost, revision: str) -> None:
    """On a host, and on this disk."""
    for url in (host.recipe("absent", revision), f"git+file:///absent@{revision}#x.yaml"):
        with pytest.raises(LaunchError, match="There is no repository") as refused:
            fetched(url)
        assert refused.value.exit_code == 3


def test_a_host_that_does_not_answer(host: GitHost) -> None:
    """Come back."""
    host.stop()
    with pytest.raises(CloudUnavailable, match=r"does not answer: .*Try again") as refused:
        fetched(host.recipe("stranger", "main"))
    assert refused.value.exit_code == 75


def test_without_git(host: GitHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="needs git, which is not installed") as refused:
        fetched(host.recipe("stranger", "main"))
    assert refused.value.exit_code == 3


def test_nothing_of_a_repository_is_run(host: GitHost, tmp_path: Path) -> None:
    """Neither hooks that this machine's templates bring, nor what the environment of a hook of
    git's says."""
    hooks = tmp_path / "templates" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    (Path(os.environ["HOME"]) / ".gitconfig").write_text(
        f"[init]\n  templateDir = {tmp_path}/templates\n[core]\n  hooksPath = {hooks}\n"
    )
    os.environ["GIT_DIR"] = str(tmp_path / "elsewhere")
    try:
        assert fetched(host.recipe("stranger", "main")).recipe.is_file()
    finally:
        del os.environ["GIT_DIR"]
    assert not (tmp_path / "ran").exists()


def test_links_that_lead_out_are_not_followed(host: GitHost, tmp_path: Path) -> None:
    """The recipe itself, and what it extends."""
    (tmp_path / "secret.yaml").write_text("token: hunter2\n")
    (work(host) / "recipes" / "out.yaml").symlink_to(tmp_path / "secret.yaml")
    commit(work(host), {"recipes/more.yaml": "extends: out.yaml\nname: more\n"})
    with pytest.raises(RecipeError, match=r"out\.yaml is a link that leads out"):
        fetched(host.recipe("stranger", "main", "recipes/out.yaml"))
    clone = fetched(host.recipe("stranger", "main", "recipes/more.yaml"))
    with pytest.raises(RecipeError, match="leads out of the repository") as refused:
        load_recipe(clone.recipe)
    assert "hunter2" not in str(refused.value)


def test_a_project_ends_where_its_clone_does(host: GitHost) -> None:
    """A pyproject.toml of whoever fetches is no stranger's."""
    git(work(host), "rm", "--quiet", "pyproject.toml")
    commit(work(host), {})
    (Path(os.environ["HOME"]) / "pyproject.toml").touch()
    clone = fetched(host.recipe("stranger", "main"))
    assert project_root(clone.recipe) == clone.folder


def test_a_server_that_gives_no_commit_by_its_name(host: GitHost) -> None:
    """Older ones: then all of its branches are fetched."""
    old = head(host)
    commit(work(host), {"own/width.py": "WIDTH = 16\n"})
    (Path(os.environ["HOME"]) / ".gitconfig").write_text("[protocol]\n  version = 0\n")
    clone = fetched(host.recipe("stranger", old))
    assert (clone.folder / "own/width.py").read_text() == "WIDTH = 8\n"


def test_branches_before_tags(host: GitHost) -> None:
    """And of an annotated tag the commit, as git itself has it."""
    old = head(host)
    git(work(host), "tag", "--annotate", "v1", "--message", "x")
    new = commit(work(host), {"own/width.py": "WIDTH = 16\n"})
    git(work(host), "push", "--quiet", "origin", "v1", f"{old}:refs/tags/main")
    known = branches(f"{host.url}/stranger")
    assert known == {"HEAD": new, "main": new, "v1": old}


def test_an_origin_is_read_as_it_was_written() -> None:
    """Keys that a newer xrun has added are left out; without those that it needs it is damaged."""
    origin = Origin("u", "r", "main", "c" * 40, "x.yaml", "/here")
    assert Origin.from_json({**origin.to_json(), "new": 1}) == origin
    assert Origin.from_json({}) is None
    with pytest.raises(ValueError, match="lacks keys"):
        Origin.from_json({"url": "u"})


def test_the_cache_may_be_deleted(host: GitHost) -> None:
    """It is fetched again, by the same command and by what needs the project of a run."""
    url = host.recipe("stranger", "main")
    clone = fetched(url)
    shutil.rmtree(clone.folder.parents[2])
    assert fetched(url) == clone
    plan = planned(clone)
    shutil.rmtree(clone.folder.parents[2])
    said: list[str] = []
    bring_back(plan, said.append)
    assert said == [f"Fetching {host.url}/stranger at {head(host)}"]
    assert Path(plan.recipe_path).is_file()
