"""What travels with a job, as one folder that never changes: the code, the project, the plan, the
prices, the pins.

    runs/<run>/cargo/<key>/
      xrun-*.whl            the xrun that launched
      container.txt         the pinned libraries of the container half
      attempt.sh            what every node of the job runs: installs, trains, and says how it ended
      machine_setup.sh      makes ~/xrun/python of the two; has_pins.py says what is there,
                            torch_build.py which torch the GPUs need, failure.py what a failed
                            installation means
      requirements.txt      the recipe's libraries, in exact versions (only where it names some),
                            and what state in a bucket, a base in 4 or 8 bit and alerts need
      recipe_setup.sh       what the recipe adds (only where it does)
      project/              the project's files, as git sees them (project.py), and the recipe's
      plan.json             with paths under `~`, which `arrive` resolves there
      prices.json           what machines cost at the launch
      code.json, dirty.diff the project's git commit and what differed from it

A managed job that recovers reads these files again, so they are a copy: what is edited after a
launch does not change a run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from ..bar import bar
from ..files import opened, write_bytes
from ..recipe.secret_text import is_secret_file
from ..run.plan import Plan
from ..run.prices import Price, prices_json
from .git import git_says
from .project import Project
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


def there(run: str) -> str:
    """Where a run's cargo lies on a job's machine."""
    return f"~/xrun/{run}/cargo"


@dataclass(frozen=True)
class Cargo:
    """The files of a run's cargo, in memory, the folder that they belong in, and the names of those
    that may be executed."""

    folder: Path
    files: Mapping[str, bytes]
    programs: Set[str] = frozenset()

    def write(self) -> None:
        """Write the folder, as a whole or not at all, unless it is there; only its owner can read
        it."""
        if self._is_there():
            return
        new = self.folder.with_name(f".{self.folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir(mode=0o700)
        for name, data in self.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data, private=True)
            if name in self.programs:
                path.chmod(0o700)
        if os.path.lexists(self.folder):
            self.folder.rename(self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}"))
        new.rename(self.folder)

    def _is_there(self) -> bool:
        """Whether the folder holds these very files: a killed launcher or a person may have left
        others."""
        return all(holds(self.folder / name, data) for name, data in self.files.items())


def holds(path: Path, data: bytes) -> bool:
    """Whether a file has these very bytes."""
    try:
        with opened(path) as file:
            return file.read() == data
    except OSError:
        return False


def pack(plan: Plan, prices: Sequence[Price], setup: str | None = None) -> Cargo:
    """A run's cargo; nothing is written yet.

    Raises:
        LaunchError: the project is too large to go along.
    """
    with bar("Packing the project"):
        files = dict(_files(plan, prices_json(prices), setup))
    digests = {name: blake3(data).hexdigest() for name, data in sorted(files.items())}
    key = blake3(json.dumps(digests).encode()).hexdigest()[:16]
    project = Project(plan)
    programs = {f"project/{place}" for place in project.files if project.is_program(place)}
    return Cargo(plan.folder / "cargo" / key, files, programs)


def _files(plan: Plan, prices: str, setup: str | None) -> Iterator[tuple[str, bytes]]:
    name, wheel = pack_wheel()
    carried = {name: (_ARRIVAL / name).read_bytes() for name in _CARRIED}
    yield name, wheel
    yield from carried.items()
    yield "environment.key", blake3(wheel + carried["container.txt"]).hexdigest()[:16].encode()
    recipe = plan.load_recipe()
    wanted = {
        "bucket.txt": plan.address.in_bucket,
        "quantized.txt": recipe.model.quantized is not None,
        "alerts.txt": recipe.alerts is not None,
    }
    extras = [(_ARRIVAL / name).read_text() for name in wanted if wanted[name]]
    if requirements := "".join([plan.libraries.text, *extras]):
        yield "requirements.txt", requirements.encode()
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
    origin = {**plan.origin, "here": ""} if plan.origin else {}
    return dataclasses.replace(
        plan, home="~/xrun/runs", project=f"{cargo}/project", recipe_path=recipe, origin=origin
    )


def _project(plan: Plan) -> Iterator[tuple[str, bytes]]:
    recipe = Path(plan.recipe_path)
    for place, data in Project(plan).contents():
        yield f"project/{place}", data
    yield f"project/recipes/{recipe.name}", recipe.read_bytes()


def _diff(project: Path) -> bytes:
    """What differs from the project's commit, with the names of files that git does not know; empty
    without git. Neither hidden files nor those that hold secrets are in it."""
    try:
        changed = git_says(
            project, "diff", "--name-only", "--relative", "--no-renames", "-z", "HEAD"
        )
        unknown = git_says(project, "ls-files", "--others", "--exclude-standard", "-z")
        kept = [name for name in _names(changed) if _is_open(name)]
        diff = (
            git_says(project, *_DIFF, "--", *(f":(literal){name}" for name in kept))
            if kept
            else b""
        )
    except (OSError, subprocess.SubprocessError):
        return b""
    listed = (_one_line(name) for name in _names(unknown) if _is_open(name))
    return "".join(f"# not in git: {name}\n" for name in listed).encode() + diff


_DIFF = ("diff", "--binary", "--relative", "--no-renames", "--no-ext-diff", "--no-textconv", "HEAD")


def _names(listed: bytes) -> list[str]:
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]


def _one_line(name: str) -> str:
    return name if name.isprintable() else json.dumps(name)


def _is_open(name: str) -> bool:
    parts = Path(name).parts
    return not any(part.startswith(".") for part in parts) and not is_secret_file(parts[-1])
