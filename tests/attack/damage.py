"""Tries that damage the files of a run: whatever was done to them, a command that reads the run
says a sentence, and training goes on to the right bits or is refused; never from step 0 over a
checkpoint."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from support.mutations import VALUES, places
from support.running import Done, Project, curve, weights
from xrun.errors import XrunError

from .lives import Wrong, command, last_line, no_traceback, train
from .started import started

Case = dict[str, Any]
READING = (0, 2, 3, 4, 5, 75)
"""What a command that reads may end with."""
TRAINING = (0, 2, 3, 4, 5, 75)


def draw(dice: random.Random) -> Case:
    """Which run, and what is done to it: names of damages with the seeds by which they choose."""
    damages = dice.choices(sorted(DAMAGES), k=dice.choice([1, 1, 1, 2, 3]))
    return {
        "run": dice.choice(["killed", "killed", "killed", "finished"]),
        "damages": [[name, dice.randrange(2**32)] for name in damages],
    }


def files(run: Path) -> list[Path]:
    """Every file of the run's folder, in one order; of large kinds of files not each."""
    found = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    return found or [run / "nothing"]


def one_of(run: Path, dice: random.Random) -> Path:
    """A file: first its kind is drawn, so that many objects do not hide the few others."""
    kinds: dict[str, list[Path]] = {}
    for path in files(run):
        kinds.setdefault("/".join(path.relative_to(run).parts[:2]), []).append(path)
    return dice.choice(kinds[dice.choice(sorted(kinds))])


def _truncate(run: Path, dice: random.Random) -> None:
    path = one_of(run, dice)
    with path.open("r+b") as file:
        file.truncate(dice.randrange(path.stat().st_size + 1))


def _flip(run: Path, dice: random.Random) -> None:
    path = one_of(run, dice)
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice([1, 1, 5])):
        if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def _append(run: Path, dice: random.Random) -> None:
    with one_of(run, dice).open("ab") as file:
        file.write(dice.choice([b"\0" * 5000, b"{", b"\n", b"\xff\xfe", b'{"step": 99}\n']))


def _content(run: Path, dice: random.Random) -> None:
    one_of(run, dice).write_bytes(dice.choice(CONTENTS))


CONTENTS = [
    *(b"", b"null", b"[]", b"{}", b"3", b'"text"', b"\0" * 100, b"\xff\xfe\xfa", b"[" * 100_000),
    *(b"NaN", b'{"step": null}', b'{"step": "x"}\n', b'{"step": 1e400}', b'{"a": ' * 20_000, b"-1"),
    *(b'{"step": {"a": 1}}\n', b"true\n", b"1" * 5000, b'{"\\ud800": 1}\n', b"\n\n\n"),
]


def _delete(run: Path, dice: random.Random) -> None:
    one_of(run, dice).unlink()


def _folder(run: Path, dice: random.Random) -> None:
    path = one_of(run, dice)
    path.unlink()
    path.mkdir()
    if dice.random() < 0.5:
        (path / "something").touch()


def _fifo(run: Path, dice: random.Random) -> None:
    path = one_of(run, dice)
    path.unlink()
    os.mkfifo(path)


def _link(run: Path, dice: random.Random) -> None:
    path = one_of(run, dice)
    path.unlink()
    path.symlink_to(
        dice.choice(["nowhere", path.name, "/dev/null", "/dev/full", "/etc/passwd", ".."])
    )


def _swap(run: Path, dice: random.Random) -> None:
    """Two files change places."""
    one, other = one_of(run, dice), one_of(run, dice)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _older(run: Path, dice: random.Random) -> None:
    """A file has the content of one of its neighbours, as a backup that was put back."""
    path = one_of(run, dice)
    near = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    if near:
        shutil.copyfile(dice.choice(near), path)


def _double(run: Path, dice: random.Random) -> None:
    path = one_of(run, dice)
    names = [
        f"{path.name}.bak",
        f".{path.name}",
        "99999999.json",
        "00000099.json",
        "x" * 200,
        "a b\n",
    ]
    shutil.copyfile(path, path.with_name(dice.choice(names)))


def _lose(run: Path, dice: random.Random) -> None:
    """A folder is gone, or a file is where it was."""
    folders = sorted(path for path in run.rglob("*") if path.is_dir())
    if folders:
        path = dice.choice(folders)
        shutil.rmtree(path)
        if dice.random() < 0.4:
            path.write_text("not a folder")


def _value(run: Path, dice: random.Random) -> None:
    """A value in a JSON file is another one; what vouches for a commit is made to fit."""
    known = [path for path in files(run) if path.suffix in (".json", ".jsonl")]
    path = dice.choice(known or files(run))
    lines = path.read_bytes().splitlines() or [b""]
    number = dice.randrange(1 if path.parent.name == "commits" else len(lines))
    try:
        text = (
            b"\n".join(lines)
            if path.suffix == ".json" and path.parent.name != "commits"
            else lines[number]
        )
        tree = json.loads(text)
    except ValueError:
        return
    tree = _changed({"": tree}, dice)[""]
    line = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    if path.parent.name == "commits":
        path.write_bytes(line + b"\n" + blake3(line).hexdigest().encode() + b"\n")
    else:
        path.write_bytes(
            b"\n".join([*lines[:number], line, *lines[number + 1 :]])
            if path.suffix == ".jsonl"
            else line
        )


def _changed(tree: Any, dice: random.Random) -> Any:
    tree = copy.deepcopy(tree)
    container, key = dice.choice(places(tree))
    if dice.random() < 0.25 and len(tree) > 1:
        del container[key]
    else:
        container[key] = copy.deepcopy(dice.choice([*VALUES, [[]] * 3, {"x": {"y": None}}]))
    return tree


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncate": _truncate,
    "flip": _flip,
    "append": _append,
    "content": _content,
    "delete": _delete,
    "folder": _folder,
    "fifo": _fifo,
    "link": _link,
    "swap": _swap,
    "older": _older,
    "double": _double,
    "lose": _lose,
    "value": _value,
}


def play(case: Case, folder: Path) -> None:
    """Damage a run, read it, and go on with it.

    Raises:
        Wrong: a traceback, another exit code, other bits, or a run that began anew.
    """
    begun = started()
    project = begun.copied(case["run"], folder)
    run = project.run
    name, before = run.run, sorted(run.record().attempts, key=lambda attempt: attempt.started)
    signed = False
    for what, seed in case["damages"]:
        with_commits = {
            path: path.read_bytes() for path in run.path.glob("state/commits/*") if path.is_file()
        }
        try:
            DAMAGES[what](run.path, random.Random(seed))
        except OSError:
            continue  # an earlier damage is in its way
        signed |= what == "value" and any(
            path.is_file() and path.read_bytes() != content
            for path, content in with_commits.items()
        )
    os.chdir(project.root)
    for words in (
        ["status"],
        ["status", "--json"],
        ["report", name],
        ["logs", name],
        ["plan", "recipes/tiny.yaml"],
    ):
        no_traceback(command(*words), f"xrun {words[0]}", READING)
    lost = not (run.path / "committed.json").exists() and not any(run.path.glob("state/commits/*"))
    done = train(project.recipe)
    no_traceback(done, "training", TRAINING)
    if done.code and not done.err.strip():
        raise Wrong(f"training ends with {done.code} without a word")
    if not lost and not signed:
        _judge(project, done, begun.right, {attempt.id for attempt in before})


def _judge(
    project: Project, done: Done, right: tuple[str, dict[int, dict[str, Any]]], known: set[str]
) -> None:
    try:
        record = project.run.record()
    except XrunError as error:
        if done.code == 0:
            raise Wrong(
                f"trained to its end, and cannot be read: {last_line(str(error))}"
            ) from error
        return
    new = [attempt for attempt in record.attempts if attempt.id not in known]
    # Where every later checkpoint was damaged, and said so, step 0 is the newest that is whole.
    damaged = any(project.run.path.glob("state/quarantine/*"))
    if any(attempt.resumed_step == 0 for attempt in new) and not damaged:
        raise Wrong("it began anew over what was committed")
    if done.code or not new:
        return
    if weights(project.run) != right[0]:
        raise Wrong("other final weights")
    first = min(attempt.resumed_step or 0 for attempt in new)
    got = {step: point for step, point in curve(project.run).items() if step > first}
    if got != {step: point for step, point in right[1].items() if step > first}:
        raise Wrong(f"other points after step {first}")
