"""Exit 0 if this interpreter has every library that a constraints file pins, in that version.

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


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        sys.exit(sys.version_info < (3, 11) or bool(missing(file.read())))
