"""What travels with a job, as one folder that never changes: the code, the project, the plan, the
prices, the pins.

    runs/<run>/cargo/<key>/
      xrun-*.whl            the xrun that launched
      container.txt         the pinned libraries of the container half
      attempt.sh            what every node of the job runs: installs, trains, and says how it ended
      machine_setup.sh      makes ~/xrun/python of the two; has_pins.py says what is there,
                            torch_build.py which torch the GPUs need, failure.py what a failed
                            installation means
      recipe_setup.sh       what the recipe adds (only where it does)
      project/              models/, datasets/ and the recipe's file
      plan.json             with paths under `~`, which `arrive` resolves there
      prices.json           what machines cost at the launch
      code.json, dirty.diff the project's git commit and what differed from it

A managed job that recovers reads these files again, so they are a copy: what is edited after a
launch does not change a run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from ..errors import LaunchError
from ..run.plan import Plan
from ..run.prices import Price, prices_json
from .wheel import pack_wheel

_ARRIVAL = Path(__file__).resolve().parent / "arrival"
_CARRIED = (
    "attempt.sh",
    "container.txt",
    "machine_setup.sh",
    "has_pins.py",
    "torch_build.py",
    "failure.py",
)
_LIMIT = 200 * 2**20
"""Bytes of models/ and datasets/; more is data, which has places of its own."""


def there(run: str) -> str:
    """Where a run's cargo lies on a job's machine."""
    return f"~/xrun/{run}/cargo"


@dataclass(frozen=True)
class Cargo:
    """The files of a run's cargo, in memory, and the folder that they belong in."""

    folder: Path
    files: Mapping[str, bytes]

    def write(self) -> None:
        """Write the folder, as a whole or not at all, unless it is there."""
        if self.folder.exists():
            return
        new = self.folder.with_name(f".{self.folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        for name, data in self.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        new.rename(self.folder)


def pack(plan: Plan, prices: Sequence[Price], setup: str | None = None) -> Cargo:
    """A run's cargo; nothing is written yet.

    Raises:
        LaunchError: the project's folders are too large to go along.
    """
    files = dict(_files(plan, prices_json(prices), setup))
    digests = {name: blake3(data).hexdigest() for name, data in sorted(files.items())}
    key = blake3(json.dumps(digests).encode()).hexdigest()[:16]
    return Cargo(plan.folder / "cargo" / key, files)


def _files(plan: Plan, prices: str, setup: str | None) -> Iterator[tuple[str, bytes]]:
    name, wheel = pack_wheel()
    carried = {name: (_ARRIVAL / name).read_bytes() for name in _CARRIED}
    yield name, wheel
    yield from carried.items()
    yield "environment.key", blake3(wheel + carried["container.txt"]).hexdigest()[:16].encode()
    if setup:
        yield "recipe_setup.sh", setup.encode()
    yield "plan.json", travelling(plan).to_json().encode()
    yield "prices.json", prices.encode()
    yield "code.json", json.dumps(dict(plan.code), indent=1).encode()
    if diff := _diff(Path(plan.project)):
        yield "dirty.diff", diff
    yield from _project(plan)


def travelling(plan: Plan) -> Plan:
    """The plan with the paths that it has on a job's machine, from its home directory."""
    cargo = there(plan.run)
    recipe = f"{cargo}/project/recipes/{Path(plan.recipe_path).name}"
    return dataclasses.replace(
        plan, home="~/xrun/runs", project=f"{cargo}/project", recipe_path=recipe
    )


def _project(plan: Plan) -> Iterator[tuple[str, bytes]]:
    project = Path(plan.project)
    paths = [
        path
        for name in ("models", "datasets")
        for path in sorted((project / name).rglob("*"))
        if _goes_along(path)
    ]
    size = sum(path.stat().st_size for path in paths)
    if size > _LIMIT:
        largest = max(paths, key=lambda path: path.stat().st_size)
        raise LaunchError(
            f"models/ and datasets/ of {project} hold {size / 2**20:.0f} MiB (the largest file is"
            f" {largest}).",
            f"At most {_LIMIT / 2**20:.0f} MiB travel with a job: name data under `files:`, or take"
            " them from the Hub.",
        )
    for path in paths:
        yield f"project/{path.relative_to(project).as_posix()}", path.read_bytes()
    yield f"project/recipes/{Path(plan.recipe_path).name}", Path(plan.recipe_path).read_bytes()


def _goes_along(path: Path) -> bool:
    return (
        path.is_file()
        and "__pycache__" not in path.parts
        and not any(part.startswith(".") for part in path.parts[-2:])
    )


def _diff(project: Path) -> bytes:
    """What differs from the project's commit, with the names of files that git does not know; empty
    without git."""
    commands = (["diff", "--binary", "HEAD"], ["ls-files", "--others", "--exclude-standard"])
    git = ["git", "-C", str(project)]
    try:
        done = [
            subprocess.run([*git, *command], capture_output=True, check=True, timeout=60)
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return b""
    unknown = b"".join(b"# not in git: " + line + b"\n" for line in done[1].stdout.splitlines())
    return unknown + done[0].stdout
