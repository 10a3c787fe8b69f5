"""The libraries that a recipe names -> exact versions with hashes, for machines of clouds, before
any money is spent. uv resolves them, beside the pins of the container half.

What the pins bring, also as what one of them needs, is left out: it is on each machine already, for
torch in the build that its GPUs need.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from blake3 import blake3
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..bar import bar
from ..errors import CloudUnavailable, LaunchError, Problem, RecipeError
from ..libraries import how_to_install
from ..recipe.requirements import KEY, PINS, pins
from ..run.plan import Plan
from ..run.requirements import Requirements
from ..terminal import without_colours
from .arrival.failure import REQUIREMENTS, failure_of

_FOR = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
"""The machines that xrun starts; the hashes are those of every platform's files."""
_HOW = ("--generate-hashes", "--no-header", "--only-binary", ":all:", "--annotation-style", "line")
_MINUTES = 10
_NEEDS = re.compile(r"(\S+) depends? on (\S+?)(?=[,;.]?(?: |$))")


def lock(plan: Plan, environ: Mapping[str, str] = os.environ) -> Plan:
    """The plan with its libraries in exact versions: those that the run has had, as long as the
    recipe names the same and the pins are the same; on another computer by the run's lock.

    Raises:
        RecipeError: they cannot be had on a machine, or contradict the pins.
        CloudUnavailable: no package index answers.
        LaunchError: there is no uv.
    """
    before = plan.libraries
    if not before.wanted:
        return replace(plan, requirements={})
    made_of = blake3("\n".join([*before.wanted, PINS.read_text()]).encode()).hexdigest()
    if before.made_of == made_of:
        return plan
    text = _without_pins(_resolved(plan, before, environ))
    made = Requirements(before.wanted, made_of, text)
    return replace(plan, requirements=made.to_json())


def find_uv() -> str:
    """The program: on PATH, else the package's.

    Raises:
        LaunchError: there is none.
    """
    if found := shutil.which("uv"):
        return found
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        raise LaunchError(
            "uv is not installed here, and it fixes the versions of the recipe's requirements.",
            f"{how_to_install('uv')} Then run the same command again.",
        ) from error


def _resolved(plan: Plan, before: Requirements, environ: Mapping[str, str]) -> str:
    """What uv makes of the requirements; versions of before stay where they can."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, fixed, made = (
            Path(folder) / name for name in ("wanted.in", "pins.txt", "made.txt")
        )
        # torch stands in what is resolved, so that what it needs is known as such.
        wanted.write_text("\n".join([*before.wanted, f"torch=={pins()['torch']}"]) + "\n")
        fixed.write_text(PINS.read_text())
        made.write_text(before.text or _known(plan))
        files = ("-c", str(fixed), "-o", str(made), str(wanted))
        command = [find_uv(), "pip", "compile", *_FOR, *_HOW, *files]
        try:
            with bar("Fixing the versions of the recipe's requirements"):
                done = subprocess.run(
                    command,
                    cwd=plan.project,
                    env={**environ, "NO_COLOR": "1"},
                    capture_output=True,
                    text=True,
                    timeout=60 * _MINUTES,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            raise _unanswered(f"no answer in {_MINUTES} minutes") from error
        if done.returncode:
            raise _refusal(without_colours(done.stderr), plan)
        return made.read_text()


def _known(plan: Plan) -> str:
    """The versions, without the pins, by which a run was begun on another computer."""
    numbers = plan.locked.packages.items()
    return "".join(f"{name}=={number}\n" for name, number in numbers if name not in pins())


def _refusal(said: str, plan: Plan) -> RecipeError | CloudUnavailable:
    failure = failure_of(said, REQUIREMENTS)
    if failure.passing:
        return _unanswered(failure.line)
    what, hint = _why(said)
    return RecipeError([Problem(plan.recipe_path, 0, 0, KEY, what, hint=hint)])


def _unanswered(why: str) -> CloudUnavailable:
    what = f"The versions of the recipe's requirements cannot be fixed: {why.rstrip('.')}."
    return CloudUnavailable(what, "Nothing was launched. Try again when the network answers.")


def _why(said: str) -> tuple[str, str]:
    """One sentence of uv's explanation, with both sides where a pin is one of them."""
    told = _explanation(said)
    for who, needs in _NEEDS.findall(told):
        if other := _pin_against(needs):
            hint = "Take a version of it that allows this one, if there is one."
            return f"{who} needs {needs}, and xrun pins {other}", hint
    if "wheels" in told:
        return told, "Take another version, or install it under `setup` of the recipe."
    return told, "Correct the name or the versions."


def _explanation(said: str) -> str:
    """What uv found, in one line, without its conclusions and hints."""
    found = re.split(r"cause: |╰─▶ |error: ", said)[-1]
    text = " ".join(re.split(r"\n\s*\n|\n\s*hint:", found)[0].split())
    text = re.sub(r", we can conclude that .*?(?=\. And|\.?$)", "", text.removeprefix("Because "))
    parts = [part.rstrip(".") for part in re.split(r"\.? And because ", text)]
    return (
        "; ".join(part for part in parts if part and not part.startswith("you require"))[:400]
        or text
    )


def _pin_against(needs: str) -> str:
    """The pin that does not do for a requirement, if one does not."""
    try:
        parsed = Requirement(needs)
    except InvalidRequirement:
        return ""
    name = canonicalize_name(parsed.name)
    pinned = pins().get(name)
    if not pinned or parsed.specifier.contains(pinned, prereleases=True):
        return ""
    return f"{name}=={pinned}"


def _without_pins(text: str) -> str:
    """The blocks of a requirements.txt that the pins do not bring, without remarks."""
    blocks = {name: (block, via) for name, block, via in _blocks(text)}
    brought = set(pins())
    while more := {name for name, (_, via) in blocks.items() if brought & via} - brought:
        brought |= more
    return "".join(block for name, (block, _) in blocks.items() if name not in brought)


def _blocks(text: str) -> Iterator[tuple[str, str, set[str]]]:
    """Each library's name, its lines, and the names of those that need it."""
    for block in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]:
        lines, remarks = _apart(block.splitlines())
        via = {str(canonicalize_name(name)) for name in re.findall(r"[\w.-]+", remarks)}
        yield canonicalize_name(re.split(r"[=\s;\[]", block)[0]), lines, via


def _apart(lines: Sequence[str]) -> tuple[str, str]:
    """A block's own lines, and its remarks (`# via -c pins.txt, torch`)."""
    own = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    remarks = [line.partition("# via")[2] for line in lines if line.strip().startswith("# via")]
    named = [
        each for line in remarks for each in line.split(",") if not each.strip().startswith("-")
    ]
    own[-1] = own[-1].rstrip("\\ ")
    return "\n".join(own) + "\n", " ".join(named)
