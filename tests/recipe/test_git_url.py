"""What people type and copy of recipes in repositories elsewhere, and what git is never asked."""

from __future__ import annotations

import pytest

from xrun.errors import RecipeError
from xrun.recipe.git_url import RecipeURL, is_url

pytestmark = pytest.mark.once

C = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repository", "reading"),
    [
        (f"https://github.com/u/r/blob/{C}/a/x.yaml", "https://github.com/u/r", "a/x.yaml"),
        (f"https://github.com/u/r/raw/{C.upper()}/x.yml#L3", "https://github.com/u/r", "x.yml"),
        (f"https://gitlab.com/a/b/r/-/blob/{C}/x.yaml?y=z", "https://gitlab.com/a/b/r", "x.yaml"),
        (
            f"https://hf.co/datasets/o/n/blob/{C}/x%20y.yaml",
            "https://hf.co/datasets/o/n",
            "x y.yaml",
        ),
        (f"git+https://h.org/a/r.git@{C}#a/x.yaml", "https://h.org/a/r.git", "a/x.yaml"),
        (f"git+ssh://git@h.org:2222/a/r@{C}#x.yaml", "ssh://git@h.org:2222/a/r", "x.yaml"),
        (f"git+file:///srv/r@{C}#x.yaml", "file:///srv/r", "x.yaml"),
    ],
)
def test_a_commit_s_recipe(text: str, repository: str, reading: str) -> None:
    """Pages of GitHub, GitLab and the Hub, and any host's; each is one reading."""
    url = RecipeURL.parse(text)
    assert (url.repository, url.readings, url.commit) == (repository, ((C, reading),), C)
    again = RecipeURL.parse(url.at(C, reading))
    assert (again.repository, again.readings) == (url.repository, url.readings)


def test_a_branch_may_have_several_parts() -> None:
    """Which one is meant only the server knows; without `@` it is where HEAD is."""
    url = RecipeURL.parse("https://github.com/u/r/blob/exp/a/recipes/x.yaml")
    assert url.readings == (
        ("exp", "a/recipes/x.yaml"),
        ("exp/a", "recipes/x.yaml"),
        ("exp/a/recipes", "x.yaml"),
    )
    assert url.commit == ""
    assert url.at(C, "recipes/x.yaml") == f"https://github.com/u/r/blob/{C}/recipes/x.yaml"
    assert RecipeURL.parse("git+https://h.org/r#x.yaml").readings == (("HEAD", "x.yaml"),)
    assert RecipeURL.parse("git+https://h.org/r@a/b#x.yaml").readings == (("a/b", "x.yaml"),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("git+ext::sh -c touch%20x@main#x.yaml", "xrun fetches by"),
        ("git@github.com:u/r.git", "xrun fetches by"),
        ("git+ext://h/r@main#x.yaml", "xrun fetches by"),
        ("ssh://git@h.org/u/r/blob/main/x.yaml", "the URL of a page begins with https"),
        ("git+ssh://-oProxyCommand=x/r@main#x.yaml", "it names no host"),
        ("git+ssh://-oProxyCommand=x@h/r@main#x.yaml", "it names no host"),
        ("git+https://h.org/r@--upload-pack=x#x.yaml", "is not the name of a branch"),
        ("git+https://h.org/r@a:b#x.yaml", "is not the name of a branch"),
        ("git+https://h.org/r@main#../../etc/x.yaml", "is not a path inside"),
        ("git+https://h.org/r@main#/etc/x.yaml", "is not a path inside"),
        ("git+https://h.org/r@main#.git/x.yaml", "is not a path inside"),
        ("https://github.com/u/r/blob/main/%2e%2e/x.yaml", "is not a path inside"),
        ("git+https://h.org/r@main#README.md", "is not a recipe"),
        ("git+https://h.org/r@main", "it names no recipe in the repository"),
        ("https://github.com/u/r", "it is not the page of a file"),
        ("https://github.com/u/r/blob/main", "it names no file after the branch"),
        ("git+http://h.org/r@main#x.yaml", "anybody on the way could change"),
        ("git+file://h.org/r@main#x.yaml", r"a local repository is git\+file:///"),
        ("git+https://h.org:port/r@main#x.yaml", "it names no host"),
        ("https://[/u/r/blob/main/x.yaml", "it is not a URL"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_s_url(text: str, why: str) -> None:
    """Each with its reason, before git is asked anything."""
    assert is_url(text)
    with pytest.raises(RecipeError, match=why):
        RecipeURL.parse(text)


def test_a_password_is_not_repeated() -> None:
    """Neither in the message."""
    with pytest.raises(RecipeError) as refused:
        RecipeURL.parse("https://me:hunter2@github.com/u/r/blob/main/x.yaml")
    assert "hunter2" not in str(refused.value)
    assert "would be kept with the run" in str(refused.value)


def test_paths_are_paths() -> None:
    assert not any(map(is_url, ("recipes/x.yaml", "./git+x.yaml", "C:/x.yaml", "hub://a/b")))
