"""A bucket of S3, Google Cloud Storage, Azure or what speaks S3, by obstore: few requests, each one
bounded in time, and answers that say no more than the server did.

What a name's absence means is told apart from a bucket's, and from an answer that never came. Only
what may pass is tried again, here and not by the library, so that a request that was done and whose
answer was lost is recognised.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from ...backoff import Backoff
from ...errors import LaunchError, StoreError, StoreUnavailable, XrunError
from ..address import Address

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Result = TypeVar("Result")

SECONDS = 30.0
"""For which a small request may last."""
ONE_REQUEST = 64 << 20
"""Bytes that are written in one request."""
BULK = 10
"""How many times longer one may last that moves up to 64 MB."""
SETTINGS = {
    "s3": """AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION
        AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_ALLOW_HTTP
        AWS_VIRTUAL_HOSTED_STYLE_REQUEST""".split(),
    "az": """AZURE_STORAGE_ACCOUNT_NAME AZURE_STORAGE_ACCOUNT_KEY AZURE_STORAGE_SAS_TOKEN
        AZURE_STORAGE_ENDPOINT AZURE_CLIENT_ID AZURE_CLIENT_SECRET AZURE_TENANT_ID""".split(),
    "gs": ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT_KEY"],
}
"""What is read of an environment, by the usual names. Without keys it is the machine's identity,
which obstore finds by itself."""
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT")
_OPENED = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_BACKOFF = Backoff(first=0.25, longest=15.0, spread=0.5)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]{1,200})")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_REDIRECT = "Received redirect"
_METADATA = re.compile(
    r"//169\.254\.|/latest/(api/token|meta-data/)|/computeMetadata/|/metadata/ident"
)
"""What the library says of asking the machine's cloud who it is, which it does without keys."""
_BEYOND = 416
"""An object ends before the bytes that are asked for."""
_PASSES = (408, 409, 425, 429)
"""Refusals that may not be one a moment later, besides what a server says of itself (5xx)."""


class BucketClient:
    """The objects below an address, by keys that are relative to it.

    A request lasts at most `seconds`. What may pass is tried again for `patience` seconds of this
    clock; `sleep` may return True for
    "give up now". Every method raises `StoreUnavailable` where nobody can tell, `LaunchError` where
    the account may not, and `StoreError` where the bucket is not there or refuses.
    """

    def __init__(
        self,
        address: Address,
        *,
        environ: Mapping[str, str] = os.environ,
        seconds: float = SECONDS,
        patience: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.where = str(address)
        self._clock, self._sleep = clock, sleep or threading.Event().wait
        self._patience, self._hint = patience, _hint(address)
        try:
            self._small = opened(address, environ, seconds)
            self._bulk = opened(address, environ, seconds * BULK)
        except (BaseError, ValueError) as error:
            what = f"{self.where} cannot be asked: {_sentence(error)}."
            raise LaunchError(what, self._hint) from error

    def create(self, key: str, body: bytes) -> bool:
        """Make an object that must not exist, in one request; False if another's is there.

        The body is one that nobody else writes: an answer that was lost is found by it.
        """

        def once() -> bool:
            try:
                with self._said():
                    obstore.put(self._small, key, body, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return self._read(key) == body
            return True

        return self._again(once)

    def put(self, key: str, body: bytes | bytearray | memoryview) -> None:
        """Write an object of at most 64 MB, in one request, so that nothing is left of one that
        breaks off."""
        self._again(lambda: obstore.put(self._bulk, key, body, use_multipart=False))

    def put_file(self, key: str, path: Path) -> None:
        """Write an object of any size, in parts."""
        large = path.stat().st_size > ONE_REQUEST
        self._again(lambda: obstore.put(self._bulk, key, path, use_multipart=large))

    def read(self, key: str) -> bytes | None:
        """A small object; None if the bucket is there and the object is not."""
        return self._again(lambda: self._read(key))

    def write_to(self, file: int, place: int, key: str, size: int) -> bool:
        """Download an object of this size to a place in an open file; False if the bucket is there
        and the object is not, or has another size, twice. Raises OSError for the file's disk."""

        def once() -> bool:
            return self._write_to(file, place, key, size)

        return self._again(once) or self._again(once)

    def read_range(self, key: str, begin: int, end: int, size: int) -> memoryview | None:
        """Bytes of an object of this size; None if the bucket is there and the object is not, or
        has another size."""

        def once() -> memoryview | None:
            try:
                with self._said():
                    found = obstore.get(self._bulk, key, options={"range": (begin, end)})
                    return memoryview(found.bytes()) if found.meta["size"] == size else None
            except FileNotFoundError:
                return None

        return self._again(once)

    def keys(self, folder: str) -> list[str]:
        """The keys below a folder, in order."""

        def listed() -> list[str]:
            listing = obstore.list(self._small, f"{folder}/", chunk_size=1000)
            return sorted(each["path"] for some in listing for each in some)

        return self._again(listed)

    def folders(self) -> list[str]:
        """The names of the folders right below the address, in order."""

        def listed() -> list[str]:
            found = obstore.list_with_delimiter(self._small)
            return sorted(each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"])

        return self._again(listed)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The bytes of every object below the address, or below a folder there, by its key."""

        def listed() -> dict[str, int]:
            with self._said():
                listing = obstore.list(
                    self._small, f"{folder}/" if folder else None, chunk_size=1000
                )
                return {each["path"]: each["size"] for some in listing for each in some}

        return self._again(listed)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are no error."""

        def once() -> None:
            with contextlib.suppress(FileNotFoundError), self._said():
                obstore.delete(self._small, list(keys))

        if keys:
            self._again(once)

    def _read(self, key: str) -> bytes | None:
        try:
            with self._said():
                return bytes(obstore.get(self._small, key).bytes())
        except FileNotFoundError:
            return None

    def _write_to(self, file: int, place: int, key: str, size: int) -> bool:
        try:
            with self._said():
                found = obstore.get(self._bulk, key)
                if found.meta["size"] != size:
                    return False
                stream = iter(found.stream(min_chunk_size=4 << 20))
                while (piece := next(stream, None)) is not None:
                    with _of_the_disk():
                        place += os.pwrite(file, piece, place)
        except FileNotFoundError:
            return False
        except _DiskError as error:
            raise error.error from None
        return True

    def _again(self, once: Callable[[], Result]) -> Result:
        """What a request says, which is made again as long as nobody can tell."""

        def said() -> Result:
            try:
                with self._said():
                    return once()
            except FileNotFoundError as error:  # where no object is asked for
                raise self._refusal(_sentence(error)) from error

        end = self._clock() + self._patience
        tries = _BACKOFF.tries(StoreUnavailable, end=end, clock=self._clock, sleep=self._sleep)
        return tries(said)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """The library's errors become xrun's, but for an object that is not there, or is."""
        try:
            yield
        except (AlreadyExistsError, XrunError):
            raise
        except FileNotFoundError as error:
            if _code(error) in _NO_BUCKET:
                raise self._meaning(error) from error
            raise
        except BaseError as error:
            if _status(error) == _BEYOND:
                raise FileNotFoundError from error
            raise self._meaning(error) from error

    def _meaning(self, error: Exception) -> XrunError:
        code, text = _code(error), _sentence(error)
        status = _status(error)
        if code in _NO_BUCKET:
            return StoreError(
                f"There is no bucket {self.where}.", "Create it, or correct its name."
            )
        if _METADATA.search(str(error)):
            return self._nobody(status)
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if denied or status in (401, 403) or code in _EXPIRED:
            return LaunchError(f"{self.where} denies this account access: {text}.", self._hint)
        if _REDIRECT in text:
            what = f"{self.where} is in another region: {text}."
            return StoreError(what, "Set AWS_REGION to the bucket's region.")
        if 400 <= status < 500 and status not in _PASSES:
            return self._refusal(text)
        return StoreUnavailable(f"{self.where} does not answer: {text}.")

    def _nobody(self, status: int) -> XrunError:
        """Without keys the cloud says which account this machine is; it has refused with this
        status, or there is no answer, which may pass."""
        asked = f"{self.where} cannot be asked: no keys are set here, and"
        if 400 <= status < 500 and status not in _PASSES:
            return LaunchError(f"{asked} this machine has no identity in a cloud.", self._hint)
        return StoreUnavailable(
            f"{asked} no cloud says which identity this machine has.", self._hint
        )

    def _refusal(self, text: str) -> StoreError:
        return StoreError(f"{self.where} refuses: {text}.")


class _DiskError(Exception):
    """An error of this machine's disk, which is not the bucket's."""

    def __init__(self, error: OSError) -> None:
        self.error = error


@contextlib.contextmanager
def _of_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _DiskError(error) from error


def opened(address: Address, environ: Mapping[str, str], seconds: float) -> ObjectStore:
    """The library's store below an address; raises what the library raises."""
    bucket, _, prefix = address.name.partition("/")
    config: dict[str, Any] = {
        name.lower(): environ[name] for name in SETTINGS[address.kind] if environ.get(name)
    }
    endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), "")
    plain = config.pop("aws_allow_http", "").lower() in ("true", "1")
    if of_s3 := config.pop("aws_endpoint_url_s3", ""):  # the one for all services counts less
        config["aws_endpoint_url"] = of_s3
    return _OPENED[address.kind](
        bucket,
        prefix=prefix or None,
        config=config,
        client_options={
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=10),
            "allow_http": plain or endpoint.startswith("http://"),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=seconds)},
    )


def _status(error: Exception) -> int:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0


def _code(error: Exception) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _sentence(error: Exception) -> str:
    """What the server has said, or the library, in one line."""
    text = str(error).partition("\n\nDebug source")[0]
    said = [found[1] for found in (_CODE.search(text), _MESSAGE.search(text)) if found]
    return (": ".join(said) or " ".join(text.split())[-300:]).strip(":. ")


def _hint(address: Address) -> str:
    keys = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    }[address.kind]
    return (
        f"Set {keys}, here and in `secrets:` of the recipe for machines elsewhere; without them the"
        " machine's own identity is used."
    )
