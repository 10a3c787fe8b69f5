"""SkyPilot, imported when it is needed (it takes seconds), and its exceptions in xrun's words.

What it prints goes to standard error, since standard output is for answers. A remote API server is
used as the person's SkyPilot is configured.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ...errors import CloudUnavailable, LaunchError
from ...libraries import LAUNCHING, require
from ...terminal import without_colours

LOCAL = "`--local` trains on this machine now."
PROGRAMS = {"rsync": "rsync", "ssh": "openssh-client"}
"""The programs that SkyPilot calls, with the packages of Debian that hold them."""


@contextlib.contextmanager
def skypilot() -> Iterator[ModuleType]:
    """`import sky`, for the body; what goes wrong in it becomes an XrunError.

    Raises:
        LaunchError: SkyPilot is not installed, no cloud is enabled, or it refuses.
        CloudUnavailable: its API server does not answer.
    """
    require(LAUNCHING)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import sky
            import sky.exceptions
        except ImportError as error:
            raise LaunchError(
                f"SkyPilot, which launches on clouds, cannot be imported: {first_line(error)}.",
                "Install it anew: pip install --force-reinstall 'xrun[cloud]'",
            ) from error
        try:
            yield sky
        except sky.exceptions.NoCloudAccessError as error:
            raise no_clouds() from error
        except (
            sky.exceptions.ApiServerConnectionError,
            OSError,
        ) as error:  # those of requests are OSErrors too
            raise CloudUnavailable(
                f"SkyPilot's API server does not answer: {first_line(error)}.",
                "`sky api status` tells more; then try again.",
            ) from error
        except tuple(refusals(sky.exceptions)) as error:
            raise LaunchError(
                f"SkyPilot refuses: {first_line(error)}.",
                "`sky check` tells what your accounts allow.",
            ) from error


def check_system() -> None:
    """What SkyPilot needs of this machine besides its Python packages, where its API server runs
    here.

    Raises:
        LaunchError: a program is not installed; by the name of its package.
    """
    with skypilot():
        from sky.server.common import is_api_server_local

        local = is_api_server_local()
    missing = [name for name in PROGRAMS if shutil.which(name) is None] if local else []
    if missing:
        packages = " ".join(PROGRAMS[name] for name in missing)
        raise LaunchError(
            f"SkyPilot sends files to the machines with {' and '.join(missing)}, which this machine"
            " does not have.",
            f"On Debian and Ubuntu: `apt install {packages}`. Then run the same command again.",
        )


def refusals(exceptions: Any) -> Iterator[type[Exception]]:
    """SkyPilot's own exceptions, which have no common base; some are no classes of its own."""
    yield from (RuntimeError, ValueError)
    for value in vars(exceptions).values():
        if (
            isinstance(value, type)
            and issubclass(value, Exception)
            and value.__module__ == exceptions.__name__
        ):
            yield value


class NoClouds(LaunchError):
    """Nothing to launch on."""


def no_clouds() -> NoClouds:
    """The sentence about it."""
    return NoClouds(
        "No cloud is enabled in SkyPilot.", f"Run `sky check` and follow what it says. {LOCAL}"
    )


def first_line(error: BaseException) -> str:
    """An exception in one line, without colours and the final period."""
    text = without_colours(str(error)).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")


def enabled_clouds() -> list[Any]:
    """The clouds that the person can launch on (SkyPilot's objects), as the API server knows them.

    Raises:
        LaunchError: there is none.
    """
    with skypilot() as sky:
        from sky import check
        from sky.client import sdk
        from sky.clouds import CloudCapability
        from sky.server.common import is_api_server_local
        from sky.utils.registry import CLOUD_REGISTRY

        if is_api_server_local():
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # its status line is meant for its own client
                clouds = check.get_cached_enabled_clouds_or_refresh(CloudCapability.COMPUTE)
        else:
            clouds = [CLOUD_REGISTRY.from_str(name) for name in sky.get(sdk.enabled_clouds())]
    if not clouds:
        raise no_clouds()
    return sorted(clouds, key=name_of)


def name_of(cloud: Any) -> str:
    """A cloud's name as recipes spell it."""
    return str(cloud).lower()
