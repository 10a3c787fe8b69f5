"""What people read is true: links lead somewhere, commands parse, recipes pass, examples run, and
what is made from the code is current. `make docs-site` builds the same pages strictly."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from support.messages import messages, messages_of
from support.paths import ROOT
from support.reference import DOCS, EXIT_CODES, anchor, exit_codes, pages
from support.running import ended, start
from xrun import errors
from xrun.cli.app import cli
from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe

pytestmark = pytest.mark.once

WRITTEN = sorted(
    path for path in DOCS.rglob("*.md") if path.parent.name not in ("decisions", "reference")
)
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *WRITTEN]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACES = {"RECIPE": "recipes/digits.yaml", "ADDRESS": "hub://owner/name", "FOLDER": "folder"}
"""What stands in the documentation for what people put there, where any text would not do."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *kinds: str) -> list[str]:
    """What stands between fences of these kinds."""
    return [found[2] for found in FENCE.finditer(path.read_text()) if found[1] in kinds]


@pytest.mark.parametrize("place", sorted(pages()))
def test_what_is_made_from_the_code_is_current(place: str) -> None:
    assert (DOCS / place).read_text() == pages()[place], "run: make docs"


@pytest.mark.parametrize("path", [*READ, *DOCS.glob("decisions/*.md")], ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    """To a file that is there, at a heading that it has; from docs/ to nothing that is not on the
    site."""
    text = FENCE.sub("", path.read_text())
    found = [each for each in LINK.findall(text) if not re.match(r"https?:|mailto:", each)]
    for link in found:
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), link
        assert target.is_relative_to(path.parents[0] if path.parent == ROOT else DOCS), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert heading in [anchor(each) for each in headings], link


def test_every_page_has_its_place_on_the_site() -> None:
    """And is reached from the front page's menu."""
    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    left_out = {"pypi.md", *(each for each in written if re.match(r"decisions/\d", each))}
    assert named == written - left_out
    assert told["strict"]


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of every `xrun` that a page has people type; what follows two spaces or a `#`
    is what it does."""
    for block in blocks(path, "", "bash"):
        for line in block.splitlines():
            typed = re.split(r"\s{2,}|\s#", line.strip().removeprefix(".venv/bin/"))[0]
            if typed.startswith("xrun "):
                yield words(typed)


def named(path: Path) -> Iterator[list[str]]:
    """The same of every `xrun` within a sentence, where what it is about may be left out."""
    for typed in re.findall(r"`xrun ([^`]*)`", FENCE.sub("", path.read_text())):
        if not typed.startswith("-"):
            yield words(f"xrun {typed}")


def words(typed: str) -> list[str]:
    """Without what only says that there may be more."""
    told = (PLACES.get(word, word) for word in shlex.split(typed)[1:])
    return [word for word in told if word != "..." and not word.startswith("[")]


@pytest.mark.parametrize("path", READ, ids=name_of)
def test_commands_are_xruns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a command with options that it has."""
    monkeypatch.chdir(ROOT)
    for arguments in commands(path):
        parsed(arguments)
    for arguments in named(path):
        with contextlib.suppress(click.MissingParameter):
            parsed(arguments)


def parsed(arguments: list[str]) -> None:
    """Parse without executing."""
    command: click.Command = cli
    name, rest = "xrun", arguments
    while isinstance(command, click.Group) and rest:
        context = click.Context(command, info_name=name)
        resolved, found, rest = command.resolve_command(context, list(rest))
        assert found is not None
        command, name = found, resolved or ""
    if rest:
        command.make_context(name, list(rest))


def test_a_command_that_is_none_would_be_found() -> None:
    for wrong in (["drill", "--kill", "3"], ["chek", "x.yaml"], ["sweep", "worst", "x.yaml"]):
        with pytest.raises(click.UsageError):
            parsed(wrong)


@pytest.mark.parametrize("path", READ, ids=name_of)
def test_recipes_pass(path: Path, tmp_path: Path) -> None:
    """A whole one as it is, a part of one on top of a recipe that comes along; with the components
    that the page defines."""
    for folder in ("models", "datasets", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name, text in files_of(path):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    parts = "extends: digits.yaml\ntrain: {global_batch: 512}\n"
    (tmp_path / "recipes" / "for_parts.yaml").write_text(parts)
    for number, text in enumerate(blocks(path, "yaml")):
        made = tmp_path / "recipes" / f"of_the_page_{number}.yaml"
        told = yaml.safe_load(text)
        base = "" if "name" in told or "extends" in told else "extends: for_parts.yaml\n"
        made.write_text(base + text)
        try:
            load_recipe(made)
        except RecipeError as error:
            pytest.fail(f"{path}: {error}\n{text}")


def files_of(path: Path) -> Iterator[tuple[str, str]]:
    """Files that a page has people write: their first line is a comment with the name."""
    for block in blocks(path, "python", "yaml"):
        if found := re.match(r"# ((models|datasets|recipes)/\w+\.(py|yaml))\n", block):
            yield found[1], block


def test_every_exit_code_says_what_to_do() -> None:
    """In the reference, and in what people read when it fails."""
    own = {each.exit_code for each in vars(errors).values() if hasattr(each, "exit_code")}
    page = (DOCS / "howto" / "when-it-fails.md").read_text()
    assert own | {0} == EXIT_CODES.keys()
    assert {
        int(code) for code in re.findall(r"^### (\d+): ", page, re.MULTILINE)
    } == EXIT_CODES.keys()
    assert "`RecipeError` | 2 |" in exit_codes()


def test_messages_are_those_of_the_program() -> None:
    """What people look for is what they have read."""
    text = (DOCS / "howto" / "when-it-fails.md").read_text()
    told = re.findall(r"^### (.*)$", text.partition("## By message")[2], re.MULTILINE)
    said = "\n".join(each.text for each in messages())
    assert len(told) >= 9
    assert [each for each in told if each not in said] == []


def test_the_list_of_messages_has_what_people_read_and_nothing_else() -> None:
    """Texts as a whole, the help of commands, and neither keys nor other docstrings."""
    source = '''
"""Of the module, for who reads it."""

@click.command()
def rm(target):
    """Delete all of RUN."""
    key = "train optimizer"
    raise StoreError(
        f"{target} cannot be "
        "deleted: " + why(f"{target} is not here"), "runs/plan.json",
    )
'''
    assert [each[1:] for each in messages_of(ROOT / "here.py", source)] == [
        (6, "Delete all of RUN."),
        (9, "{target} cannot be deleted: {why(f'{target} is not here')}"),
        (10, "{target} is not here"),
    ]


@pytest.mark.e2e
@pytest.mark.parametrize(("page", "run"), [("quickstart", "my-first"), ("tutorial", "flowers")])
def test_what_a_new_user_types_leads_to_a_trained_model(
    page: str, run: str, tmp_path: Path
) -> None:
    """By what the page has people write and type, in an empty folder with their data; not as long
    as somebody who is to interrupt it, and drills have tests of their own."""
    path = DOCS / f"{page}.md"
    for name, text in files_of(path):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / "examples" / "iris" / "data", tmp_path / "data")
    (tmp_path / "home").mkdir()
    typed = [each for block in blocks(path, "") for each in block.splitlines()]
    for line in (each for each in typed if each.startswith("xrun ") and "drill" not in each):
        shorter = line.replace("train.epochs=200", "train.epochs=12")
        done = ended(start(tmp_path, *shlex.split(shorter)[1:]), 600)
        assert done.code == 0, (line, done.err)
    assert list(tmp_path.glob(f"runs/{run}-*/model/model.safetensors"))


@pytest.mark.e2e
def test_examples_of_python_run(tmp_path: Path) -> None:
    """One after the other, as somebody would type them."""
    for folder in ("models", "datasets", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = "".join(blocks(DOCS / "reference" / "python.md", "python"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "2 data/train.csv has no rows. Fetch it again." in done.stdout


@pytest.mark.e2e
def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    """By the program of `make docs-site`, which refuses links and headings that are not there; a
    copy, so that nothing lies in the checkout afterwards."""
    for name in ("docs", "recipes", "mkdocs.yml", "README.md"):
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copied(ROOT / name, tmp_path / name)
    program = ROOT / ".venv-tools" / "bin" / "zensical"
    assert program.is_file(), "run: make e2e, or make .venv-tools/stamp"
    build = [str(program), "build", "--strict", "--clean"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=300)
    front = (tmp_path / "site" / "index.html").read_text()
    assert "spot GPUs that survives every preemption" in front
    assert "--8&lt;--" not in front
    listed = LINK.findall((tmp_path / "site" / "llms.txt").read_text())
    assert len(listed) > 20
    assert [each for each in listed if not (tmp_path / "site" / each).is_file()] == []
    with (tmp_path / "docs" / "alerts.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    broken = subprocess.run(build, cwd=tmp_path, capture_output=True, check=False, timeout=300)
    assert broken.returncode != 0
