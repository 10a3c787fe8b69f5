"""docs/drill.svg: the loss of a run under SIGKILLs over that of the same run undisturbed, from a
real drill. `make picture` makes it again."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from xrun.drill import Result, drill
from xrun.run.folder import runs_in
from xrun.run.points import read_points

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 330, 52, 16, 48, 44
RECIPE = "recipes/digits_mlp.yaml"
OVERRIDES = ("train.steps=900", "checkpoint.every=25 steps")
KILLS, MEAN = 12, 15
# Legible on white and on black, and by people who see red and green alike.
CALM, KILLED, TEXT = "#6ea8fe", "#d9480f", "#808a94"
Line = list[tuple[int, float]]


def loss(home: Path) -> Line:
    """The means of so many logged losses of the only run there, by step."""
    points = read_points(runs_in(home)[0].metrics)
    found = [(each["step"], each["train/loss"]) for each in points if "train/loss" in each]
    cut = [found[i : i + MEAN] for i in range(0, len(found), MEAN)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in cut]


def picture(calm: Line, killed: Line, kills: Sequence[int], result: Result) -> str:
    """The drawing."""
    last = calm[-1][0]
    values = [y for _, y in (*calm, *killed)]
    low, high = math.log(min(values)), math.log(max(values))

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - math.log(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return x, y

    def line(points: Line, colour: str, width: float) -> str:
        told = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        return (f'<polyline fill="none" stroke="{colour}" stroke-width="{width}"'
                f' stroke-linejoin="round" points="{told}"/>')  # fmt: skip

    foot, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    marks = "".join(
        f'<path d="M{x:.1f} {TOP - 8}V{foot}" stroke="{KILLED}" stroke-dasharray="2 4"/>'
        f'<text x="{x:.1f}" y="{TOP - 12}" text-anchor="middle" fill="{KILLED}">×</text>'
        for x in (at(step, 1.0)[0] for step in kills)
    )
    same = "the same weights to the last bit" if result.equal else "DIFFERENT"
    texts = (
        (LEFT, 18, "start", KILLED, f"× {len(kills)} SIGKILLs"),
        (LEFT + 120, 18, "start", CALM, "undisturbed"),
        (end, 18, "end", TEXT, f"{same}: sha256 {result.weights_sha256[1][:12]}…"),
        (LEFT, foot + 20, "middle", TEXT, "0"),
        (end, foot + 20, "end", TEXT, f"step {last}"),
        (LEFT - 6, TOP + 6, "end", TEXT, f"{math.exp(high):.2g}"),
        (LEFT - 6, foot, "end", TEXT, f"{math.exp(low):.2g}"),
        (LEFT + 6, foot + 36, "start", TEXT, f"training loss (log), means of {MEAN} steps"),
    )
    told = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
        for x, y, anchor, colour, text in texts
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="system-ui,sans-serif" font-size="13" role="img">'
        f"<title>The loss of a run that was killed {len(kills)} times lies on that of the"
        " undisturbed run.</title>"
        f'<path d="M{LEFT} {TOP}V{foot}H{end}" fill="none" stroke="{TEXT}"/>{marks}'
        f"{line(calm, CALM, 6)}{line(killed, KILLED, 1.4)}{told}</svg>\n"
    )


def main(out: Path) -> None:
    """Run the drill, and draw."""
    said: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        said.append(text)

    result = drill(Path(RECIPE), OVERRIDES, kills=KILLS, say=say)
    kills = [
        int(found[1]) for text in said if (found := re.search(r"^kill .* at step (\d+)$", text))
    ]
    folder = Path(result.folder)
    print(result.text())
    out.write_text(picture(loss(folder / "undisturbed"), loss(folder / "disturbed"), kills, result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
