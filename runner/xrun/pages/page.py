"""What is shown -> one HTML file that needs nothing else: no network, no server, no other file.

The data lie in it as JSON in blocks of their own, so that the list is there before the lines of
hundreds of runs are read. Nothing of a run is ever markup: the page's script makes texts of it, and
the file forbids every script and style but its own two, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from ..files import json_text
from ..run.report import RunReport
from .contents import Shown, index_of
from .sheet import Room, Sheet, sheet_of

_ASSETS = Path(__file__).parent / "assets"
_AT_ONCE = 8
"""Runs far away that are asked side by side."""


@dataclass(frozen=True)
class Page:
    """The file's bytes, and how many points of how many it shows."""

    html: bytes
    shown: int
    logged: int


Follow = Callable[[Iterable[Sheet]], Iterable[Sheet]]


def page_of(shown: Shown, *, follow: Follow = iter) -> Page:
    """The whole page. `follow` sees each run's sheet as soon as it is made. Raises nothing because
    of a run: what cannot be read says so on the page."""
    room = Room.on_a_page(len(shown.reports))
    reports: list[RunReport] = []
    blocks: list[str] = []
    points = logged = 0
    for sheet in follow(_sheets(shown.reports, room)):
        reports.append(sheet.report)
        blocks.append(as_data(sheet.to_json()))
        points += sum(len(each.steps) for each in sheet.series.values())
        logged += sum(each.logged for each in sheet.series.values())
    index = index_of(replace(shown, reports=reports), time.time())
    return Page(html(index, blocks), points, logged)


def _sheets(reports: Sequence[RunReport], room: Room) -> Iterator[Sheet]:
    """In their order. Those on this machine one by one: each may have a million points."""
    far = [each for each in reports if "://" in each.folder]
    with ThreadPoolExecutor(_AT_ONCE if far else 1) as threads:
        if not far:
            yield from (sheet_of(report, room) for report in reports)
        else:
            yield from threads.map(lambda report: sheet_of(report, room), reports)


def html(index: dict[str, Any], blocks: Sequence[str] = (), *, live: float = 0.0) -> bytes:
    """The file. With `live` it asks its server for everything anew each so many seconds, and has no
    blocks."""
    style, library, script = _assets()
    data = [_block("index", as_data({**index, "live": live}))]
    runs = [_block(f"run-{number}", block) for number, block in enumerate(blocks)]
    asks = "self" if live else "none"
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)};"
        f" style-src {_hash(style)}; connect-src '{asks}';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(index['title'])}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<div id="app"></div>\n'
        "<noscript>This page draws with a script of its own, which this browser does not run."
        " `xrun status` and `xrun report` say the same as text.</noscript>\n"
    )
    code = f"<script>{library}</script>\n<script>{script}</script>\n"
    return "".join([head, *data, code, *runs, "</body>\n</html>\n"]).encode()


def as_data(value: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json_text(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _block(name: str, data: str) -> str:
    return f'<script type="application/json" id="{name}">{data}</script>\n'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _assets() -> tuple[str, str, str]:
    """The style, the library that draws, with its licence, and the page's own script."""
    uplot = _ASSETS / "uplot"
    licence = (uplot / "LICENSE").read_text().strip()
    library = f"/*! uPlot\n{licence}\n*/\n{(uplot / 'uPlot.iife.min.js').read_text()}"
    style = (uplot / "uPlot.min.css").read_text() + (_ASSETS / "page.css").read_text()
    script = (_ASSETS / "page.js").read_text()
    for text in (style, library, script):
        assert not re.search(r"</(script|style)|<!--", text, re.IGNORECASE), "it would end its tag"
    return style, library, script
