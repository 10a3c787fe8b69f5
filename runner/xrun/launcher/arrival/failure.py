"""Why a step of the installation failed, and what follows: try again, another machine, or the end.

Runs on a machine that may have nothing but Python, so it imports the standard library only, and
what of xrun's wheel needs nothing else.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

PINS = "the pinned libraries"
REQUIREMENTS = "the recipe's requirements"
RECIPE = "the recipe's setup"
EDIT, COME_BACK = 2, 75
"""Exit codes: a person has to change something; another machine may do (xrun.errors)."""

_NETWORK = re.compile(
    r"Could not fetch URL (?!.*\b40[34] Client Error)|Failed to fetch|error sending request"
    r"|Failed to establish a new connection|[Cc]onnection (was )?(refused|reset|aborted|broken)"
    r"|(Connection|ReadTimeout|IncompleteRead|ProtocolError|SSL)Error|IncompleteRead\("
    r"|[Tt]imed out|[Tt]imeout (was )?reached|Could not resolve|Name or service not known"
    r"|[Tt]emporary failure|Network is unreachable|Remote end closed|Content-Type"
    r"|\b50[0234] (Server Error|Internal|Bad Gateway|Service|Gateway)|server error \(5\d\d"
)
"""What pip, uv, apt, curl, git and Python say of a network, or of a server on it, that fails."""
_FINAL = re.compile(
    r"No matching distribution found|ResolutionImpossible|conflicting dependencies"
    r"|No solution found|was not found in the package registry|are unsatisfiable"
    r"|requires a different Python|No space left on device|ensurepip is not available"
    r"|command not found|No module named pip|DO NOT MATCH THE HASHES|Hash mismatch"
    r"|is not a supported wheel|no wheels with a matching|because it doesn't have a (wheel|source)"
)
"""What is the same on the next machine."""
_SUMS_UP = re.compile(
    r"^(ERROR: (?!Could not find|ResolutionImp)|error: (?!No solution)|\s+cause: )"
)
"""How pip and uv begin the line that says most."""
_HINTS = {
    PINS: "Use another image, a larger disk, or the xrun that the recipe was made for",
    REQUIREMENTS: "Change `requirements` of the recipe, or install what they lack under `setup`",
    RECIPE: "Change `setup` of the recipe",
}


@dataclass(frozen=True)
class Failure:
    """A step that failed: `line` says most of what it has printed; `passing` if trying again may
    help."""

    line: str
    passing: bool


def failure_of(printed: str, what: str) -> Failure:
    """Read what a step has printed, and its installer's log.

    Where nothing in it is known, the pins and the requirements, whose versions were found before,
    failed because of the machine; a recipe's own commands, because of themselves.
    """
    lines = [line for line in printed.splitlines() if line.strip()]
    network = [line for line in lines if _NETWORK.search(line)]
    final = [line for line in lines if _FINAL.search(line)]
    found = network or final or lines[-1:] or ["it printed nothing"]
    told = next((line for line in found if _SUMS_UP.search(line)), found[-1])
    plain = re.sub(r"^(ERROR:|error:|\s*cause:|\d{4}-\d\d-\d\dT\S+)\s*", "", told).strip()
    return Failure(plain[:300].rstrip("."), bool(network) or (not final and what != RECIPE))


def verdict(failure: Failure, what: str, seconds: int) -> tuple[int, str]:
    """The exit code, 0 to try again after so many `seconds` (0: that was the last try), and the
    sentence that says so."""
    said = f"{what} could not be installed: {failure.line}."
    if not failure.passing:
        hint = f"{_HINTS[what]}, then run the same command again."
        return (
            EDIT,
            f"{said} Every machine would fail in the same way, so the run ends here. {hint}",
        )
    if seconds:
        return 0, f"{said} Trying again in {seconds} s."
    return COME_BACK, f"{said} This machine is given up; the job comes back on another one."


def tell(cargo: Path, code: int, sentence: str) -> list[str]:
    """Tell people that this machine is not ready, if they want to hear of it; what went wrong with
    that, which changes nothing."""
    try:
        sys.path += map(str, cargo.glob("*.whl"))
        from xrun_sky.told import not_set_up

        return not_set_up(cargo, sentence, final=code == EDIT)
    except ImportError:  # a wheel of an xrun whose machines do not tell
        return []
    except Exception as error:  # a strange machine: there is worse to be said
        return [f"Nobody was told by `alerts`: {type(error).__name__}."]


if __name__ == "__main__":
    paths, (_what, _seconds) = sys.argv[3:], sys.argv[1:3]
    _printed = ""
    for path in paths:
        try:
            with open(path, errors="replace") as file:
                _printed += file.read()
        except FileNotFoundError:  # an installer without a log of its own
            pass
    code, sentence = verdict(failure_of(_printed, _what), _what, int(_seconds))
    print(f"xrun: {sentence}", flush=True)
    for line in tell(Path(__file__).parent, code, sentence) if code else ():
        print(f"xrun: {line}", flush=True)
    sys.exit(code)
