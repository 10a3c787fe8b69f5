"""Small files that are replaced as a whole: a reader, or a kill at any moment, finds the old one or
the new one. And what JSON written by xrun looks like."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .environment import HOME
from .errors import StoreError

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers; they are written as these strings, as in Protobuf's JSON and W&B's."""

_NO_ROOM = "Make room there, or set {home} to a folder with room. {again}"
_NOT_OURS = "Allow writing there, or set {home} to a folder that you may write to. {again}"
_NO_FOLDER = "Move away what is there, or set {home} to another folder. {again}"
_WAYS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _NO_ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _NOT_OURS),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), _NO_FOLDER),
    errno.ENOENT: "Make it, or work in a folder that is there. {again}",
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f). {again}",
    errno.EMFILE: "Raise the limit of open files (ulimit -n 4096). {again}",
}
_AGAIN = "Nothing that was committed is lost; run the same command again."


def refusal(error: OSError, folder: Path | str = "A file") -> StoreError:
    """What a folder or a file that cannot be used means for a run, and the way out."""
    place = error.filename or folder
    way = _WAYS.get(error.errno or 0, "{again}")
    what = (error.strerror or str(error)).rstrip(".")
    return StoreError(f"{place}: {what}.", way.format(home=HOME.name, again=_AGAIN))


@contextlib.contextmanager
def needed(folder: Path) -> Iterator[None]:
    """What a run cannot do without in this folder.

    Raises:
        StoreError: instead of OSError; it names the place and the way out.
    """
    try:
        yield
    except OSError as error:
        raise refusal(error, folder) from error


def json_text(value: Any, **layout: Any) -> str:
    """JSON that every reader takes, where `json.dumps` would write a bare NaN; `layout` is its
    own."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_spelled(value), allow_nan=False, **layout)


def with_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, with numbers where `json_text` has written strings."""
    return {
        name: NOT_FINITE.get(value, value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _spelled(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; afterwards it survives a power cut. Raises OSError."""
    write_bytes(path, json_text(value, indent=1).encode() + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file; afterwards it survives a power cut. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None if it is not there, or not whole after a full disk."""
    try:
        return json.loads(path.read_bytes().rstrip(b"\0"))
    except (OSError, ValueError):
        return None


def reserve(path: Path, size: int) -> None:
    """Make a file of so many zero bytes, for which the disk has room from now on; without it, an
    empty one."""
    with contextlib.suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def write_in_place(path: Path, data: bytes) -> None:
    """Write into a file that was reserved; a reader takes zero bytes at the end away. Raises
    OSError."""
    path.touch()
    with path.open("r+b") as file:
        file.write(data)
