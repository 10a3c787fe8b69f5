"""The HTTP client that huggingface_hub uses, within bounds: whoever answers in a Hub's place, a
captive portal, a proxy or a broken server, is out of reach and not waited for.

An answer begins within `TIMEOUT` seconds; it comes faster than `SLOWEST` bytes a second after the
first `GRACE` seconds; it is not compressed, which nobody asks for; one of the API has at most
`LARGEST` bytes and comes from the host that was asked; and nobody is redirected more than
`REDIRECTS` times. All else is an OSError, as a broken connection is.

What the library leaves to hf_xet does not go through this client: `in_time` bounds it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import _xet, disable_progress_bars
from huggingface_hub.utils._http import default_client_factory

from ...errors import CloudUnavailable, LaunchError
from .watching import watched

Result = TypeVar("Result")

TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
GRACE = 30.0
"""Seconds after its first byte in which an answer may be as slow as it likes."""
SLOWEST = 16 * 1024
LARGEST = 64 << 20
REDIRECTS = 10
LONGEST_PAUSE = 300
"""Seconds for which a server may ask to be left alone."""
_NAME = re.compile(r"[\w.-]{1,200}", re.ASCII)
NOT_OF_A_HUB = (json.JSONDecodeError, TypeError, AttributeError, RecursionError, LookupError)
"""What comes of an answer that is JSON and not the Hub's."""

_room: contextvars.ContextVar[int | None] = contextvars.ContextVar("room", default=None)


_turns: contextvars.ContextVar[int] = contextvars.ContextVar("turns", default=0)
"""Redirects in a row."""


def hub_api(token: str | None = None) -> HfApi:
    """The library's API, whose client keeps to the bounds."""
    _prepare_library()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file that is downloaded in the body is larger than so many bytes."""
    before = _room.set(size)
    try:
        yield
    finally:
        _room.reset(before)


def in_time(size: int, call: Callable[[], Result]) -> Result:
    """The result of a call that moves so many bytes, begins within `TIMEOUT` seconds and is as fast
    as all else; one that is not, is told to stop and left behind.

    Raises:
        ConnectionError: it takes longer.
    """
    result: Future[Result] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result.set_result(context.run(call))
        except BaseException as error:  # whoever waits gets it
            result.set_exception(error)

    seconds = TIMEOUT + GRACE + size / SLOWEST
    threading.Thread(target=run, name="xrun-transfer", daemon=True).start()
    try:
        return result.result(seconds)
    except (TimeoutError, KeyboardInterrupt) as error:
        if result.done():
            raise
        # huggingface_hub 1 has no way to stop it.
        getattr(_xet, "abort_xet_session", lambda: None)()
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConnectionError(f"{size} bytes are not there after {seconds:.0f} s") from None


def account(api: HfApi) -> dict[str, Any] | None:
    """Whose token it is, as the Hub says it: `name`, `orgs` with their names, `auth`; None if the
    token is not valid.

    Raises:
        CloudUnavailable: nobody answers, or what answers is no Hub.
    """
    try:
        with reaching():
            return _checked_account(api.whoami())
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return None
        raise CloudUnavailable(
            f"The Hugging Face Hub does not answer: {_short(error)}.", "Try again."
        ) from error


def repositories_of(owner: str) -> tuple[str, list[str]]:
    """The owner's name, "" being the token's, and the repositories of models that this account may
    see there.

    Raises:
        LaunchError: there is no valid token to tell whose it is, or the Hub refuses.
        CloudUnavailable: nobody answers, or what answers is no Hub.
    """
    api = hub_api()
    if not owner:
        who = account(api) if api.token or get_token() else None
        if who is None:
            what = "There is no valid Hugging Face token here, so `hub://me` names no account."
            raise LaunchError(what, "Run `hf auth login`, set HF_TOKEN, or write hub://OWNER.")
        owner = who["name"]
    try:
        with reaching():
            return owner, sorted(model.id for model in api.list_models(author=owner))
    except HfHubHTTPError as error:
        what = f"The Hub does not list the repositories of {owner}: {_short(error)}."
        raise LaunchError(what, "Check the spelling, and whose token is used.") from error


def small_file(name: str, path: str) -> bytes | None:
    """A file of at most 1 MiB of a model's repository; None if there is no such file, or this
    account may not see it.

    Raises:
        CloudUnavailable: nobody answers, or what answers is no Hub.
    """
    api = hub_api()
    try:
        with reaching(), room_for(1 << 20):
            return Path(api.hf_hub_download(name, path)).read_bytes()
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            return None
        what = f"The Hugging Face Hub does not answer: {_short(error)}."
        raise CloudUnavailable(what, "Try again.") from error


def _checked_account(who: Any) -> dict[str, Any]:
    """Raises ValueError."""
    orgs = who.get("orgs") or []
    named = [who["name"], *(each["name"] for each in orgs)]
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in named):
        raise ValueError("it names nobody")
    auth = who.get("auth") or {}
    token = auth.get("accessToken") or {}
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    if not all(isinstance(each, dict) for each in (auth, token, *scopes)):
        raise ValueError("it says nothing of the token")
    return {**who, "orgs": orgs, "auth": {"accessToken": token}}


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """A Hub that cannot be reached, and what answers in its place and is none, become
    CloudUnavailable; a Hub's refusal and a wrong name stay what they are.

    Raises:
        LaunchError: somebody has forbidden to ask.
    """
    hint = "Look at the network (a sign-in page may be in the way), then try again."
    try:
        yield
    except (HfHubHTTPError, HFValidationError):
        raise
    except OfflineModeIsEnabled as error:
        hint = "Unset it, or use what is on this machine already."
        raise LaunchError("HF_HUB_OFFLINE forbids to ask the Hub.", hint) from error
    except _unreached() as error:
        raise CloudUnavailable(
            f"The Hugging Face Hub cannot be reached: {_short(error)}.", hint
        ) from error
    except (ValueError, *NOT_OF_A_HUB) as error:
        raise CloudUnavailable(
            "The Hugging Face Hub cannot be reached: what answers in its place is not a Hub"
            f" ({type(error).__name__}).",
            hint,
        ) from error


def _unreached() -> tuple[type[Exception], ...]:
    return (*http_errors(), OSError)


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def http_errors() -> tuple[type[Exception], ...]:
    """What the HTTP library raises: huggingface_hub 2 has imported httpx2, the versions before
    httpx."""
    loaded = (sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules)
    return tuple(error for library in loaded for error in (library.HTTPError, library.InvalidURL))


def library_errors() -> tuple[type[Exception], ...]:
    """HTTP errors of whichever httpx the library uses, broken JSON (ValueError, KeyError), and what
    hf_xet raises."""
    return (*http_errors(), OSError, RuntimeError, ValueError, KeyError)


def is_of_the_library(error: Exception) -> bool:
    """Whether it is the library's, which may also stumble over what a server has said; a mistake of
    our own is not."""
    if isinstance(error, library_errors()):
        return True
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    ours = at is not None and str(at.tb_frame.f_globals.get("__name__")).startswith("xrun.")
    return isinstance(error, NOT_OF_A_HUB) and not ours


# The client


_made_by: list[Callable[[], Any]] = []
"""Who makes the library's clients: the last one, else the library."""


def plain_client() -> Any:
    """A client as the library makes it by itself, which nobody watches; for a `with`."""
    return default_client_factory()


def made() -> Any:
    """A client of the library's, as all are made here."""
    return watched([plain_client, *_made_by][-1]())


@functools.cache
def _prepare_library() -> None:
    """Once for all stores of a process, because it closes the library's connections."""
    _made_by.append(_client)
    set_client_factory(made)
    # hf_xet asks again by itself, for six minutes unless told otherwise; whoever calls does it too.
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", f"{TIMEOUT:.0f}sec")
    if "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        disable_progress_bars()


def _client() -> Any:
    """The library's client waits for ever, and some calls ask for that; one stalled connection
    would end all saving."""
    client: Any = default_client_factory()
    client.event_hooks["request"].append(_limit_waiting)
    client.send = functools.partial(_send, client, client.send)
    for transport in (client._transport, *client._mounts.values()):
        if pool := getattr(transport, "_pool", None):
            pool._network_backend = _Backend(pool._network_backend)
    return client


def _limit_waiting(request: Any) -> None:
    given = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: given.get(name) or TIMEOUT for name in ("connect", "read", "write", "pool")
    }
    request.headers["accept-encoding"] = "identity"


def _send(
    client: Any,
    send: Callable[..., Any],
    request: Any,
    *,
    stream: bool = False,
    follow_redirects: Any = None,
    **options: Any,
) -> Any:
    """`httpx.Client.send`, which checks every answer on the way, and where it leads."""
    given = isinstance(follow_redirects, bool)
    follow = follow_redirects if given else client.follow_redirects
    for _ in range(REDIRECTS):
        response = send(request, stream=True, follow_redirects=False, **options)
        _check(response)
        if not follow or response.next_request is None:
            return response if stream else _read(response)
        response.close()
        _check_redirect(request, response.next_request)
        request = response.next_request
    raise ConnectionError("it redirects in a circle")


def _check(response: Any) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding not in ("", "identity"):
        response.close()
        raise ConnectionError("its answer is compressed, which nobody asked for")
    # The library follows redirects on the same host itself, for ever.
    here = response.headers.get("location", "").startswith("/")
    _turns.set(_turns.get() + 1 if here else 0)
    if _turns.get() > REDIRECTS:
        response.close()
        raise ConnectionError("it redirects in a circle")
    if any(int(seconds) > LONGEST_PAUSE for seconds in _pauses(response)):
        del response.headers["ratelimit"]  # the library would sleep for as long
    limit = LARGEST if _is_api(response.request) else _room.get()
    if limit is not None:
        response.stream = _counted(response.stream, limit)


def _pauses(response: Any) -> list[str]:
    return re.findall(r"\bt=([0-9]{1,18})", response.headers.get("ratelimit", ""))


def _check_redirect(request: Any, to: Any) -> None:
    """Files lie elsewhere; answers of the API do not, and nothing that is sent goes there."""
    reads = request.method in ("GET", "HEAD")
    if request.url.host != to.url.host and (_is_api(request) or not reads):
        raise ConnectionError(f"it redirects to {to.url.host}")


def _is_api(request: Any) -> bool:
    return bool(request.url.path.startswith("/api/"))


def _read(response: Any) -> Any:
    try:
        response.read()
    finally:
        response.close()
    return response


def _counted(stream: Any, limit: int) -> Any:
    """The stream, which breaks when it is longer than this."""
    base = next(each for each in type(stream).__mro__ if each.__name__ == "SyncByteStream")
    return type("Counted", (_Counted, base), {})(stream, limit)


class _Counted:
    def __init__(self, stream: Any, limit: int) -> None:
        self.stream, self.limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self.stream:
            size += len(chunk)
            if size > self.limit:
                raise ConnectionError(f"its answer is larger than {self.limit} bytes")
            yield chunk

    def close(self) -> None:
        self.stream.close()


class _Backend:
    """What makes connections, each of which watches how fast it is."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def connect_tcp(self, *arguments: Any, **options: Any) -> _Connection:
        return _Connection(self.backend.connect_tcp(*arguments, **options))

    def connect_unix_socket(self, *arguments: Any, **options: Any) -> _Connection:
        return _Connection(self.backend.connect_unix_socket(*arguments, **options))

    def sleep(self, seconds: float) -> None:
        self.backend.sleep(seconds)


class _Connection:
    """A connection that breaks when an answer, its headers included, comes too slowly."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.began, self.size = 0.0, 0

    def read(self, most: int, timeout: float | None = None) -> bytes:
        data: bytes = self.stream.read(most, timeout)
        now = time.monotonic()
        self.began = self.began or now
        self.size += len(data)
        if now - self.began > GRACE + self.size / SLOWEST:
            raise ConnectionError(f"its answer comes more slowly than {SLOWEST} bytes a second")
        return data

    def write(self, data: bytes, timeout: float | None = None) -> None:
        self.began, self.size = 0.0, 0
        self.stream.write(data, timeout)

    def close(self) -> None:
        self.stream.close()

    def start_tls(self, *arguments: Any, **options: Any) -> _Connection:
        return _Connection(self.stream.start_tls(*arguments, **options))

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)
