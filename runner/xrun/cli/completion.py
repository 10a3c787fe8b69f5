"""What a shell completes after `xrun`: recipes, runs, keys; and the command that switches it on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
)

from .. import environment

if TYPE_CHECKING:
    from ..recipe.base import Part

SHELLS = ("bash", "zsh", "fish")
_HOW = {
    "bash": "echo 'eval \"$(xrun completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(xrun completion zsh)\"' >> ~/.zshrc",
    "fish": "xrun completion fish > ~/.config/fish/completions/xrun.fish",
}


@add_completion_class
class Bash(BashComplete):
    """click's script cuts words as bash does, also at `=` and `:`, so nothing came after
    `-s train.precision=`. This one asks with whole words, and takes off what bash puts before."""

    source_template = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} kind value before="" words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local current=${words[-1]}
    if [[ $current == *[=:]* && $COMP_WORDBREAKS == *=* ]]; then
        before=${current%%"${current##*[=:]}"}
    fi
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$before"}")
                [[ $value == *[=.] ]] && compopt -o nospace
                ;;
        esac
    done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \\
        %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The project's recipes; where none begins so, any file, which the shell completes itself and
    never beside words."""
    from ..run.folder import project_here

    found = (project_here() / "recipes").glob("*.yaml")
    names = sorted(os.path.relpath(path) for path in found)
    own = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return own or [CompletionItem(incomplete, type="file")]


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The runs of the project that the person stands in, the newest first."""
    from ..run.folder import home_here, runs_in

    names = (folder.run for folder in runs_in(home_here()))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The keys of a recipe, the arguments of its model and dataset among them, and after `=` the
    words that a key may be."""
    from ..recipe.schema import Recipe

    key, given, word = incomplete.partition("=")
    for part in ("model", "dataset"):
        if key.startswith(f"{part}.args.") and not given:
            names = (f"{part}.args.{name}=" for name in _arguments(ctx, part))
            return [CompletionItem(name) for name in names if name.startswith(key)]
    known = dict(_keys(Recipe, ""))
    if given:
        words = _words(known.get(key))
        return [CompletionItem(f"{key}={each}") for each in words if each.startswith(word)]
    found = (name if name.endswith(".") else f"{name}=" for name in known)
    return [CompletionItem(name) for name in found if name.startswith(key)]


def _arguments(ctx: click.Context, part: str) -> list[str]:
    """What `build` of a recipe's model or dataset takes, as far as that can be read."""
    from ..recipe.load import arguments_of

    # Beside an option without its value click leaves arguments as they were typed.
    typed = next((Path(each) for each in ctx.args if each.endswith((".yaml", ".yml"))), None)
    recipe = ctx.params.get("recipe") or typed
    return arguments_of(recipe, part) if isinstance(recipe, Path) else []


def _keys(part: type[Part], prefix: str) -> Iterator[tuple[str, object]]:
    """Every dotted key whose value is written out, with its type's annotation."""
    from ..recipe.diagnostics import is_list, is_mapping, model_in

    for name, field in part.model_fields.items():
        inner = model_in(field.annotation)
        if inner and not (is_list(field.annotation) or is_mapping(field.annotation)):
            yield from _keys(inner, f"{prefix}{name}.")
        elif name == "args":
            yield f"{prefix}args.", None
        else:
            yield prefix + name, field.annotation


def _words(annotation: object) -> list[str]:
    """The texts and truth values that an annotation allows."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    return [word for inner in get_args(annotation) for word in _words(inner)]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print the script by which SHELL completes commands, recipes, runs and the keys after `-s`.
    Without SHELL: for the shell that you use."""
    name = shell or Path(os.environ.get("SHELL", "")).name
    made = get_completion_class(name) if name in SHELLS else None
    if made is None:
        raise click.UsageError(f"Name the shell: {', '.join(SHELLS)}.")
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "xrun", environment.COMPLETE).source())
    if shell is None:
        click.echo(f"To keep it for every new shell: {_HOW[name]}", err=True)


COMMANDS = (completion,)
