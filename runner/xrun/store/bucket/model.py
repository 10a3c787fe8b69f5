"""The finished model of a run in a bucket: the files below `model/`, put there and brought back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from blake3 import blake3

from ...bar import bar
from ...errors import CheckpointCorrupt, StoreError
from ...files import needed
from ..durable import file_slices, hash_of
from .client import BucketClient

PLACE = "model"


class BucketModel:
    """The model at a run's own address, which `client` asks."""

    def __init__(self, client: BucketClient) -> None:
        self._client = client

    def publish(self, folder: Path) -> str:
        """Put a folder's files there; what lay there before is gone. Returns a digest of them."""
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {f"{PLACE}/{path.relative_to(folder).as_posix()}": path for path in paths}
        sizes = {key: path.stat().st_size for key, path in files.items()}
        with bar("Uploading the model", sum(sizes.values())) as shown:
            for key, path in files.items():
                self._client.put_file(key, path)
                shown.advance(sizes[key])
        self._client.delete([key for key in self._client.keys(PLACE) if key not in files])
        told = [f"{key} {hash_of(file_slices(path))}" for key, path in files.items()]
        return blake3("\n".join(told).encode()).hexdigest()[:40]

    def fetch(self, folder: Path, inside: str = "") -> bool:
        """Make a folder that has these files, or those in the model's folder `inside` alone, and
        nothing else; False where there are none.

        Raises:
            StoreUnavailable: nobody can tell.
            CheckpointCorrupt: they change while they are fetched.
            LaunchError: this account may not read them.
        """
        shutil.rmtree(folder, ignore_errors=True)
        sizes = self._client.sizes(f"{PLACE}/{inside}" if inside else PLACE)
        with needed(folder), bar("Downloading the model", sum(sizes.values())) as shown:
            for key, size in sizes.items():
                self._fetch(key, size, folder)
                shown.advance(size)
        return bool(sizes)

    def _fetch(self, key: str, size: int, folder: Path) -> None:
        path = folder / key.removeprefix(f"{PLACE}/")
        if ".." in path.parts or not path.is_relative_to(folder):
            raise StoreError(f"{self._client.where} has no file of a model at {key}.", "Delete it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not self._client.write_to(file, 0, key, size):
                what = f"{key} of {self._client.where} has changed while it was fetched."
                raise CheckpointCorrupt(what, "Try again.")
        finally:
            os.close(file)
