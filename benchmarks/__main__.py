"""`python -m benchmarks [ROW ...]`: measure, print the table, keep the results. Each file of rows
runs in a fresh process. `make docs` puts the newest results into docs/performance.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import result

FILES = {
    1: "loop",
    2: "vit",
    3: "saving",
    4: "saving",
    5: "resume",
    6: "startup",
    7: "restart",
    8: "upload",
    9: "goodput",
    10: "saving",
    11: "exact",
    12: "chat",
    13: "bucket",
    14: "images",
    15: "deadline",
    16: "quote",
    17: "sweep",
    18: "text",
    19: "pictures",
    20: "sharded",
    21: "page",
}
"""Which file measures a row."""
NAMES = {"deadline": 15, "quote": 16, "sweep": 17, "page": 21}
"""What is asked for by name: no machine changes the numbers of the first three, and the last one
needs a Chromium."""


def arguments(given: list[str]) -> argparse.Namespace:
    """What the command line says: `rows`, `quick`, `results`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "rows",
        metavar="ROW",
        nargs="*",
        type=_row,
        default=[row for row in FILES if row not in NAMES.values()],
        help="A number, or a name: deadline, quote, sweep, page. Default: all that have no name.",
    )
    parser.add_argument("--quick", action="store_true", help="Few rounds: to see that it works.")
    parser.add_argument(
        "--results", type=Path, default=result.RESULTS, help="The folder of the results."
    )
    return parser.parse_args(given)


def _row(text: str) -> int:
    if text in NAMES:
        return NAMES[text]
    if not text.isdecimal() or int(text) not in FILES:
        raise argparse.ArgumentTypeError(f"there is no row {text}: {', '.join(map(str, FILES))}")
    return int(text)


def main() -> int:
    """Returns 0 once everything was measured, whether or not targets are met."""
    chosen = arguments(sys.argv[1:])
    wanted, failed = set(chosen.rows), []
    print(result.HEADER, flush=True)
    for name in dict.fromkeys(FILES[row] for row in sorted(wanted)):
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            *(["--quick"] if chosen.quick else []),
        ]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
            check=False,
        )
        rows = [row for row in map(json.loads, done.stdout.splitlines()) if row["row"] in wanted]
        result.keep(rows, chosen.results)
        for row in rows:
            print(
                result.Row(**{key: row[key] for key in result.Row.__dataclass_fields__}).text(),
                flush=True,
            )
        if done.returncode:
            failed.append(name)
        print(f"benchmarks.{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
