"""The metadata server that a cloud gives to each of its machines, always at the same address."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPException

from .. import environment

_TIMEOUT = 2.0


class Metadata:
    """The metadata server of one machine; `file` is where a cloud writes that has none."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.token = ""
        self.name: str | None = None
        self.file = ""
        # Without a proxy: the address is one of the machine's own link.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def get(
        self, path: str, headers: Mapping[str, str], method: str = "GET"
    ) -> tuple[str, Message]:
        """The answer's text and headers."""
        request = urllib.request.Request(self.address + path, headers=dict(headers), method=method)  # noqa: S310  http only
        with self._open(request, timeout=_TIMEOUT) as answer:
            return answer.read().decode(), answer.headers

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Metadata:
        """This machine's."""
        return cls(environment.METADATA_ADDRESS.of(environ))


def aws(server: Metadata, name: str) -> tuple[str, Message]:
    """An entry of `meta-data`, with a token that is asked for again when it has expired."""
    for _ in range(2):
        if not server.token:
            server.token, _ = server.get(
                "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}, "PUT"
            )
        try:
            return server.get(
                f"/latest/meta-data/{name}", {"X-aws-ec2-metadata-token": server.token}
            )
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            server.token = ""
    raise HTTPException("two tokens in a row were refused")


def is_spot(cloud: str, environ: Mapping[str, str]) -> bool | None:
    """Whether this machine is a spot one, as its cloud tells it; None where nobody says."""
    server = Metadata.of(environ)
    with contextlib.suppress(OSError, HTTPException, ValueError):
        if cloud == "aws":
            return aws(server, "instance-life-cycle")[0].strip() == "spot"
        if cloud == "gcp":
            path = "/computeMetadata/v1/instance/scheduling/preemptible"
            return server.get(path, {"Metadata-Flavor": "Google"})[0].strip() == "TRUE"
        if cloud == "azure":
            path = "/metadata/instance/compute/priority?api-version=2021-02-01&format=text"
            return server.get(path, {"Metadata": "true"})[0].strip() == "Spot"
    return None
