"""A package index on this machine, with wheels that a test makes, and how uv and pip are told of
it."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def wheel(
    folder: Path, name: str, version: str, *needs: str, tag: str = "py3-none-any", extra: str = ""
) -> Path:
    """A package with one module of its name; `needs` are its requirements, `extra` its extra."""
    info = f"{name}-{version}.dist-info"
    told = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    told += [f"Provides-Extra: {extra}"] if extra else []
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": "\n".join([*told, *(f"Requires-Dist: {need}" for need in needs)])
        + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    sums = "".join(f"{path},sha256={_sum(data)},{len(data)}\n" for path, data in files.items())
    made = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in {**files, f"{info}/RECORD": f"{sums}{info}/RECORD,,\n"}.items():
            archive.writestr(path, data)
    return made


def _sum(data: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data.encode()).digest()).rstrip(b"=").decode()


@dataclass
class PackageIndex:
    """The wheels of a folder; it answers 503 to the next `fails` requests. `asked` holds the paths
    that were asked for."""

    folder: Path
    url: str = ""
    fails: int = 0
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, *needs: str, tag: str = "py3-none-any") -> Path:
        return wheel(self.folder, name, version, *needs, tag=tag)

    def environ(self, home: Path) -> dict[str, str]:
        """An environment whose uv and pip ask here and nowhere else, once."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "UV_DEFAULT_INDEX": self.url,
            "UV_CACHE_DIR": str(home / "uv-cache"),
            "UV_HTTP_RETRIES": "0",
            "UV_NO_CONFIG": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": self.url,
            "PIP_RETRIES": "0",
            "PIP_TRUSTED_HOST": "127.0.0.1",  # without it pip keeps nothing that comes by http
        }


class _Answers(BaseHTTPRequestHandler):
    def __init__(self, index: PackageIndex, *arguments: object) -> None:
        self.index = index
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        if self.index.fails > 0:
            self.index.fails -= 1
            self.send_error(503)
        elif self.path.startswith("/simple/"):
            self._list(self.path.split("/")[2])
        else:
            self._answer((self.index.folder / Path(self.path).name).read_bytes(), "application/zip")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _list(self, name: str) -> None:
        found = self.index.folder.glob(f"{name.replace('-', '_')}-*.whl")
        links = [
            f'<a href="/{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}">'
            f"{path.name}</a>"
            for path in sorted(found)
        ]
        if links:
            self._answer(
                f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode(), "text/html"
            )
        else:
            self.send_error(404)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if kind != "text/html":  # as PyPI does
            self.send_header("Cache-Control", "max-age=365000000, immutable, public")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def package_index(folder: Path) -> Iterator[PackageIndex]:
    """An index of the wheels in a folder, empty at first, while this lasts."""
    folder.mkdir()
    index = PackageIndex(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answers, index)) as server:
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield index
        server.shutdown()
        thread.join()
