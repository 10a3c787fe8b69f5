"""A folder's copy in a bucket is whole or not there."""

from __future__ import annotations

from pathlib import Path

import obstore
import pytest

from support.buckets import Server
from xrun.errors import CheckpointCorrupt, StoreError
from xrun.store.address import Address
from xrun.store.bucket.client import BucketClient
from xrun.store.bucket.folder_copy import FolderCopy, files_of


@pytest.fixture
def copy(s3: Server, place: str) -> FolderCopy:
    return FolderCopy(BucketClient(Address.parse(place), environ=s3.environ, patience=5), "a1")


def filled(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def test_what_one_machine_has_made_another_takes(copy: FolderCopy, tmp_path: Path) -> None:
    """Only what is new is sent, and what is no longer of the folder goes; what is half made and
    locks are not of it."""
    assert copy.fetch(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    files = {"a/b.arrow": b"1" * 3000, "c.json": b"{}"}
    here = filled(tmp_path / "here", {**files, "x.lock": b"", "a/tmp123": b"half"})
    assert copy.keep(here, list(files_of(here))) == 3002
    assert copy.keep(here, list(files_of(here))) == 0
    assert copy.fetch(tmp_path / "there") == 3002
    assert contents(tmp_path / "there") == files
    (here / "c.json").unlink()
    filled(here, {"d": b"4"})
    assert copy.keep(here, list(files_of(here))) == 1
    assert copy.fetch(tmp_path / "later") == 3001
    assert contents(tmp_path / "later") == {"a/b.arrow": b"1" * 3000, "d": b"4"}


def test_a_damaged_copy_leaves_nothing(
    copy: FolderCopy, s3: Server, place: str, tmp_path: Path
) -> None:
    """Neither one whose bytes are others nor one whose pieces are gone is half of a folder."""
    copy.keep(filled(tmp_path / "here", {"a": b"1" * 10, "b": b"2" * 20}), ["a", "b"])
    (key,) = (key for key, size in s3.objects(place).items() if size == 20)
    obstore.put(s3.library(place), key, b"3" * 20)
    with pytest.raises(CheckpointCorrupt, match=r"b of s3.* is damaged"):
        copy.fetch(tmp_path / "there")
    obstore.delete(s3.library(place), key)
    with pytest.raises(CheckpointCorrupt):
        copy.fetch(tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("listed", [b"no json", b'{"files": {"../a": {}}}', b'{"files": {"a": 1}}'])
def test_a_list_that_is_none_is_refused(
    copy: FolderCopy, s3: Server, place: str, tmp_path: Path, listed: bytes
) -> None:
    """No file of it is written anywhere."""
    obstore.put(s3.library(place), "files.json", listed)
    with pytest.raises(StoreError, match="not a list of files"):
        copy.fetch(tmp_path / "there")
    assert list(tmp_path.iterdir()) == []
