"""Small files that are replaced as a whole: a reader, or a kill at any moment, finds the old one or
the new one. What JSON written by xrun looks like, and how whatever lies in its place is read: a
folder, a pipe, a link in a circle, something endless or of another type is never waited for and
never followed, and is an error that names it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from .environment import HOME, cache_folder
from .errors import StoreError

Kind = TypeVar("Kind")
LARGEST = 64 << 20
"""Bytes of a small file."""

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers; they are written as these strings, as in Protobuf's JSON and W&B's."""

_NO_ROOM = "Make room there, or set {home} to a folder with room. {again}"
_NOT_OURS = "Allow writing there, or set {home} to a folder that you may write to. {again}"
_NO_FOLDER = "Move away what is there, or set {home} to another folder. {again}"
_NO_CACHE = (
    "xrun keeps there what it fetches and makes for this user: set HOME, or XDG_CACHE_HOME, to a"
    " folder with room that can be written. {again}"
)
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
    if way != "{again}" and _is_for_the_cache(Path(os.fsdecode(place))):
        way = _NO_CACHE
    elif error.errno in (errno.EACCES, errno.EPERM):
        way = _denied(Path(os.fsdecode(place)).absolute())
    what = (error.strerror or str(error)).rstrip(".")
    return StoreError(f"{place}: {what}.", way.format(home=HOME.name, again=_AGAIN))


def _denied(place: Path) -> str:
    """Whose folder or file it is that refuses, what it refuses, and the way out."""
    there = next(each for each in (place, *place.parents) if _is_known(each))
    owner = there.stat().st_uid
    needs = os.R_OK | os.X_OK if there.is_dir() else os.R_OK
    reading, own = not os.access(there, needs), owner == os.geteuid()
    named = str(there).replace("{", "{{").replace("}", "}}")  # what is returned has fields
    if own:
        return f"Allow reading {named} (chmod u+rX). {{again}}" if reading else _NOT_OURS
    whose = f"{named} belongs to {_name_of(owner)}, and you may not"
    if reading:
        return f"{whose} read it: use a copy of your own, or ask for that (chmod o+rX). {{again}}"
    return f"{whose} write there: use a copy of your own, or export {{home}}=~/runs. {{again}}"


def _is_known(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.stat()
        return True
    return False


def _name_of(uid: int) -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"the user {uid}"


def _is_for_the_cache(place: Path) -> bool:
    """Whether a place is in the user's cache, or one that the cache would be in."""
    cache = cache_folder()
    return place.is_relative_to(cache) or (place.is_absolute() and cache.is_relative_to(place))


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


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace a file, and put aside a folder that lies in its place; afterwards it survives a power
    cut. `private`: only its owner can read it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    try:
        temporary.replace(path)
    except IsADirectoryError:
        path.rename(_unused(path))
        temporary.replace(path)


def write_named(path: Path, data: bytes) -> None:
    """Replace a file that a person has named.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        write_bytes(path, data)
    except OSError as error:
        raise StoreError(
            f"{path} was not written: {error.strerror or error}.",
            "Name a file in a folder that is there, has room and can be written.",
        ) from error


def _unused(path: Path) -> Path:
    places = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(place for place in places if not os.path.lexists(place))


def opened(path: Path) -> BinaryIO:
    """A file, to read from its beginning; whatever else lies there raises OSError at once, as a
    file that is not there does."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return os.fdopen(file, "rb")


def read_small(path: Path) -> bytes:
    """All of a file that is small by its nature. Raises OSError."""
    with opened(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB", str(path))
    return content


def parsed(text: str | bytes) -> Any:
    """What JSON says; ValueError for all that is none, or deeper than anybody writes it."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path, kind: type[Kind]) -> Kind | None:
    """What a JSON file holds; None if it is not there, not whole after a full disk, or of another
    kind."""
    try:
        value = parsed(read_small(path).rstrip(b"\0"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, kind) else None


def number(value: Any, default: float = 0.0) -> float:
    """A number of a file, where there is one."""
    fits = _fits(value, "float") and not isinstance(value, bool)
    return float(value) if fits else default


def typed(kind: type, values: Any) -> dict[str, Any]:
    """Those of the values that a dataclass has a field for, of the types that its annotations
    name; others, which a newer xrun has added, are left out.

    Raises ValueError for one that is of another type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{_kind_of(values)} instead of an object")
    known = {each.name: str(each.type) for each in fields(kind) if each.name in values}
    for name, annotation in known.items():
        if not _fits(values[name], annotation):
            raise ValueError(f"`{name}` is {_kind_of(values[name])} instead of {annotation}")
    return {name: values[name] for name in known}


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),),
    "Mapping": (dict,), "DataFacts": (dict,), "tuple": (list, tuple),
}  # fmt: skip
_NUMBERS = 2**1000
"""Numbers beyond it count nothing here, and end in other errors."""


def _fits(value: Any, annotation: str) -> bool:
    kinds = [_TYPES.get(each.partition("[")[0]) for each in annotation.split(" | ")]
    if None in kinds:
        return True  # a type of ours, which reads its own value
    if isinstance(value, int | float) and not abs(value) < _NUMBERS:
        return False
    return any(isinstance(value, kind) for kind in kinds if kind)


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value), "a number")


def reserve(path: Path, size: int) -> None:
    """Make a file of so many zero bytes, for which the disk has room from now on; without it, an
    empty one."""
    with contextlib.suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def room_in(folder: Path) -> float:
    """Bytes that this user can still write there; infinite where nobody can tell."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return math.inf
    free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return free * found.f_frsize if found.f_blocks else math.inf


def mapped(file: IO[bytes], begin: int, size: int) -> mmap.mmap:
    """So many more bytes of a file as memory that the kernel may write out, `begin` on a page.

    Raises OSError where there is no room: a write to a mapping that finds none would end the
    process.
    """
    os.posix_fallocate(file.fileno(), begin, size)
    return mmap.mmap(file.fileno(), size, offset=begin)


def write_in_place(path: Path, data: bytes) -> None:
    """Write into a file that was reserved; a reader takes zero bytes at the end away. Raises
    OSError."""
    path.touch()
    with path.open("r+b") as file:
        file.write(data)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
