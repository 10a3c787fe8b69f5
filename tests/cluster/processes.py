"""The processes below one, directly or not."""

from __future__ import annotations

from pathlib import Path


def descendants(of: int) -> list[int]:
    """The living processes below this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if state != "Z":
            parents[int(name.split()[0])] = int(parent)
    return [pid for pid in parents if of in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found = set()
    while (pid := parents.get(pid, 0)) and pid not in found:
        found.add(pid)
    return found
