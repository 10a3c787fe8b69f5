"""What is not as a recipe says on this machine is a note, and no problem: a local run puts no file
anywhere, and says which paths of `files` it does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.recipes import SMALL, write
from xrun.recipe.load import load_recipe
from xrun.recipe.notes import absent_files, notes

CLOUD = "hardware={any_of: [{accelerators: T4, spot: false}]}"


def said(path: Path, *overrides: str) -> list[str]:
    return list(absent_files(load_recipe(path, overrides), path.parent))


def test_a_path_that_is_not_here_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link for what lies here, a copy for what does not; what is there is not spoken of."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    there = write(tmp_path, "", "there.txt")
    path = write(tmp_path, f"{SMALL}files: {{words: ./my words.txt, '{there}': s3://bucket/x}}\n")
    ends = "is for machines of clouds, and this machine has none. If the run reads it"
    link = f"ln -s '{tmp_path}/my words.txt' {tmp_path}/home/words"
    assert said(path) == [f"files: words {ends}: {link}"]
    there.unlink()
    assert said(path)[1] == f"files: {there} {ends}, copy the data of s3://bucket/x there first."
    volume = f"files={{'{there}': {{volume: v}}}}"
    assert said(path, "files=null", volume) == [
        f"files: {there} {ends}, copy the data of the volume v there first."
    ]


def test_machines_of_clouds_get_them(tmp_path: Path) -> None:
    path = write(tmp_path, f"{SMALL}files: {{/no/such/path: s3://bucket}}\n")
    assert said(path, CLOUD) == []
    assert list(notes(load_recipe(path), path)) == said(path)
