"""The xrun that runs now -> a wheel, so that a machine elsewhere runs the very same code; and its
plugin for SkyPilot as one of its own, which needs nothing.

It is packed from the files as they lie here, whether they are a checkout (with its uncommitted
changes) or an installation, and needs no build tool. The same files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import xrun_sky

from .. import components
from ..recipe.secret_text import is_secret_file

_PACKAGE = Path(__file__).resolve().parents[1]
_PLUGIN = Path(xrun_sky.__path__[0]).resolve()
_FOLDERS = ("models", "datasets", "recipes")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def pack_wheel() -> tuple[str, bytes]:
    """The wheel's file name and its bytes."""
    metadata = _metadata()
    version = next(
        line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Version: ")
    )
    more = {"entry_points.txt": b"[console_scripts]\nxrun = xrun.cli:main\n"}
    return _wheel("xrun", version, metadata, dict(sorted(_sources())), more)


def pack_plugin() -> tuple[str, bytes]:
    """The wheel of xrun's plugin for SkyPilot: its file name and its bytes."""
    version = xrun_sky.__version__
    files = {f"{xrun_sky.__name__}/{path.name}": path.read_bytes() for path in xrun_sky.SOURCES}
    metadata = (
        f"Metadata-Version: 2.1\nName: xrun-sky\nVersion: {version}\n"
        "Summary: xrun's plugin for SkyPilot\nLicense: Apache-2.0\nRequires-Python: >=3.9\n"
    )
    return _wheel("xrun_sky", version, metadata, files, {})


def _wheel(
    name: str,
    version: str,
    metadata: str,
    sources: Mapping[str, bytes],
    more: Mapping[str, bytes],
) -> tuple[str, bytes]:
    """The file's name and its bytes; `more` lies beside the metadata."""
    info = f"{name}-{version}.dist-info"
    files = {
        **sources,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: xrun\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        **{f"{info}/{each}": data for each, data in more.items()},
    }
    record = "".join(f"{each},sha256={_digest(data)},{len(data)}\n" for each, data in files.items())
    return f"{name}-{version}-py3-none-any.whl", _zip(
        {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}
    )


def _sources() -> Iterator[tuple[str, bytes]]:
    """Every file of the package, of the plugin, whose policy an attempt asks too, and the
    components that come with it, where the wheel has them."""
    roots = {"xrun": _PACKAGE, "xrun_sky": _PLUGIN}
    for root in components.roots(None)[:1]:  # of a checkout, or inside the package
        roots |= {f"xrun/components/{name}": root / name for name in _FOLDERS}
    for target, root in roots.items():
        for path in root.rglob("*"):
            if goes_along(path, root):
                yield f"{target}/{path.relative_to(root).as_posix()}", path.read_bytes()


def goes_along(path: Path, root: Path) -> bool:
    """Whether a file below a folder travels: no cache, nothing hidden, however deep, no secrets,
    and nothing that a link leads to elsewhere."""
    place = real_place(path, root)
    return place is not None and not any(map(is_private, (path.relative_to(root), place)))


def real_place(path: Path, root: Path) -> Path | None:
    """Where below a folder a file lies that is no cache; None for one that is none, or that a link
    leads to elsewhere."""
    if not path.is_file():
        return None
    real, folder = path.resolve(), root.resolve()
    if not real.is_relative_to(folder):
        return None
    place = real.relative_to(folder)
    return None if "__pycache__" in place.parts else place


def is_private(place: Path) -> bool:
    """Whether a file or one of its folders is hidden, or the file's name is of those that hold
    secrets."""
    return any(part.startswith(".") for part in place.parts) or is_secret_file(place.name)


def _metadata() -> str:
    """What the installed xrun says of itself: its version and what it needs."""
    try:
        return distribution("xrun").read_text("METADATA") or ""
    except PackageNotFoundError:  # run from a folder on PYTHONPATH
        return "Metadata-Version: 2.1\nName: xrun\nVersion: 0\n"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
