"""What an exception says of the attempt that it ends."""

from __future__ import annotations

import httpx
import pytest
import requests
import urllib3
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import http_backoff

from xrun.errors import (
    AttemptEnd,
    CheckpointError,
    OutOfMemory,
    ProcessesApart,
    StoreUnavailable,
)
from xrun.training.failure import failure_of


@pytest.mark.parametrize(
    "sentence",
    [
        "Connection closed by peer [127.0.0.1]:1",
        "Connection reset by peer",
        (
            "ncclRemoteError: A call failed possibly due to a network error or a remote process"
            " exiting prematurely."
        ),
    ],
)
def test_a_lost_peer_is_not_the_cause(sentence: str) -> None:
    """A rank that only noticed that another one went away is not what failed; if none did, it may
    pass here."""
    failure = failure_of(RuntimeError(sentence), 7)
    assert (failure.end, failure.code, failure.again) == (AttemptEnd.OUTSIDE, 75, True)


TOLD = """
Search for `cudaErrorUnknown' in https://docs.nvidia.com/cuda/ for more information.
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

"""
"""What torch says after every error of CUDA's."""


def test_a_hub_that_may_not_be_asked_is_nobodys_outage() -> None:
    """What is not in the cache is not there the next time either: 3 at once, with what helps."""
    try:
        try:
            raise OfflineModeIsEnabled("Cannot reach https://huggingface.co/api")
        except OfflineModeIsEnabled as cause:
            raise LocalEntryNotFoundError("outgoing traffic has been disabled") from cause
    except LocalEntryNotFoundError as error:
        found = error
    told = ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)")
    for each in (found, told):
        failure = failure_of(each, None)
        assert (failure.code, failure.again, failure.end) == (3, False, AttemptEnd.OWN)
        assert failure.message.startswith("HF_HUB_OFFLINE forbids to ask the Hub for what is not")
        assert "recipe name a folder" in failure.hint
    assert failure_of(LocalEntryNotFoundError("no answer"), None).code == 75


@pytest.mark.parametrize("more", ["", TOLD], ids=["alone", "as torch says it"])
@pytest.mark.parametrize(
    "sentence",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: no kernel image is available for execution on the device",
    ],
)
def test_a_failing_device_is_the_machines(sentence: str, more: str) -> None:
    """Another machine may not have it, so it is never the recipe's mistake, and not tried again
    here."""
    failure = failure_of(RuntimeError(sentence + more), 7)
    assert (failure.end, failure.code, failure.again) == (AttemptEnd.OUTSIDE, 75, False)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        TimeoutError("no answer"),
        OSError(5, "Input/output error"),
        httpx.ConnectError("no route"),
        requests.exceptions.ChunkedEncodingError("cut"),
        urllib3.exceptions.ProtocolError("cut"),
        LocalEntryNotFoundError("offline"),
    ],
)
def test_what_a_network_or_a_disk_refuses_may_pass(error: Exception) -> None:
    """It is tried again, here and elsewhere, and never the recipe's mistake; also where something
    else was raised from it."""
    wrapped = ValueError("the index could not be read")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        failure = failure_of(each, 7)
        assert (failure.end, failure.code, failure.again) == (AttemptEnd.OWN, 75, True), each


def test_a_client_that_the_hubs_library_has_closed_is_the_networks() -> None:
    """It closes its client after a connection that failed, and tries again with the same one."""
    with pytest.raises(Exception) as told:  # noqa: PT011  its class is what is asked
        http_backoff("HEAD", "http://127.0.0.1:9/x", base_wait_time=0)  # nobody listens there
    assert failure_of(told.value, None).code == 75


@pytest.mark.parametrize(
    ("status", "passes"), [(404, False), (401, False), (429, True), (503, True)]
)
def test_what_a_server_answers_is_looked_at(status: int, passes: bool) -> None:
    """No such repository, or no access to it, is not the network's fault."""
    request = httpx.Request("GET", "http://127.0.0.1/")
    response = httpx.Response(status, request=request)
    error = HfHubHTTPError("refused", response=response)
    assert (failure_of(error, None).code == 75) == passes


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes do not match"),
        FileNotFoundError(2, "no such file"),
        PermissionError(13, "no"),
        RuntimeError("CUDA error: device-side assert triggered" + TOLD),
    ],
)
def test_everything_else_is_unforeseen(error: Exception) -> None:
    """One more try decides whether it is chance."""
    failure = failure_of(error, 7)
    assert (failure.end, failure.code, failure.again) == (AttemptEnd.OWN, 1, False)
    assert (failure.step, failure.traceback) == (7, True)


def test_leaving_names_the_place() -> None:
    """`sys.exit` is told with the line that called it."""
    try:
        raise SystemExit(0)
    except SystemExit as error:
        failure = failure_of(error, 15)
    assert (failure.code, failure.step) == (1, 15)
    assert failure.message.startswith(f"sys.exit(0) at {__file__}:")


def test_our_own_errors_say_it_themselves() -> None:
    """Message, hint, exit code, whether it may pass here, and the parts that may fit."""
    error = failure_of(CheckpointError("What.", "Way out."), None)
    assert (error.message, error.hint, error.code) == ("What.", "Way out.", 5)
    assert not error.traceback
    assert not error.again
    assert failure_of(OutOfMemory("What.", 4), 3).parts == 4
    assert failure_of(ProcessesApart("What."), None).again
    assert failure_of(StoreUnavailable("What."), 3).again


def test_a_missing_module_is_the_recipes() -> None:
    """Which names it under `requirements`; of a part of what is installed another version."""
    for module, hint in (
        ("no_such_library.layers", "`requirements:`"),
        ("torch.nope", "`torch` is installed and has no"),
    ):
        failure = failure_of(ModuleNotFoundError(f"No module named {module!r}", name=module), 3)
        assert failure.code == 2
        assert hint in failure.hint
