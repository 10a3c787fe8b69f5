"""xrun's plugin in SkyPilot: whether the API server has it, and what puts it there.

SkyPilot reads `plugins.yaml` when its API server starts, and sends what `remote_plugins.yaml` names
to a job controller on a machine of its own, with the wheels in `controller_wheel_path`. Files of
other plugins stay as they are but for their comments.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import xrun_sky

from ...errors import LaunchError
from ...files import read_small, write_bytes
from ..wheel import pack_plugin
from .client import skypilot

NAME, OWN = "xrun", xrun_sky.__version__
CLASS = "xrun_sky.plugin.XrunPlugin"
RESTART = "`sky api stop` ends the API server; it starts with the next launch or `sky api start`."
_ENTRY = {"class": CLASS}
_WHEELS = Path("~/.sky/xrun/wheels")
"""Where the wheel for controllers lies, unless another plugin has named a folder."""
_OLDER = "xrun_sky-*.whl"


def plugin_version() -> str | None:
    """The version of xrun's plugin in the API server, None where it has none: jobs may ask for
    xrun's recovery. An API server of this machine that does not run yet counts as having this
    xrun's plugin, if its configuration names it.

    Raises:
        CloudUnavailable: a remote API server does not answer.
        LaunchError: the configuration is damaged.
    """
    with skypilot():
        import requests
        from sky.server import common

        try:
            answer = common.make_authenticated_request("GET", "/api/plugins", timeout=30)
            told: Any = answer.json() if answer.ok else {}
        except requests.exceptions.ConnectionError:
            if not common.is_api_server_local():
                raise
            return OWN if is_named(_read(_plugins_yaml())) else None
    found = [each for each in told.get("plugins", ()) if each.get("name") == NAME]
    return str(found[0].get("version")) if found else None


def other_version(version: str) -> Iterator[str]:
    """What is to be done where the plugin in the API server is not the one of this xrun; nothing
    where it is."""
    if version != OWN:
        yield (
            f"SkyPilot's API server has xrun's plugin {version}, and this xrun comes with {OWN}:"
            f" the job follows the rules of {version}. `xrun setup sky` installs this"
            f" xrun's, and {RESTART}"
        )


def is_named(config: Mapping[str, Any]) -> bool:
    """Whether a file of plugins has xrun's."""
    return any(each.get("class") == CLASS for each in config.get("plugins", ()))


@dataclass(frozen=True)
class Change:
    """A file as it is and as it is going to be; None where it is not there."""

    path: Path
    before: bytes | None
    after: bytes | None

    def text(self) -> str:
        """What is different, for people."""
        if self.path.suffix == ".whl":
            return f"{'+' if self.after is not None else '-'} {self.path}"
        old, new = ((each or b"").decode().splitlines() for each in (self.before, self.after))
        return "\n".join(
            difflib.unified_diff(old, new, str(self.path), str(self.path), lineterm="")
        )

    def make(self) -> None:
        """Write the file, or delete it."""
        if self.after is None:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, self.after)


def check_here() -> None:
    """The API server is this machine's, and so the files to change are.

    Raises:
        LaunchError: it is elsewhere; with what to do there.
    """
    with skypilot():
        from sky.server.common import get_server_url, is_api_server_local

        where = "" if is_api_server_local() else get_server_url()
    if where:
        raise LaunchError(
            f"SkyPilot's API server is {where}, not on this machine.",
            "Who runs it installs the wheel of `xrun setup sky --wheel .` into its environment and"
            f" adds `plugins: [{{class: {CLASS}}}]` to its ~/.sky/plugins.yaml, then restarts it.",
        )


def installation() -> list[Change]:
    """What is to change so that SkyPilot has the plugin of this xrun; nothing if it has.

    Raises:
        LaunchError: a file is damaged.
    """
    config = _read(_plugins_yaml())
    folder = Path(config.get("controller_wheel_path") or _WHEELS)
    named = {**_with_entry(config), "controller_wheel_path": str(folder)}
    remote = _with_entry(_read(_remote_yaml()))
    name, wheel = pack_plugin()
    there = folder.expanduser() / name
    return [
        change
        for change in (
            _change(there, wheel),
            *(_change(old, None) for old in _wheels(folder) if old != there),
            _changed(_plugins_yaml(), named),
            _changed(_remote_yaml(), remote),
        )
        if change.before != change.after
    ]


def removal() -> list[Change]:
    """What is to change so that nothing of the plugin is left; nothing if nothing is.

    Raises:
        LaunchError: a file is damaged.
    """
    config = _read(_plugins_yaml())
    folder = Path(config.get("controller_wheel_path") or _WHEELS)
    rest = _without_entry(config)
    if folder == _WHEELS:
        rest.pop("controller_wheel_path", None)
    changes = (
        _changed(_plugins_yaml(), rest) if is_named(config) else None,
        _changed(_remote_yaml(), _without_entry(remote))
        if is_named(remote := _read(_remote_yaml()))
        else None,
        *(_change(wheel, None) for wheel in _wheels(folder)),
    )
    return [change for change in changes if change is not None]


def _with_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """A file of plugins with xrun's, the others as they are."""
    known = [*config.get("plugins", ())]
    return {**config, "plugins": known if is_named(config) else [*known, _ENTRY]}


def _without_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    others = [each for each in config.get("plugins", ()) if each.get("class") != CLASS]
    rest = {name: value for name, value in config.items() if name != "plugins"}
    return {**rest, "plugins": others} if others else rest


def _changed(path: Path, config: Mapping[str, Any]) -> Change:
    """The file with this in it; as it is, comments and all, if that is what it says already."""
    if _read(path) == config:
        before = read_small(path) if path.exists() else None
        return Change(path, before, before)
    text = yaml.safe_dump(dict(config), sort_keys=False).encode()
    return _change(path, text if config else None)


def _change(path: Path, after: bytes | None) -> Change:
    return Change(path, path.read_bytes() if path.exists() else None, after)


def _wheels(folder: Path) -> Iterator[Path]:
    """The plugin's wheels, this xrun's and older ones."""
    yield from sorted(folder.expanduser().glob(_OLDER))


def _plugins_yaml() -> Path:
    return _path("SKYPILOT_SERVER_PLUGINS_CONFIG", "~/.sky/plugins.yaml")


def _remote_yaml() -> Path:
    return _path("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG", "~/.sky/remote_plugins.yaml")


def _path(variable: str, default: str) -> Path:
    """Where SkyPilot looks for it."""
    return Path(os.environ.get(variable) or default).expanduser()


def _read(path: Path) -> dict[str, Any]:
    """A file of plugins; empty where there is none.

    Raises:
        LaunchError: it is damaged.
    """
    try:
        config = yaml.safe_load(read_small(path))
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    config = {} if config is None else config
    plugins = config.get("plugins", []) if isinstance(config, dict) else None
    if not isinstance(plugins, list) or not all(isinstance(each, dict) for each in plugins):
        raise _damaged(path, "it is not a mapping with a list of `plugins`")
    return dict(config)


def _damaged(path: Path, why: str) -> LaunchError:
    return LaunchError(
        f"{path}, which names SkyPilot's plugins, is damaged: {why}.",
        "Repair it or move it away: SkyPilot's API server does not start with it either.",
    )
