"""A folder's files in a bucket: what one machine has made of public data, the next one takes from
there.

    files.json                           each file's hash, size and place
    objects/<attempt>/<random>.<bytes>/  its pieces: `objects`

The list is written last and names whole files only. Two that write at once keep one of their two
lists, and a file that its list has lost is not there: then the copy as a whole is not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointCorrupt, StoreError
from ...files import needed
from ..durable import file_slices, hash_file
from .client import BucketClient
from .objects import Pieces

LIST = "files.json"


class FolderCopy:
    """The copy below a client's address; `attempt` names what is sent."""

    def __init__(self, client: BucketClient, attempt: str) -> None:
        self._client, self._pieces = client, Pieces(client, attempt)

    def fetch(self, folder: Path) -> int:
        """Bring the files into a folder that is not there yet, which it then is as a whole; their
        bytes, 0 where there is no copy.

        Raises:
            StoreError: nobody can tell, or the copy is damaged.
        """
        files = self._listed()
        aside = folder.with_name(f".{folder.name}.fetching")
        shutil.rmtree(aside, ignore_errors=True)
        with needed(aside):
            aside.mkdir(parents=True)
            for name, file in files.items():
                self._fetch(name, file, aside)
            if files:
                shutil.rmtree(aside / "objects", ignore_errors=True)
                aside.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
        return sum(file["size"] for file in files.values())

    def keep(self, folder: Path, names: list[str]) -> int:
        """Make the copy these files of a folder; the bytes that were sent."""
        before = self._listed()
        files = {name: before.get(name) or {} for name in names}
        sent = 0
        for name, file in files.items():
            path = folder / name
            if file.get("size") != path.stat().st_size or file.get("hash") != hash_file(path):
                stored = self._pieces.put(file_slices(path))
                files[name] = {"hash": stored.hash, "size": stored.size, "place": stored.copies[0]}
                sent += stored.size
        if files != before:
            self._client.put(LIST, json.dumps({"files": files}, indent=1).encode())
            kept = {file["place"] for file in files.values()}
            self._forget({file["place"] for file in before.values()} - kept)
        return sent

    def _listed(self) -> Mapping[str, Mapping[str, Any]]:
        try:
            files = dict(json.loads(self._client.read(LIST) or b'{"files": {}}')["files"])
            if all(
                _is_within(name) and {"hash", "size", "place"} <= set(files[name]) for name in files
            ):
                return files
        except (ValueError, TypeError, KeyError):
            pass
        raise StoreError(f"{self._client.where}/{LIST} is not a list of files.", "Delete it.")

    def _fetch(self, name: str, file: Mapping[str, Any], aside: Path) -> None:
        place = str(file["place"])
        self._pieces.download(place, int(file["size"]), aside)
        if hash_file(aside / place) != file["hash"]:
            raise CheckpointCorrupt(f"{name} of {self._client.where} is damaged")
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / place).rename(aside / name)

    def _forget(self, places: set[str]) -> None:
        keys = [key for place in sorted(places) for key in self._client.keys(place)]
        self._client.delete(keys)


def files_of(folder: Path) -> Iterator[str]:
    """The files below a folder by their names there, without locks and what is half made."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        half = path.name.startswith(("tmp", ".")) or ".incomplete" in name
        if path.is_file() and not half and path.suffix != ".lock":
            yield name


def _is_within(name: str) -> bool:
    parts = Path(name).parts
    return (
        bool(parts) and not Path(name).is_absolute() and ".." not in parts and parts[0] != "objects"
    )
