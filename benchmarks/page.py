"""Row 21: milliseconds from asking for a page to its first paint, in a headless Chromium: a page of
200 runs, and one of a run with 10^6 points; what both weigh, and how long the longest frame is
while 100,000 points are zoomed and read.

Chromium is Debian's (`apt-get install chromium`). Pages are opened from disk, in a new browser
context each time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from benchmarks.result import Row, main, median, spread

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "servers")]

from benchmarks.runs import lengthen  # noqa: E402
from support.running import Project  # noqa: E402
from support.shown_runs import trained  # noqa: E402

TARGET = 1000.0
SMOOTH = 50.0
"""Milliseconds; browsers call longer tasks long, since people begin to see them."""
PAINTS = """() => new Promise((done) => { const look = () => {
  const found = performance.getEntriesByName('first-contentful-paint')[0];
  if (found) done(found.startTime); else setTimeout(look, 5); }; look(); })"""
FRAMES = """() => { window.frames_ = []; window.tasks_ = []; let before = performance.now();
  new PerformanceObserver((list) => { for (const each of list.getEntries())
    window.tasks_.push(each.duration); }).observe({entryTypes: ['longtask']});
  const next = (now) => { window.frames_.push(now - before); before = now;
    requestAnimationFrame(next); };
  requestAnimationFrame((now) => { before = now; requestAnimationFrame(next); }); }"""


def measure(quick: bool) -> Iterator[Row]:
    """One row: the slower of the two pages."""
    runs, points, rounds = (20, 20_000, 2) if quick else (200, 1_000_000, 7)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        many, many_seconds = _page(folder / "many", runs)
        long, long_seconds = _page(folder / "long", 1, points)
        program = shutil.which("chromium")
        if program is None:
            raise SystemExit("Row 21 needs Debian's Chromium: apt-get install chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        paints: dict[str, list[float]] = {"runs": [], "points": []}
        charts: dict[str, list[float]] = {"runs": [], "points": []}
        for turn in range(rounds + 1):
            for which, path in (("runs", many), ("points", long)):
                painted, drawn = _opened(browser, path)
                if turn:  # the first one starts the browser's processes
                    paints[which].append(painted)
                    charts[which].append(drawn)
        sizes = {"runs": many.stat().st_size / 1e6, "points": long.stat().st_size / 1e6}
        frame, task = _moved(browser, _page(folder / "smooth", 1, 2_000 if quick else 100_000)[0])
        browser.close()
    worst = max(paints, key=lambda each: median(paints[each]))
    also = {
        "runs": runs,
        "points": points,
        "first_paint_ms": {each: median(paints[each]) for each in paints},
        "curves_drawn_ms": {each: median(charts[each]) for each in charts},
        "megabytes": sizes,
        "seconds_to_make": {"runs": many_seconds, "points": long_seconds},
        "longest_frame_ms_of_100000_points": frame,
        "longest_task_ms_of_100000_points": task,
    }
    what = f"ms to the first paint of a page: the slower of {runs} runs and {points} points"
    median_, around = median(paints[worst]), spread(paints[worst])
    yield Row(21, what, median_, TARGET, "lower", {}, around, also, task <= SMOOTH)


def _page(root: Path, runs: int, points: int = 0) -> tuple[Path, float]:
    """A page made by the command itself, and the seconds that took."""
    root.mkdir()
    project = Project(root)
    for number in range(runs):
        plan = project.plan(f"train.seed={number}", run=f"tiny-{number}")
        folder = trained(plan, steps=500, lost=number % 4, seed=number)
        if points:
            lengthen(folder.metrics, points)
    began = time.monotonic()
    done = project.xrun("page", seconds=600)
    if done.code:
        raise SystemExit(done.err)
    return root / "runs.html", time.monotonic() - began


def _opened(browser: Browser, path: Path) -> tuple[float, float]:
    """Milliseconds to the first paint with content, and until the first chart is drawn."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(path.as_uri(), wait_until="commit")
    page.locator(".chart").first.scroll_into_view_if_needed()
    page.locator(".chart canvas").first.wait_for(timeout=60_000)
    drawn = float(page.evaluate("performance.now()"))
    painted = float(page.evaluate(PAINTS))
    context.close()
    return painted, drawn


def _moved(browser: Browser, path: Path) -> tuple[float, float]:
    """The longest frame and the longest task in milliseconds, while the pointer goes over the curve
    and it is zoomed in and out."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    plot = page.locator(".plot").first
    plot.locator("canvas").wait_for()
    page.wait_for_timeout(500)
    page.evaluate(FRAMES)
    box = plot.bounding_box()
    assert box is not None
    for turn in range(60):
        page.mouse.move(box["x"] + 70 + turn * 5, box["y"] + 60)
    plot.focus()
    for key in "++++----" * 2:
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    frame = float(page.evaluate("Math.max(...window.frames_)"))
    task = float(page.evaluate("Math.max(0, ...window.tasks_)"))
    page.close()
    return frame, task


if __name__ == "__main__":
    main(measure)
