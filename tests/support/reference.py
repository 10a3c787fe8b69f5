"""Pages of the documentation that are made from the code: commands, shipped components, environment
variables, exit codes, Python names, the list of decisions, the table of measurements, and
`llms.txt`. `make docs` writes them."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

import xrun
from support.paths import ROOT
from xrun import environment, errors
from xrun.cli.app import cli
from xrun.component import Parameter, signature

DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
EXIT_CODES = {
    0: "finished; a finished run that is started again changes nothing",
    1: "a bug in xrun; of `xrun drill`, that the two runs differ",
    2: "what was typed, the recipe or a component is wrong; where only the export failed, the run"
    " is finished",
    3: "an account, a permission or a library is missing, or the run is busy elsewhere",
    4: "the storage refuses",
    5: "the run's checkpoints do not fit the recipe or its data, or cannot be found again",
    6: "training cannot go on: a loss, gradient or weight is not finite, or the data has ended",
    7: "stopped on purpose; no machine starts it again",
    75: "come back: the state is committed, or try again",
}
KINDS = ("models", "datasets")
COMPONENTS = """\
What comes with xrun, and what stands under `args` in a recipe. A file of the same name in a
project's `models/` or `datasets/` takes its place; [a model, a dataset or a loss of your
own](../howto/components.md) says how one is written.
"""
_MADE = "Made from the code by `make docs`.\n"
_FROM = re.compile(r"^<!-- from (\S+) -->\n.*?^<!-- /from -->$", re.MULTILINE | re.DOTALL)
_SLUG = re.compile(r"[^\w\- ]")


def pages() -> dict[str, str]:
    """Every page by its path in docs/."""
    return {
        "reference/commands.md": commands(),
        "reference/components.md": shipped_components(),
        "reference/environment.md": variables(),
        "reference/exit-codes.md": exit_codes(),
        "reference/python.md": python_names(),
        "decisions/index.md": decisions(),
        "performance.md": performance(),
        "llms.txt": llms(),
        **{
            str(page.relative_to(DOCS)): _FROM.sub(_taken, text)
            for page in DOCS.rglob("*.md")
            if _FROM.search(text := page.read_text())
        },
    }


def _taken(found: re.Match[str]) -> str:
    """A place of a page with what it takes from another file as that is now: a part of it between
    marks of a name, or the whole file as a listing."""
    path, _, part = found[1].partition(":")
    text = (ROOT / path).read_text()
    if part:
        text = text[text.index(f"<!-- {part} -->\n") : text.index(f"<!-- /{part} -->")]
        text = text.partition("\n")[2]
    else:
        text = f"```{Path(path).suffix[1:]}\n{text}```\n"
    return f"<!-- from {found[1]} -->\n\n{text}\n<!-- /from -->"


def commands() -> str:
    """What each command prints as its help."""
    every = sorted(_commands(cli, "xrun"), key=lambda each: each[0])
    parts = ["# Commands\n", _MADE, "`xrun RECIPE` is `xrun run RECIPE`.\n"]
    parts += ["| command | what it does |", "|---|---|"]
    for name, command in every:
        told = " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split())
        parts.append(f"| [`{name}`](#{anchor(name)}) | {told.replace('|', chr(92) + '|')} |")
    for name, command in every:
        context = click.Context(command, info_name=name, max_content_width=96, terminal_width=96)
        parts.append(f"\n## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n".join([*parts, ""])


def _commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for own, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {own}")
        else:
            yield f"{name} {own}", command


def shipped_components() -> str:
    """Every model and dataset that comes with xrun: what it is, and what its `build` takes."""
    parts = ["# Models and datasets\n", _MADE, COMPONENTS]
    parts += ["| in a recipe | what it is |", "|---|---|"]
    files = [path for kind in KINDS for path in sorted((ROOT / kind).glob("*.py"))]
    for path in files:
        name = _component(path)
        parts.append(f"| [{name}](#{anchor(name)}) | {_sentence(ast.parse(path.read_text()))} |")
    for path in files:
        tree = ast.parse(path.read_text())
        build = next(each for each in tree.body if getattr(each, "name", "") == "build")
        assert isinstance(build, ast.FunctionDef)
        parts += [f"\n## {_component(path)}\n", f"{_sentence(tree)}\n"]
        parts += [f"{ast.get_docstring(build)}\n", "| argument | type | default |", "|---|---|---|"]
        parts += [_argument(each) for each in signature(path).parameters]
    return "\n".join([*parts, ""])


def _component(path: Path) -> str:
    """How a recipe names it."""
    return f"`{path.parent.name.removesuffix('s')}: {{name: {path.stem}}}`"


def _sentence(tree: ast.Module) -> str:
    """The first of a module's docstring."""
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def _argument(parameter: Parameter) -> str:
    kind = parameter.annotation.replace("|", "\\|")
    default = json.dumps(parameter.default) if parameter.is_literal else parameter.default
    told = "required" if parameter.required else f"`{default}`"
    return f"| `{parameter.name}` | `{kind}` | {told} |"


def variables() -> str:
    """Those that a person may set; the others are how processes of xrun tell each other."""
    own = [each for each in environment.ALL if each.name in environment.FOR_PEOPLE]
    rows = [f"| `{each.name}` | {f'`{each.default}`' if each.default else ''} | {each.meaning} |"
            for each in own]  # fmt: skip
    head = ["# Environment variables\n", _MADE, "| name | default | meaning |", "|---|---|---|"]
    others = (
        "\nOther variables that begin with `XRUN_` are how processes of xrun tell each other"
        " something; a recipe's `env` can set none of them. xrun also follows the usual variables"
        " of others: `XDG_CACHE_HOME` (where caches lie), `NO_COLOR`, and those of accounts"
        " (`HF_TOKEN`, `HF_ENDPOINT`, `WANDB_API_KEY`, `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,"
        " `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, ...).\n"
    )
    return "\n".join([*head, *rows, others])


def exit_codes() -> str:
    """What each says, and which errors end with it."""
    head = ["# Exit codes\n", _MADE, "| code | what it says |", "|---|---|"]
    rows = [f"| {code} | {told} |" for code, told in sorted(EXIT_CODES.items())]
    way = (
        "\n[Mend what fails](../howto/when-it-fails.md) says for each what to type. Some commands"
        " answer a question by their code: `xrun drill` and `xrun reproduce` end with 1 if two runs"
        " differ, `xrun verify` with 5 if a file is not as it was committed.\n"
    )
    table = ["## Errors\n", "| error | code | when |", "|---|---|---|"]
    for error in _errors():
        first = " ".join((error.__doc__ or "").split())
        code = str(error.exit_code)
        if "exit_code" in inspect.signature(error.__init__).parameters:
            code = "its cause's"
        table.append(f"| `{error.__name__}` | {code} | {first} |")
    return "\n".join([*head, *rows, way, *table, ""])


def _errors() -> list[Any]:
    """Every error of xrun with a code of its own, by code."""
    kinds = (errors.XrunError, errors.Stopped)
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    mine = [each for each in found if issubclass(each, kinds) and each is not errors.XrunError]
    return sorted(mine, key=lambda each: each.exit_code)


def python_names() -> str:
    """The public names with their signatures, docstrings and an example."""
    parts = ["# Python\n", _MADE, EXAMPLE]
    for name in sorted(xrun.__all__, key=str.lower):
        value = getattr(xrun, name)
        parts.append(f"## xrun.{name}\n")
        if inspect.isfunction(value):
            parts.append(f"```text\n{_signature(value)}\n```\n")
        errors_page = "Every error that xrun raises on purpose: [exit codes](exit-codes.md)."
        parts.append(errors_page + "\n" if name == "errors" else _prose(value))
        if name == "Recipe":
            parts.append("Its attributes are the keys of a [recipe](../recipes.md).\n")
        if inspect.isclass(value):
            parts += [_prose(each, f"{head}: ") for head, each in _members(value)]
    return "\n".join(parts).rstrip() + "\n"


def _prose(value: Any, head: str = "") -> str:
    """A docstring as Markdown: what it raises is a list. With a `head` it is an item of one."""
    told, _, raised = inspect.cleandoc(value.__doc__ or "").partition("\nRaises:\n")
    items = [
        " ".join(each.split()) for each in re.split(r"\n    (?=\w)", f"\n{raised}") if each.strip()
    ]
    errors = [re.sub(r"^(\w+)", r"`\1`", each) for each in items]
    if head:
        return f"* {head}{' '.join(told.split())}{' Raises ' if errors else ''}{' '.join(errors)}\n"
    listed = ["Raises:\n", *(f"* {each}" for each in errors), ""] if errors else []
    return "\n".join([told.rstrip() + "\n", *listed])


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """The public properties and methods of a class, each by how it is written."""
    for name, member in vars(value).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or member
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        arguments = ast.unparse(_parsed(function).args).removeprefix("self").removeprefix(", ")
        yield f"`{name}({arguments})`" if function is member else f"`{name}`", function


def _signature(function: Any) -> str:
    found = _parsed(function)
    returns = ast.unparse(found.returns) if found.returns else "None"
    return f"{found.name}({ast.unparse(found.args)}) -> {returns}"


def _parsed(function: Any) -> ast.FunctionDef:
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(found, ast.FunctionDef)
    return found


EXAMPLE = """\
What the command line does can be called. `xrun.start` trains a recipe and returns the run:

```python
import xrun

run = xrun.start("recipes/digits_mlp.yaml", {"train.steps": 60})
print(run.status, run.best["value"])
print(run.metrics.pandas().tail())
model = run.model()
```

The same in its parts. Nothing heavy is imported before it is asked for:

```python
from pathlib import Path

path = Path("recipes/digits_mlp.yaml")
recipe = xrun.load_recipe(path, ["train.steps=60"])  # RecipeError tells everything that is wrong
plan = xrun.make_plan(recipe, path)
print(plan.run, recipe.train.global_batch)
```

`plan.run` is the run's id, which follows from what the recipe computes. `xrun.launch` trains it, to
its end; here it is finished already:

```python
from xrun.launcher.local import LocalCloud

assert xrun.launch(plan, LocalCloud()) == 0  # the exit code
model = xrun.load_model(plan.folder / "model")
print(sum(parameter.numel() for parameter in model.parameters()))
```

A component may raise an error of `xrun.errors`, whose exit code says what happens next:

```python
from xrun.errors import ComponentError

try:
    raise ComponentError("data/train.csv has no rows.", "Fetch it again.")
except xrun.errors.XrunError as error:
    print(error.exit_code, error.message, error.hint)
```
"""


def decisions() -> str:
    """A line for each."""
    rows = []
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        number, _, title = path.read_text().splitlines()[0].removeprefix("# ").partition(" ")
        rows.append(f"* [{number}]({path.name}) {title}")
    what = "Why things are as they are, and what was given up for it; one page each.\n"
    return "\n".join(["# Decisions\n", what, *rows, ""])


def performance() -> str:
    """The page as people have written it, with the newest measurement of each row in its table."""
    head, start, rest = (DOCS / "performance.md").read_text().partition("<!-- measured -->\n")
    end = rest[rest.index("<!-- /measured -->") :]
    rows = [
        "| # | what | xrun (rounds) | target | peers | measured |",
        "|---|---|---|---|---|---|",
    ]
    latest = (RESULTS / "latest.jsonl").read_text()
    rows += [_measured(json.loads(line)) for line in latest.splitlines()]
    return "\n".join([f"{head}{start.rstrip()}", *rows, end])


def _measured(row: dict[str, Any]) -> str:
    low, high = (f"{each:.4g}" for each in row["spread"])
    sign = "≤" if row["better"] == "lower" else "≥"
    met = "met" if row["met"] else "**missed**"
    own = f"{row['value']:.4g} ({low} to {high})"
    peers = "; ".join(f"{name} {_short(value)}" for name, value in row["peers"].items())
    cells = (row["row"], row["name"], own, f"{sign} {row['target']:g}, {met}", peers, _day(row))
    return f"| {' | '.join(map(str, cells))} |"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items())
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _day(row: dict[str, Any]) -> str:
    """When the row was measured, and how many programs wanted a core then."""
    for file in sorted(RESULTS.glob("20*.jsonl"), reverse=True):
        for line in reversed(file.read_text().splitlines()):
            one = json.loads(line)
            if all(one[key] == row[key] for key in ("row", "value", "spread")):
                return f"{one['time'][:10]}, load {one['machine']['load']:.0f}"
    raise LookupError(f"benchmarks/results/ has no day on which row {row['row']} was measured")


def llms() -> str:
    """The site's contents for language models (llmstxt.org): each page with its first sentence."""
    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    lines = [f"# {told['site_name']}", "", f"> {told['site_description']}"]
    for section in told["nav"]:
        ((title, inside),) = section.items()
        lines += ["", f"## {title}", ""]
        for page in [{title: inside}] if isinstance(inside, str) else inside:
            ((name, path),) = page.items()
            told = first_sentence(DOCS / path)
            place = path.removesuffix(".md") + ".html"
            lines.append(f"- [{name}]({place})" + (f": {told}" if told else ""))
    return "\n".join([*lines, ""])


def first_sentence(page: Path) -> str:
    """What a page written by people begins with, as plain text; "" of one that is made."""
    text = page.read_text() if page.exists() else _MADE
    if _MADE in text or page.parent.name == "decisions":
        return ""
    found = next((each for each in text.split("\n\n") if re.match(r"\*\*|[\w]|`[^`]", each)), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*]", r"\1", " ".join(found.split()))
    first = re.split(r"(?<=[.:])\s", plain)[0].rstrip(":.")
    return first and f"{first}."


def anchor(heading: str) -> str:
    """What a heading is called in a link, as Python-Markdown has it."""
    plain = _SLUG.sub("", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


if __name__ == "__main__":
    for place, text in pages().items():
        (Path(sys.argv[1]) / place).write_text(text)
