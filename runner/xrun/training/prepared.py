"""What Hugging Face's `datasets` makes of a run's data (its tables, tokenised text) outlives the
machine where the run's state is in a bucket: the next machine takes it from there instead of
making it again.

It lies beside the runs of that prefix, under `prepared/` and a digest of the dataset's arguments,
its code and the library's version, and on the machine beside the runs. It is public to whoever may
read the bucket, as the data are. Whatever goes wrong with it costs time and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
from blake3 import blake3

from ..data.fingerprint import imports_datasets
from ..errors import XrunError
from ..run.code_digest import digest_of_all
from ..run.plan import Plan
from ..run.sources import sources

if TYPE_CHECKING:
    from ..store.bucket.folder_copy import FolderCopy

log = logging.getLogger("xrun")

MOST = 100 << 30
"""Bytes that are kept; more is faster made than fetched, and costs by the month."""
_PATIENCE = 60.0
"""Seconds for which a bucket that does not answer is asked again."""


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a plan's run, in this machine's folder, with the copy in the bucket."""

    folder: Path
    copy: FolderCopy

    def fetch(self) -> None:
        """Let `datasets` work in the folder, with what the bucket has; one process of a machine
        asks, and the others wait for it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder.with_suffix(".lock")):
            if not self.folder.exists():
                self._ask()
                self.folder.mkdir(exist_ok=True)
        os.environ["HF_DATASETS_CACHE"] = str(self.folder)
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_DATASETS_CACHE = self.folder

    def keep(self) -> None:
        """`send`, beside the training."""
        threading.Thread(target=self.send, name="xrun-prepared", daemon=True).start()

    def send(self) -> None:
        """Make the bucket's copy what is in the folder."""
        from ..store.bucket.folder_copy import files_of

        names = list(files_of(self.folder))
        size = sum((self.folder / name).stat().st_size for name in names)
        if size > MOST:
            log.info("Prepared data: %.0f GB stay on this machine.", size / 1e9)
            return
        try:
            sent = self.copy.keep(self.folder, names)
        except (XrunError, OSError) as error:
            log.warning("The prepared data cannot be kept: %s", error)
        else:
            if sent:
                log.info("Prepared data: %.2f GB are kept in the bucket.", sent / 1e9)

    def _ask(self) -> None:
        try:
            size = self.copy.fetch(self.folder)
        except (XrunError, OSError) as error:
            log.warning("The prepared data cannot be fetched, and are made again: %s", error)
        else:
            if size:
                log.info("Prepared data: %.2f GB from the bucket.", size / 1e9)


def prepared(plan: Plan, attempt: str) -> Prepared | None:
    """What a plan's run prepares; None where there is nothing to keep, or nowhere, or a person has
    said where the library works."""
    if not plan.address.in_bucket or plan.rehearsal or os.environ.get("HF_DATASETS_CACHE"):
        return None
    dataset = plan.load_recipe().dataset
    code = sources("datasets", dataset.name, Path(plan.project))
    if not imports_datasets(code.values()):
        return None
    # The library of a bucket, which only a run with one has.
    from ..store.bucket.client import BucketClient
    from ..store.bucket.folder_copy import FolderCopy

    told = [dataset.name, dataset.args, digest_of_all(code), version("datasets")]
    key = blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]
    address = replace(plan.address, name=f"{plan.address.name}/prepared/{key}")
    settings = {**os.environ, **plan.env}
    client = BucketClient(address, environ=settings, patience=_PATIENCE)
    return Prepared(Path(plan.home) / ".prepared" / key, FolderCopy(client, attempt))
