"""What a real bash completes after `xrun`. Covers `xrun.cli.completion`."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.running import Project

ASK = """
eval "$(xrun completion bash)"
complete -p xrun > /dev/null || exit 9
COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_WORDBREAKS=" "
_xrun_completion xrun 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""
TYPED = """
xrun() {
    if [ -n "$_XRUN_COMPLETE" ]; then command xrun "$@"; else printf '<%s>' "$@"; echo '<END'; fi
}
eval "$(command xrun completion bash)"
PS1=
"""
"""A shell in which `xrun` prints the words that it was given."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("project"))
    run = made.home / made.plan().run
    run.mkdir(parents=True)
    (run / "plan.json").write_text(made.plan().to_json())
    return made


def completed(project: Project, *words: str, folder: str = ".") -> list[str]:
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", "xrun", *words],
        cwd=project.root / folder,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(project.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line]


def typed(project: Project, line: str) -> list[str]:
    """The words that `xrun` gets of what a person types into a bash, tabs among it."""
    (project.root / "typed.sh").write_text(TYPED)
    ours, its = pty.openpty()
    with subprocess.Popen(
        ["bash", "--rcfile", "typed.sh", "-i"],
        cwd=project.root,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(project.root),
            "TERM": "dumb",
        },
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ) as shell:
        os.close(its)
        os.write(ours, f"{line}\nexit\n".encode())
        said = b""
        with contextlib.suppress(OSError):  # its end of the terminal is closed
            while more := os.read(ours, 65536):
                said += more
        shell.wait()
    os.close(ours)
    told = re.search(r"((?:<[^<>]*>)+)<END", said.decode())
    assert told, said.decode()
    return re.findall(r"<([^<>]*)>", told[1])


def test_what_a_person_types_is_completed(project: Project) -> None:
    """Behind `=` and `.` too, where bash cuts words, and one thing after the other in a line."""
    assert typed(project, "xrun repo\t") == ["report"]
    assert typed(project, "xrun report ti\t") == ["report", project.plan().run]
    line = "xrun check recipes/t\t-s train.prec\tb\t-s model.ar\tw\t4"
    keys = ["train.precision=bf16", "model.args.width=4"]
    assert typed(project, line) == ["check", "recipes/tiny.yaml", "-s", keys[0], "-s", keys[1]]
    assert typed(project, "xrun compare ti\t") == ["compare", project.plan().run]


def test_commands_recipes_and_runs_are_completed(project: Project) -> None:
    assert completed(project, "rep") == ["report", "reproduce"]
    assert completed(project, "recipes/t") == ["recipes/tiny.yaml"]
    assert completed(project, "check", "recipes/") == ["recipes/tiny.yaml"]
    assert completed(project, "report", "ti") == [project.plan().run]


def test_keys_and_their_words_are_completed(project: Project) -> None:
    """After a recipe alone too, which is short for `run`; a key that is a list has no words."""
    found = completed(project, "recipes/tiny.yaml", "-s", "train.e")
    inner = "every metric metrics mode patience batch".split()
    assert set(found) == {
        *("train.epochs=", "train.ema=", "train.export="),
        *(f"train.evaluate.{key}=" for key in inner),
    }
    assert completed(project, "check", "-s", "train.precision=b") == ["train.precision=bf16"]
    assert completed(project, "check", "-s", "train.deterministic=") == [
        "train.deterministic=true",
        "train.deterministic=false",
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_theirs(project: Project, shell: str) -> None:
    done = project.xrun("completion", shell)
    assert done.code == 0, done.err
    assert "_XRUN_COMPLETE" in done.out


def test_a_shell_is_known_or_asked_for(project: Project) -> None:
    """By $SHELL; the way to switch it on for good is said beside the script."""
    done = project.xrun("completion", environ={"SHELL": "/bin/bash"})
    assert done.code == 0
    assert "~/.bashrc" in done.err
    refused = project.xrun("completion", environ={"SHELL": "/bin/tcsh"})
    assert refused.code == 2
    assert "bash, zsh, fish" in refused.err
