"""The Xet content store of the loopback Hub: xorbs (packed chunks), shards (what files consist of),
reconstruction.

Formats: huggingface.co/docs/xet. Only version 1 of the interface: hf_xet falls back to it on 404.
Content is shared by all repositories and buckets and is never deleted here; who keeps what is said
by the repositories.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]  # it has none
from starlette.responses import FileResponse, JSONResponse, Response

from .server import Refused, Request, replace_file

RECORD = 48
"""Bytes of a shard's header and of each of its records."""
END = b"\xff" * 32
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class Term:
    """A stretch of a file: the chunks [start, end) of a xorb, and how many bytes they are when
    unpacked."""

    xorb: str
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class Chunk:
    """A chunk of a xorb: where its packed data lies, how it is packed, its size when unpacked."""

    offset: int
    scheme: int
    packed: int
    size: int


def hex_of(raw: bytes) -> str:
    """A Xet hash as text: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def chunks_of(xorb: bytes) -> list[Chunk]:
    """The chunks of a serialized xorb; each has 8 bytes before its data. A footer may follow."""
    found, at = [], 0
    while at + 8 <= len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        packed, size = (
            int.from_bytes(xorb[at + 1 : at + 4], "little"),
            int.from_bytes(xorb[at + 5 : at + 8], "little"),
        )
        found.append(Chunk(at + 8, xorb[at + 4], packed, size))
        at += 8 + packed
    if not found or at > len(xorb):
        raise Refused(400, "This is no xorb")
    return found


def files_of(shard: bytes) -> Iterator[tuple[str, str, list[Term]]]:
    """The files that a shard announces: Xet hash, SHA-256 or "", terms."""
    at = RECORD
    while shard[at : at + 32] != END:
        xet, (flags, count) = (
            hex_of(shard[at : at + 32]),
            struct.unpack("<II", shard[at + 32 : at + 40]),
        )
        terms = [
            term_of(shard[at + RECORD * i : at + RECORD * (i + 1)]) for i in range(1, count + 1)
        ]
        at += RECORD * (1 + count + (count if flags & HAS_VERIFICATION else 0))
        yield xet, hex_of(shard[at : at + 32]) if flags & HAS_SHA256 else "", terms
        at += RECORD if flags & HAS_SHA256 else 0


def term_of(record: bytes) -> Term:
    """One record of a file in a shard."""
    _, size, start, end = struct.unpack("<4I", record[32:48])
    return Term(hex_of(record[:32]), size, start, end)


def unpacked(data: bytes, chunk: Chunk) -> bytes:
    """A chunk's content: as it is, LZ4, or LZ4 of its bytes grouped by their place in each four."""
    packed = data[chunk.offset : chunk.offset + chunk.packed]
    plain = lz4.frame.decompress(packed) if chunk.scheme else packed
    if chunk.scheme != 2:
        return plain
    out, at = bytearray(chunk.size), 0
    for place in range(4):
        length = len(range(place, chunk.size, 4))
        out[place::4] = plain[at : at + length]
        at += length
    return bytes(out)


class ContentStore:
    """Xorbs and what files consist of, in a folder; also the plain content of large files, for
    readers that speak no Xet."""

    def __init__(self, folder: Path) -> None:
        self.xorbs, self.files, self.plain = folder / "xorbs", folder / "files", folder / "plain"
        for path in (self.xorbs, self.files, self.plain):
            path.mkdir(parents=True, exist_ok=True)

    def put_xorb(self, name: str, data: bytes) -> bool:
        """Keep a xorb; False if it is there already."""
        chunks_of(data)
        new = not (self.xorbs / name).exists()
        if new:
            replace_file(self.xorbs / name, data)
        return new

    def put_shard(self, shard: bytes) -> list[tuple[str, str, int]]:
        """Keep what a shard says; returns its files: Xet hash, SHA-256 or "", size. 400 if a xorb
        is missing."""
        files = list(files_of(shard))
        for _, _, terms in files:
            if missing := [term.xorb for term in terms if not (self.xorbs / term.xorb).exists()]:
                raise Refused(400, f"The shard needs a xorb that is not here: {missing[0]}")
        for xet, _, terms in files:
            replace_file(self.files / xet, json.dumps([asdict(term) for term in terms]).encode())
        return [(xet, sha256, sum(term.size for term in terms)) for xet, sha256, terms in files]

    def terms(self, xet: str) -> list[Term] | None:
        """What a file consists of; None if nobody has said so."""
        if xet == "0" * 64:
            return []
        path = self.files / xet
        return [Term(**term) for term in json.loads(path.read_bytes())] if path.exists() else None

    def size(self, xet: str) -> int | None:
        """A file's size; None for an unknown one."""
        terms = self.terms(xet)
        return None if terms is None else sum(term.size for term in terms)

    @functools.cache  # noqa: B019  # a store lives as long as its server
    def chunks(self, xorb: str) -> list[Chunk]:
        """The chunks of a xorb that is here."""
        return chunks_of((self.xorbs / xorb).read_bytes())

    def put_plain(self, data: bytes) -> str:
        """Keep a large file that came by plain HTTP; returns its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not (self.plain / sha256).exists():
            replace_file(self.plain / sha256, data)
        return sha256

    def content(self, xet: str, sha256: str = "") -> Path:
        """A large file's content in one piece, whichever way it came."""
        path = self.plain / (xet or sha256)
        if not path.exists():
            data = b"".join(self.pieces(xet))
            if sha256 and hashlib.sha256(data).hexdigest() != sha256:
                raise Refused(500, f"{xet} is not the content {sha256}")
            replace_file(path, data)
        return path

    def pieces(self, xet: str) -> Iterator[bytes]:
        """A file's content, chunk by chunk."""
        for term in self.terms(xet) or []:
            data = (self.xorbs / term.xorb).read_bytes()
            for chunk in self.chunks(term.xorb)[term.start : term.end]:
                yield unpacked(data, chunk)

    def reconstruction(self, xet: str, first: int, last: int | None, url: str) -> dict[str, Any]:
        """How to put the bytes [first, last] of a file together: its terms, and the URL and bytes
        of each one's chunks."""
        needed: list[Term] = []
        terms, at, skip = self.terms(xet), 0, 0
        if terms is None:
            raise Refused(404, "No such file")
        for term in terms:
            if at + term.size > first and (last is None or at <= last):
                skip = skip if needed else first - at
                needed.append(term)
            at += term.size
        if terms and first >= at:
            raise Refused(416, f"The file has {at} bytes")
        return {
            "offset_into_first_range": skip,
            "terms": [
                {
                    "hash": t.xorb,
                    "unpacked_length": t.size,
                    "range": {"start": t.start, "end": t.end},
                }
                for t in needed
            ],
            "fetch_info": {term.xorb: self.fetch_info(term.xorb, needed, url) for term in needed},
        }

    def fetch_info(self, xorb: str, terms: list[Term], url: str) -> list[dict[str, Any]]:
        """Where the chunks of a xorb that these terms need are: no chunk twice; hf_xet has panicked
        over that."""
        chunks, stretches = self.chunks(xorb), list[tuple[int, int]]()
        for start, end in sorted({(term.start, term.end) for term in terms if term.xorb == xorb}):
            if stretches and start < stretches[-1][1]:
                start, last = stretches.pop()
                end = max(end, last)
            stretches.append((start, end))
        return [
            {
                "range": {"start": start, "end": end},
                "url": f"{url}/cas/xorb/{xorb}",
                "url_range": {
                    "start": chunks[start].offset - 8,
                    "end": chunks[end - 1].offset + chunks[end - 1].packed - 1,
                },
            }
            for start, end in stretches
        ]


# The interface that hf_xet speaks.


def xet_token(hub: Any, scope: str) -> Response:
    """Where the content store is, and a token for it: `scope` is `read` or `write`, and what
    for."""
    expires, url = int(time.time()) + 3600, f"{hub.url}/cas"
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": scope,
        "X-Xet-Token-Expiration": str(expires),
    }
    return JSONResponse({"casUrl": url, "exp": expires, "accessToken": scope}, headers=headers)


def scope_of(request: Request, needed: str) -> list[str]:
    """What the token of a request is for; 401 or 403 if it is not for that."""
    scope = request.headers.get("authorization", "").removeprefix("Bearer ").split(":")
    if scope[0] not in ("read", "write"):
        raise Refused(401, "This is no token of the content store")
    if needed == "write" and scope[0] != "write":
        raise Refused(403, "This token may not write")
    return scope[1:]


def upload_xorb(hub: Any, request: Request, xorb: str) -> Response:
    """Keep a xorb."""
    scope_of(request, "write")
    return JSONResponse({"was_inserted": hub.content.put_xorb(xorb, request.body)})


def upload_shard(hub: Any, request: Request) -> Response:
    """Keep what files consist of; a repository may name them in a commit from now on."""
    scope = scope_of(request, "write")
    hub.uploaded(scope, hub.content.put_shard(request.body))
    return JSONResponse({"result": 1})


def reconstruct(hub: Any, request: Request, xet: str) -> Response:
    """How to put a file, or a range of it, together."""
    scope_of(request, "read")
    first, _, last = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
    return JSONResponse(
        hub.content.reconstruction(xet, int(first), int(last) if last else None, hub.url)
    )


def download_xorb(hub: Any, request: Request, xorb: str) -> Response:
    """A xorb or a range of it; the address is enough, as with the service's signed ones."""
    return FileResponse(hub.content.xorbs / xorb, media_type="application/octet-stream")
