"""Row 13: a save and a restore of a gigabyte, over the same bytes by obstore alone.

Of `BucketStore` on moto's S3, in a process of its own, and of `DirectoryStore` in a folder, where
obstore writes the same folder. The bytes are hashed on their way, synced, and verified when they
come back; obstore alone does none of it.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore

from benchmarks.result import Row, main, median, spread
from xrun.store.address import Address
from xrun.store.bucket.client import opened
from xrun.store.bucket.store import BucketStore
from xrun.store.directory.store import DirectoryStore

TARGET = 1.2
CHUNK = 16 << 20
Opener = Callable[[str], Any]


def measure(quick: bool) -> Iterator[Row]:
    chunks, rounds = (8, 1) if quick else (64, 4)
    ratios: dict[str, list[float]] = {"s3": [], "folder": []}
    alone: dict[str, list[float]] = {"s3": [], "folder": []}
    with moto() as environ, tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, opener, library in places(environ, Path(folder), number):
                own, theirs = pair(opener, library, Path(folder), chunks, xrun_first=number % 2 > 0)
                ratios[name].append(own / theirs)
                alone[name].append(theirs)
            shutil.rmtree(folder)
            Path(folder).mkdir()
    worst = max(ratios, key=lambda name: median(ratios[name]))
    yield Row(
        13,
        f"seconds of a save and a restore of {chunks * CHUNK >> 20} MB, over obstore alone",
        median(ratios[worst]),
        TARGET,
        "lower",
        {f"obstore alone, {name}, s": median(seconds) for name, seconds in alone.items()},
        spread(ratios[worst]),
        {name: median(found) for name, found in ratios.items()},
    )


def places(environ: dict[str, str], folder: Path, number: int) -> Iterator[tuple[str, Opener, Any]]:
    """An empty bucket and an empty folder: how an attempt opens its store there, and obstore's."""
    bucket = f"bucket-{number}"
    assert ask(environ["AWS_ENDPOINT_URL"], "PUT", f"/{bucket}") == 200
    address = Address.parse(f"s3://{bucket}/run")
    caches = iter(range(1000))

    def far(attempt: str) -> BucketStore:
        cache = folder / f"cache-{next(caches)}"
        return BucketStore(address, "run", attempt, "me", cache, environ=environ)

    yield "s3", far, opened(address, environ, 600)
    root = folder / "folder"
    root.mkdir()

    def near(attempt: str) -> DirectoryStore:
        return DirectoryStore(root / "run", "run", attempt, "me")

    yield "folder", near, LocalStore(root)


def pair(
    opener: Opener, library: Any, folder: Path, chunks: int, *, xrun_first: bool
) -> tuple[float, float]:
    """Seconds of xrun and of obstore, one after the other; who is first changes by rounds."""
    own = by_xrun(opener, chunks) if xrun_first else 0.0
    theirs = by_obstore(library, folder, chunks)
    return own or by_xrun(opener, chunks), theirs


def by_xrun(opener: Opener, chunks: int) -> float:
    """Seconds for a file to be put, committed, found and fetched by another attempt."""
    store, chunk = opener("a1"), memoryview(bytearray(os.urandom(CHUNK)))
    head = store.commit({}, store.head())
    began = time.monotonic()
    file = store.put(repeat(chunk, chunks))
    store.commit({"file": file.to_json()}, head)
    other = opener("a2")
    other.head()
    other.fetch(file)
    return time.monotonic() - began


def by_obstore(library: Any, folder: Path, chunks: int) -> float:
    """Seconds for the same number of bytes to be put and to be written to a file."""
    chunk, path = os.urandom(CHUNK), folder / "fetched"
    began = time.monotonic()
    obstore.put(library, "alone", repeat(chunk, chunks))
    with path.open("wb") as file:
        for piece in obstore.get(library, "alone").stream():
            file.write(piece)
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    obstore.delete(library, "alone")
    path.unlink()
    return seconds


@contextmanager
def moto() -> Iterator[dict[str, str]]:
    """An S3 in a process of its own; the environment that leads there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    program = Path(sys.executable).with_name("moto_server")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", port], **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        while not ask(url, "GET", "/moto-api/"):
            time.sleep(0.05)
        keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine"}
        yield {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", **keys}
    finally:
        server.kill()
        server.wait()


def ask(url: str, method: str, path: str) -> int:
    """The status of an answer; 0 where nobody answers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    main(measure)
