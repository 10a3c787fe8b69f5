"""Where data of a recipe lie is read once, and written as SkyPilot takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xrun.recipe.location import Location, NoLocationError, is_within, target_there


@pytest.mark.parametrize(
    ("text", "scheme", "written"),
    [
        ("./data/words.txt", "", "./data/words.txt"),
        ("s3://bucket/prefix/", "s3", "s3://bucket/prefix"),
        ("gs://bucket", "gs", "gs://bucket"),
        (
            "https://account.blob.core.windows.net/container",
            "https",
            "https://account.blob.core.windows.net/container",
        ),
        ("hf://buckets/owner/name", "hf", "hf://buckets/owner/name"),
    ],
)
def test_a_path_or_a_bucket(text: str, scheme: str, written: str) -> None:
    read = Location.parse(text)
    assert (read.scheme, str(read)) == (scheme, written)


@pytest.mark.parametrize(
    "text", ["s3://", "ftp://x", "az://x", "https://example.com/x", "file:///x"]
)
def test_anything_else_has_a_way_out(text: str) -> None:
    with pytest.raises(NoLocationError) as error:
        Location.parse(text)
    assert error.value.what
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("s3://bucket", True),
        ("s3://bucket/part", False),
        ("cos://us-east/bucket", True),
        ("cos://us-east/bucket/part", False),
        ("hf://datasets/owner/name/part", True),
        ("https://account.blob.core.windows.net/container/part", True),
    ],
)
def test_what_can_be_mounted(text: str, whole: bool) -> None:
    """SkyPilot's own rule; test_task.py meets it."""
    assert Location.parse(text).is_whole is whole


def test_a_path_here_begins_at_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/somebody")
    places = [Location.parse(text).path(tmp_path) for text in ("a/../b", "~/c", "/d", "s3://e")]
    assert places == [f"{tmp_path}/b", "/home/somebody/c", "/d", None]


def test_a_path_there_begins_at_the_home_folder() -> None:
    paths = [target_there(text) for text in ("data", "./data/", "~/data/", "/data//x/", "~")]
    assert paths == ["~/data", "~/data", "~/data", "/data/x", "~"]
    assert is_within("/data/x", "/data")
    assert is_within("/data", "/data")
    assert is_within("~/x", "/") is False
    assert is_within("/database", "/data") is False
