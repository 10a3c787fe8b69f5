"""Servers of buckets that nobody here wrote, on loopback: moto's S3, and Azurite where npm has
brought it."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import obstore
import pytest
from obstore.store import ObjectStore

from xrun.store.address import Address
from xrun.store.bucket.client import opened


@dataclass(frozen=True)
class Server:
    """A server of buckets: how addresses there begin, and the environment that leads to it."""

    scheme: str
    url: str
    environ: dict[str, str]

    def make(self, bucket: str) -> str:
        """An empty bucket; its address."""
        if self.scheme == "az":
            made = asked("PUT", f"{self.url}/{bucket}?restype=container", _signed(bucket))
        else:
            made = asked("PUT", f"{self.url}/{bucket}")
        assert made in (200, 201), made
        return f"{self.scheme}://{bucket}"

    def at(self, url: str) -> dict[str, str]:
        """The environment that leads to the server by another way: a proxy."""
        return {name: value.replace(self.url, url) for name, value in self.environ.items()}

    def library(self, address: str) -> ObjectStore:
        """obstore itself."""
        return opened(Address.parse(address), self.environ, 120)

    def objects(self, address: str) -> dict[str, int]:
        """The keys below an address, and their bytes."""
        listing = obstore.list(self.library(address))
        return {each["path"]: each["size"] for some in listing for each in some}


@contextmanager
def moto() -> Iterator[Server]:
    """An S3 in a process of its own."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", port]
    with started(command, f"http://127.0.0.1:{port}/moto-api/"):
        url = f"http://127.0.0.1:{port}"
        keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine"}
        yield Server("s3", url, {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", **keys})


ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(hashlib.sha512(b"a key of nobody's").digest()).decode()


@contextmanager
def azurite(folder: Path) -> Iterator[Server]:
    """Azure's own emulator, installed by npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Azurite needs node and npm, which are not here")
    command = [npm, "install", "--silent", "--prefix", str(folder), "azurite@3.37"]
    subprocess.run(command, check=True, capture_output=True)
    port = free_port()
    program = str(folder / "node_modules" / ".bin" / "azurite-blob")
    command = [program, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", port]
    environ = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with started(
        [*command, "--skipApiVersionCheck", "--silent"], f"http://127.0.0.1:{port}/", environ
    ):
        url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        keys = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}
        yield Server("az", url, {"AZURE_STORAGE_ENDPOINT": url, **keys})


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@contextmanager
def started(command: list[str], url: str, environ: dict[str, str] | None = None) -> Iterator[None]:
    """A program that answers at this address, for a while."""

    process = subprocess.Popen(
        command,
        env=os.environ | (environ or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 240
        while not answers(url):
            assert process.poll() is None, f"{command[0]} has ended"
            assert time.monotonic() < end, f"{command[0]} does not answer"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return asked("GET", url) > 0
    except OSError:
        return False


def asked(method: str, url: str, headers: Mapping[str, str] = MappingProxyType({})) -> int:
    """The status of an answer without a body in the question."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request(method, f"/{path}", headers=dict(headers))
    status = connection.getresponse().status
    connection.close()
    return status


def _signed(container: str) -> dict[str, str]:
    """The headers of the request that makes a container at Azure."""
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    names = f"x-ms-date:{date}\nx-ms-version:{version}\n"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
    text = "PUT" + "\n" * 12 + names + resource
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    signature = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    return {"x-ms-date": date, "x-ms-version": version, "Authorization": signature}
