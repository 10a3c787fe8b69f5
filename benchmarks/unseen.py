"""`python -m benchmarks.unseen`: the lines of xrun that hang on CUDA and that no test has run, by
file, as they stand in docs/performance.md.

A line hangs on CUDA if it speaks of it (`cuda`, `nccl`, `is_cpu`) or stands in the block of a
condition that does, or below one that leaves the function otherwise. What has run says coverage.py
(`pip install coverage`):

    python -m benchmarks.unseen --run TESTS ...    # pytest under coverage, each process of it
    python -m benchmarks.unseen                    # what is left, of all that was run here
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "runner" / "xrun"
ROOMS = ("checkpoint", "data", "machine", "supervisor", "training")
"""What runs on a machine with GPUs; what a launch says of them runs without."""
DATA = ROOT / ".coverage" / "cuda"
SPEAKS = re.compile(r"cuda|nccl|\bis_cpu\b|== \"cpu\"|!= \"cpu\"", re.IGNORECASE)
SETTINGS = f"""\
[run]
data_file = {DATA}
source = {SOURCES}
parallel = true
concurrency = thread, multiprocessing
patch = subprocess, _exit
sigterm = true
disable_warnings = no-data-collected
"""
"""Ranks are processes of processes, and end by os._exit."""
_NO_CODE = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
_Block = Sequence[ast.stmt]


def cuda_lines(source: str) -> set[int]:
    """The first line of each statement that hangs on CUDA; imports and texts hang on nothing."""
    found: set[int] = set()

    def visit(block: _Block, hangs: bool) -> None:
        for statement in block:
            own = hangs or bool(SPEAKS.search(_head(statement)))
            if own and not (isinstance(statement, _NO_CODE) or _is_text(statement)):
                found.add(statement.lineno)
            below = own and not isinstance(statement, ast.FunctionDef | ast.ClassDef)
            for inner in _blocks(statement):
                visit(inner, below)
            hangs = hangs or (isinstance(statement, ast.If) and own and _leaves(statement.body))

    visit(ast.parse(source).body, hangs=False)
    return found


def _blocks(statement: ast.stmt) -> Iterator[_Block]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(statement, name, [])
    for handler in getattr(statement, "handlers", []):
        yield handler.body


def _head(statement: ast.stmt) -> str:
    """A statement without the blocks in it, and without the words of a text."""
    if _is_text(statement):
        return ""
    inside = [each for block in _blocks(statement) for each in block]
    own = (child for child in ast.iter_child_nodes(statement) if child not in inside)
    return " ".join(ast.unparse(child) for child in own if not isinstance(child, ast.excepthandler))


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _leaves(block: _Block) -> bool:
    return isinstance(block[-1], ast.Return | ast.Raise | ast.Continue)


def run(tests: Sequence[str]) -> int:
    """pytest of these under coverage; what earlier calls have seen is kept."""
    DATA.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".ini") as settings:
        settings.write(SETTINGS)
        settings.flush()
        command = ["-m", "coverage", "run", f"--rcfile={settings.name}", "-m", "pytest", *tests]
        return subprocess.run([sys.executable, *command], check=False, cwd=ROOT).returncode


def unseen() -> dict[str, list[int]]:
    """By file, the lines that hang on CUDA and that nothing has run."""
    import coverage

    seen = coverage.Coverage(data_file=str(DATA), config_file=False)
    seen.combine(keep=True)
    told = seen.get_data()
    left = {}
    for path in sorted(path for room in ROOMS for path in (SOURCES / room).rglob("*.py")):
        lines = cuda_lines(path.read_text()) - set(told.lines(str(path)) or ())
        if lines:
            left[path.relative_to(SOURCES).as_posix()] = sorted(lines)
    return left


def main(given: Sequence[str]) -> int:
    """Returns the exit code."""
    if given[:1] == ["--run"]:
        return run(given[1:])
    for name, lines in unseen().items():
        code = (SOURCES / name).read_text().splitlines()
        for line in lines:
            print(f"{name}:{line}: {code[line - 1].strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
