"""Exit 0 if this interpreter has every library that a constraints file pins, in that version, and
torch in one of the builds that are named after it (`cu130 cu126`), if any are. With `build` for the
file: print the build of torch that is here.

Runs on a machine that may have nothing but Python, so it imports the standard library only.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version


def missing(text: str) -> list[str]:
    """The pins that are not installed; a local version such as `2.13.0+cpu` is the pinned one."""
    pins = [
        line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#")
    ]
    return [name for name, pinned in pins if installed(name) != pinned.strip()]


def installed(name: str) -> str:
    """The version without its local part; "" if there is none."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def build_of(torch: str) -> str:
    """The build of a version such as `2.13.0+cu126`; PyPI's has no name there."""
    return torch.partition("+")[2] or "cu130"


def fits(builds: list[str]) -> bool:
    """Whether torch is here in one of these builds; any will do where none is named."""
    return not builds or build_of(version("torch")) in builds


if __name__ == "__main__":
    if sys.argv[1:] == ["build"]:
        print(build_of(version("torch")))
        sys.exit()
    with open(sys.argv[1]) as file:
        old = sys.version_info < (3, 11)
        sys.exit(old or bool(missing(file.read())) or not fits(sys.argv[2:]))
