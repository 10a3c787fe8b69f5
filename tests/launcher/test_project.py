"""What travels of a project is what git sees, without secrets; what would stay at home although the
recipe needs it is a problem before money is spent."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.running import Project
from xrun.errors import LaunchError, RecipeError
from xrun.launcher import project as projects
from xrun.launcher.bundle import pack
from xrun.launcher.project import listed_by_git, refuse_what_stays


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *who, "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that git knows, in a folder below the repository's."""
    inner = tmp_path / "inner"
    inner.mkdir()
    project = Project(inner)
    project.write("pyproject.toml", "[project]\nname = 'mine'\nversion = '1'\n")
    git(tmp_path, "init", "-q")
    return project


def travelling(project: Project, *overrides: str) -> set[str]:
    return set(projects.Project(project.plan(*overrides)).files)


def on_clouds(project: Project, *overrides: str) -> list[str]:
    """The problems of a launch, as people read them."""
    with pytest.raises(RecipeError) as error:
        refuse_what_stays(project.plan("hardware={any_of: [{spot: false}]}", *overrides))
    return [str(problem) for problem in error.value.problems]


def test_what_git_tracks_and_what_is_new_travels(project: Project) -> None:
    own = travelling(project)
    for name in ("src/mine/__init__.py", "assets/vocab.json", "new.txt", "build/x.o", "a/b/c.tmp"):
        project.write(name, "1")
    project.write(".gitignore", "build/\n*.tmp\n")
    project.write("kept.tmp", "1")
    git(project.root, "add", "src", "assets")
    git(project.root, "add", "-f", "kept.tmp")
    git(project.root, "commit", "-qm", "one")
    project.write("assets/vocab.json", "2")
    (project.root.parent / "outside.txt").write_text("1")
    new = {"src/mine/__init__.py", "assets/vocab.json", "new.txt", "kept.tmp"}
    assert travelling(project) == own | new
    files = pack(project.plan(), []).files
    assert files["project/assets/vocab.json"] == b"2"
    (project.root / "assets/vocab.json").unlink()
    assert travelling(project) == own | new - {"assets/vocab.json"}


def test_programs_stay_programs_and_links_to_folders_are_followed(project: Project) -> None:
    """A folder that a link within the project leads to is there under both names, without what git
    ignores in it; one that leads elsewhere is not."""
    project.write("data/one.csv", "1")
    project.write("data/cache.tmp", "1")
    project.write(".gitignore", "*.tmp\n")
    project.write("tools/count.sh", "#!/bin/sh\n").chmod(0o755)
    (project.root / "assets").mkdir()
    (project.root / "assets/linked").symlink_to("../data")
    (project.root / "outside").symlink_to(project.root.parent)
    assert {"data/one.csv", "assets/linked/one.csv"} <= travelling(project)
    assert not {each for each in travelling(project) if each.startswith(("outside", "data/cache"))}
    cargo = pack(project.plan(), [])
    cargo.write()
    there = cargo.folder / "project"
    assert (there / "assets/linked/one.csv").read_text() == "1"
    assert not (there / "assets/linked/cache.tmp").exists()
    assert [os.access(there / name, os.X_OK) for name in ("tools/count.sh", "data/one.csv")] == [
        True,
        False,
    ]


def test_runs_and_environments_stay_where_they_are(project: Project) -> None:
    own = travelling(project)
    plan = project.plan()
    for name in (
        "venv/pyvenv.cfg",
        "venv/lib/x.py",
        f"{plan.home}/{plan.run}/log",
        "a/__pycache__/b",
    ):
        project.write(name, "1")
    assert travelling(project) == own


def test_secrets_need_a_yes(project: Project) -> None:
    """Also where somebody tracks them; what git ignores never travels."""
    secrets = {".env", ".env.example", "prod.env", "deep/id_rsa", "deep/server.pem", "out/token"}
    for name in secrets:
        project.write(name, "x")
    project.write(".gitignore", "out/\n")
    git(project.root, "add", "-f", ".env", "deep")
    assert not secrets & travelling(project)
    project.write(".xrunignore", "!/.env.example\n!deep/server.pem\n!out/token\n")
    assert secrets & travelling(project) == {".env.example", "deep/server.pem"}


def test_xrunignore_keeps_more_at_home(project: Project) -> None:
    for name in ("notes/a.md", "notes/b.txt", "big.bin"):
        project.write(name, "x")
    git(project.root, "add", ".")
    project.write(".xrunignore", "*.bin\nnotes/*\n!notes/b.txt\n")
    assert {"notes/a.md", "notes/b.txt", "big.bin"} & travelling(project) == {"notes/b.txt"}


def test_submodules_travel(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "lib.py").write_text("x = 1\n")
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, "commit", "-qm", "one")
    git(project.root, "submodule", "add", "-q", str(other), "third/lib")
    assert "third/lib/lib.py" in travelling(project)


def test_a_folder_that_git_ignores_is_without_git(project: Project) -> None:
    (project.root.parent / ".gitignore").write_text("inner/\n")
    project.write("notes.txt", "x")
    assert listed_by_git(project.root) is None
    assert travelling(project) == {"models/line.py", "datasets/points.py"}
    project.write("corpus/b.txt", "x")
    (problem,) = on_clouds(project, on("corpus/b.txt"))
    assert "The project is not under git, or git ignores its folder" in problem
    assert "`git init`" in problem


def test_too_much_names_the_largest(project: Project) -> None:
    for size, name in ((150, "a.bin"), (60, "b/c.bin"), (1, "d.bin")):
        project.write(name, "")
        with (project.root / name).open("wb") as file:
            file.truncate(size * 2**20)
    with pytest.raises(LaunchError) as error:
        pack(project.plan(), [])
    assert "211.0 MiB" in error.value.message
    assert "a.bin (150.0 MiB), b/c.bin (60.0 MiB), d.bin (1.0 MiB)" in error.value.message
    assert ".xrunignore" in error.value.hint


def test_an_imported_module_that_git_ignores_is_a_problem(project: Project) -> None:
    """At the line of the component, found without running anything."""
    line = (project.root / "models/line.py").read_text()
    project.write("models/line.py", f"from mylib.made import WIDTH\n{line}")
    project.write("mylib/__init__.py", "")
    project.write("mylib/made.py", "raise SystemExit\n")
    refuse_what_stays(project.plan("hardware={any_of: [{spot: false}]}"))
    project.write(".gitignore", "made.py\n")
    (problem,) = on_clouds(project)
    assert problem.startswith(f"{project.recipe}:2:")
    assert "model.name: its file mylib/made.py would not travel" in problem


def test_a_path_that_stays_at_home_is_a_problem(project: Project) -> None:
    project.write(".gitignore", "cache/\n")
    for name in ("cache/a.txt", "corpus/b.txt"):
        project.write(name, "x")
    (project.root.parent / "up.txt").write_text("x")
    fine = ["corpus/b.txt", "corpus", "./corpus", "/usr", "owner/name", "s3://bucket/x", "/data/x"]
    for value in fine:
        refuse_what_stays(project.plan(on(value), "hardware={any_of: [{spot: false}]}"))
    for value in ("cache/a.txt", "../up.txt"):
        (problem,) = on_clouds(project, on(value))
        assert "model.init_from: it is on this machine only, and would not travel" in problem
    (problem,) = on_clouds(project, on(str(project.root / "corpus")))
    assert "model.init_from: the project lies in another folder on the machine" in problem
    assert problem.endswith("folder: corpus.")
    brought = f"files={{{json.dumps(str(project.root))}: .}}"
    refuse_what_stays(
        project.plan(on(str(project.root / "cache")), brought, "hardware={any_of: [{spot: false}]}")
    )


def on(value: str) -> str:
    return f"model.init_from={json.dumps(value)}"
