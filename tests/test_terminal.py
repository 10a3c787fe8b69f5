"""What people read is text, and nothing that a terminal obeys."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from support.paths import ROOT
from xrun.terminal import OnlyText, Plain, shown

XRUN = Path(sys.executable).with_name("xrun")
HOSTILE = "\x1b[31m\x1b]52;c;ZXZpbA==\x07\x9b2J\u202etxt\u2066\x7f\rover"


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey."""
    return [each for each in text if each not in "\n\t" and unicodedata.category(each)[0] == "C"]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("Größe 3×4 🙂, 日本\tok\n", "Größe 3×4 🙂, 日本\tok\n"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("\x9b31m\x85", "\\u009b31m\\u0085"),
        ("a\u202eb\u2066\u200f", "a\\u202eb\\u2066\\u200f"),
        ("safe\rover\x08\x7f\0", "safe\\u000dover\\u0008\\u007f\\u0000"),
        ("\ud800\ufeff\U000e0041", "\\ud800\\ufeff\\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_is_spelled(text: str, spelled: str) -> None:
    """And what can be read stays as it is."""
    assert shown(text) == spelled


def test_json_stays_json() -> None:
    """The spelling is JSON's: a program reads the very text back."""
    assert json.loads(shown(json.dumps(HOSTILE))) == HOSTILE
    assert json.loads(shown(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_a_stream_shows_whatever_is_written() -> None:
    """Also what its encoding cannot write; a library that asks finds no terminal to draw on."""
    raw = io.BytesIO()
    stream = OnlyText(io.TextIOWrapper(raw, encoding="ascii"))
    print(HOSTILE, "ü", file=stream)
    assert raw.getvalue().decode() == shown(HOSTILE) + " \\xfc\n"
    assert not stream.isatty()


def test_another_programs_log_comes_without_colours_and_bars() -> None:
    """Each state of a bar is a line of its own."""
    out = io.StringIO()
    Plain(out).write("\x1b[36m(job)\x1b[0m 10%\r20%\r\nend\n")
    assert out.getvalue() == "(job) 10%\n20%\nend\n"


def said(*arguments: str, folder: Path) -> str:
    done = subprocess.run([XRUN, *arguments], cwd=folder, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", HOSTILE],
        ["check", "recipe.yaml"],
        ["check", "--json", "recipe.yaml"],
        ["check", str(ROOT / "recipes" / "digits.yaml"), "-s", f"{HOSTILE}={HOSTILE}"],
        ["report", HOSTILE],
        ["x" + HOSTILE],
        ["check", f"--{HOSTILE}"],
        ["logs", "run", "--rank", HOSTILE],
        ["init", f"no/{HOSTILE}.yaml"],
    ],
    ids=lambda arguments: ascii(arguments)[:50],
)
def test_every_command_shows(arguments: list[str], tmp_path: Path) -> None:
    """Names of files, texts of recipes, and what click says of its own; nothing is left out."""
    (tmp_path / "recipe.yaml").write_text(f'"{shown(HOSTILE)}": "{shown(HOSTILE)}"\n')
    text = said(*arguments, folder=tmp_path)
    assert obeyed(text) == []
    assert "1b[31m" in text
