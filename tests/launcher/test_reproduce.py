"""A run that is made again from nothing but what it has left, by the command, with a loopback Hub,
real git and a package index.

Covers `xrun.cli.again`, `xrun.launcher.original`, `xrun.launcher.locked_python`,
`xrun.launcher.laid_out`, `xrun.launcher.locking` and `xrun.launcher.verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loopback.hub import Hub
from support.buckets import Server, moto
from support.package_index import PackageIndex, package_index, wheel
from support.paths import SOURCES
from support.running import DATASET, MODEL, PER_STEP, Done, Project, ended, start
from xrun.errors import LaunchError, RehearsalFailed, TrainError
from xrun.launcher.laid_out import laid_out
from xrun.launcher.locked_python import python_of
from xrun.launcher.locking import locked, without_secrets
from xrun.launcher.original import Original
from xrun.launcher.reproduce import compared
from xrun.run.locked import Lock
from xrun.run.opened import open_run
from xrun.run.page import Facts
from xrun.run.record import RunRecord
from xrun.run.stores import Place, open_place
from xrun.store.address import Address
from xrun.store.directory.store import DirectoryStore

pytestmark = [pytest.mark.once, pytest.mark.cloud]
RECIPE = """\
name: tiny
model: {name: line}
dataset: {name: points}
task: classification
publish_code: true
train:
  steps: 4
  global_batch: 8
  micro_batch: 2
  precision: fp32
  optimizer: {name: adamw, lr: 0.01}
checkpoint: {every: 2 steps, store: hub}
"""
SCALED = DATASET.replace("import torch\n", "import scaling\nimport torch\n", 1).replace(
    "self.x = torch.randn(n, 4, generator=generator)",
    "self.x = float(scaling.VERSION) * torch.randn(n, 4, generator=generator)",
)
"""Samples whose size a small package says: by another version of it the loss is another one."""


OPENED = """\
import sys, xrun
run = xrun.open_run(sys.argv[1])
tensors, values = run.tensors(), run.model(project=sys.argv[2]).state_dict()
print(len(run.metrics), all(tensors[f"model.{name}"].equal(values[name]) for name in values))
"""
"""A program that has the address of a run and its project, and prints how many steps were logged,
and whether the model is the one of the newest checkpoint."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    with package_index(tmp_path / "index") as index:
        yield index


def installed(folder: Path, version: str) -> str:
    """A folder for PYTHONPATH that has this version of the package `scaling`."""
    folder.mkdir()
    with zipfile.ZipFile(wheel(folder, "scaling", version)) as archive:
        archive.extractall(folder)
    return str(folder)


def xrun(root: Path, *arguments: str, **environ: str) -> Done:
    root.mkdir(exist_ok=True)
    return ended(start(root, *arguments, environ=environ))


def test_a_run_is_made_again_from_its_model_page(
    tmp_path: Path, hub: Hub, index: PackageIndex
) -> None:
    """On another machine, which has another version of what the loss depends on: by the locked one
    the bits are the same; by its own the first step differs, and the package is named."""
    index.add("scaling", "1.0")
    account = {**hub.environ("alice"), "XRUN_HUB_SPACING": "0"}
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", RECIPE)
    project.write("datasets/points.py", SCALED)
    before = installed(tmp_path / "before", "1.0")
    made = project.xrun(
        "recipes/tiny.yaml", environ=account | {"PYTHONPATH": f"{SOURCES}:{before}"}
    )
    assert made.code == 0, made.err
    run = next(path.name for path in project.home.iterdir())

    here = installed(tmp_path / "here", "2.0")
    other = {
        **index.environ(tmp_path / "other"),
        **account,
        "PYTHONPATH": f"{SOURCES}:{here}",
    }
    page = f"{hub.url}/alice/{run}"
    same = xrun(tmp_path / "other", "reproduce", page, "--yes", **other)
    assert same.out.splitlines()[0] == f"{run}: same bits up to step 4 (4 logged steps compared)."
    assert "scaling==1.0" in same.err
    assert same.code == 0

    differs = xrun(
        tmp_path / "other", "reproduce", f"hub://alice/{run}", "--yes", "--here", "--json", **other
    )
    assert differs.code == 1
    verdict = json.loads(differs.out)
    assert (verdict["differs"], verdict["step"]) == (1, 0)
    assert verdict["what"][0].startswith("train/loss ")
    assert verdict["because"] == ["scaling 1.0 -> 2.0"]

    checked = xrun(tmp_path / "other", "verify", page, **other)
    assert checked.out.endswith("files are as they were committed.\n")

    opened = subprocess.run(
        [sys.executable, "-c", OPENED, page, project.root],
        cwd=tmp_path / "other",
        env={**os.environ, **other},
        capture_output=True,
        text=True,
        check=False,
    )
    assert opened.stdout == "4 True\n", opened.stderr


@pytest.fixture
def s3() -> Iterator[Server]:
    with moto() as server:
        yield server


def test_an_unfinished_run_is_made_again_from_its_state(
    tmp_path: Path, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket, without a page; whose components are in no remote, but in the project that one
    stands in. What was committed is compared, and no step more than that is waited for."""
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    store = f"{s3.make('again')}/runs"
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.trap("nan", call=13 * PER_STEP, committed=5)
    failed = project.attempt(f"checkpoint.store={store}", "train.steps=1000000")
    assert failed.code == TrainError.exit_code
    shutil.rmtree(project.home)
    run = project.plan().run
    address = f"{store}/{run}"
    step = open_run(address).record.newest_step
    stranger = xrun(tmp_path / "empty", "reproduce", address, **s3.environ)
    assert stranger.code == 3
    assert stranger.err.startswith(f"xrun: models/line.py of {run} cannot be found")
    same = project.xrun("reproduce", address, "--yes", environ=s3.environ)
    told = f"{run}: same bits up to step {step} ({step} logged steps compared)."
    assert (same.code, same.out.splitlines()[0], step >= 5) == (0, told, True)
    assert f"  code     the project here, {project.root}\n" in same.err


def test_a_run_is_made_again_from_its_bucket(tmp_path: Path, s3: Server) -> None:
    """From the address alone, by the code that it has published beside its model there; the model
    is verified as well."""
    store = f"{s3.make('published')}/runs"
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", RECIPE.replace("store: hub", f"store: {store}"))
    made = project.xrun("recipes/tiny.yaml", environ=s3.environ)
    assert made.code == 0, made.err
    run = project.run.run
    address = f"{store}/{run}"
    shutil.rmtree(project.root)
    same = xrun(tmp_path / "stranger", "reproduce", address, "--yes", **s3.environ)
    told = f"{run}: same bits up to step 4 (4 logged steps compared)."
    assert (same.code, same.out.splitlines()[:1]) == (0, [told]), same.err
    assert "  code     the files published with the model\n" in same.err
    checked = xrun(tmp_path / "stranger", "verify", address, "--json", **s3.environ)
    found = json.loads(checked.out)
    assert (found["ok"], "model.safetensors" in found["checked"]) == (True, True)


def test_a_model_that_was_published_elsewhere_is_found(
    tmp_path: Path, hub: Hub, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the address of the state, where the recipe names the repository; another run's page
    there is not taken."""
    for name, value in (s3.environ | hub.environ("alice")).items():
        monkeypatch.setenv(name, value)
    place = Place(Address.parse(f"{s3.make('state')}/runs/tiny-1"), tmp_path / "cache", "tiny-1")
    store = open_place(place, "20260101T000000000-aaaaaa")
    recipe = {"model": {"name": "own"}, "dataset": {"name": "digits"}}
    record = RunRecord(recipe={**recipe, "publish": "hub://alice/page"}, lock=Lock(python="3.11"))
    store.commit(record.to_json(), None)
    hub.create_repo("alice/page")
    code = "  code     the files published with the model\n"
    for run, said in (
        ("tiny-2", "models/own.py of tiny-1 cannot be found"),
        ("tiny-1", code),
    ):
        told = {"run.json": {"run": run}, "recipe.yaml": recipe, "lock.json": {}}
        files = {f"xrun/{name}": json.dumps(each).encode() for name, each in told.items()}
        hub.write("alice/page", {**files, "xrun/models/own.py": b""})
        done = xrun(tmp_path / "stranger", "reproduce", str(place.address), **os.environ)
        assert said in done.err
        assert done.code == 3  # nobody has agreed


@pytest.mark.parametrize("known", [True, False])
def test_a_component_that_hides_a_shipped_one_is_not_replaced_silently(
    tmp_path: Path, known: bool
) -> None:
    """The run's own comes from its remote; where that is not known, what is taken instead is said,
    by name where the page has them."""
    recipe = RECIPE.replace("line", "mlp").replace("name: points", "name: synthetic")
    project = Project(tmp_path / "repository", recipe)
    project.write("models/mlp.py", MODEL)
    plan = project.plan()
    git = ["git", "-C", str(project.root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    told = Lock(code={"commit": commit, "remote": str(project.root)})
    facts = Facts(plan.run, plan.digest, plan.rule, sources=plan.sources if known else {})
    run = Original("there", facts, json.dumps(plan.recipe), told, [])
    right = laid_out(run, tmp_path / "right")
    assert (right.folder / "models" / "mlp.py").read_text() == MODEL
    assert right.other == ""
    other = laid_out(replace(run, lock=Lock()), tmp_path / "other")
    assert not (other.folder / "models").exists()
    assert other.other == f"not the run's own: {'models/mlp.py' if known else 'its components'}"


def test_a_project_that_has_changed_is_not_taken(tmp_path: Path) -> None:
    """For the run that was made from it; comments are no change, and what git ignores counts."""
    project = Project(tmp_path / "project")
    project.write(".gitignore", "models/\nruns/\nhome/\nagain/\n")
    project.write("sizes.txt", "8")
    subprocess.run(["git", "init", "--quiet", project.root], check=True)
    plan = project.plan()
    facts = Facts(plan.run, plan.digest, plan.rule)
    run = Original("there", facts, json.dumps(plan.recipe), Lock(), [])
    project.write("models/line.py", f"# as it was\n{MODEL}")
    copy = laid_out(run, project.root / "again", project.root)
    assert copy.files == ("models/line.py", "datasets/points.py")
    assert (copy.folder / "models" / "line.py").read_text() == f"# as it was\n{MODEL}"
    assert (copy.folder / "sizes.txt").read_text() == "8"
    here = replace(run, project=project.root)  # wherever one stands
    assert laid_out(here, tmp_path / "from elsewhere", tmp_path).files == copy.files
    project.write("models/line.py", MODEL.replace("0.1", "0.2"))
    with pytest.raises(LaunchError, match=r"models/line\.py of tiny-\w+ cannot be found"):
        laid_out(run, tmp_path / "another", project.root)


def test_what_cannot_be_made_again_is_one_sentence(tmp_path: Path, hub: Hub) -> None:
    """Nothing there, no page, and a page whose project nobody has; nothing was run."""
    account = hub.environ("alice")
    gone = xrun(tmp_path / "a", "reproduce", "hub://alice/none", **account)
    assert (gone.code, gone.out) == (3, "")
    assert gone.err.startswith("xrun: There is no repository alice/none on the Hub")
    bare = tmp_path / "bare" / "xrun"
    bare.mkdir(parents=True)
    (bare / "recipe.yaml").write_text("model: {name: own}\ndataset: {name: digits}\n")
    (bare / "lock.json").write_text("{}")
    (bare / "run.json").write_text('{"run": "tiny-1"}')
    unknown = xrun(tmp_path / "a", "reproduce", str(bare.parent))
    assert unknown.code == 3
    assert unknown.err.startswith("xrun: models/own.py of tiny-1 cannot be found")


def test_a_commit_that_has_vanished_is_one_sentence(tmp_path: Path) -> None:
    """Which says what to type."""
    remote = tmp_path / "remote"
    subprocess.run(["git", "init", "--quiet", "--bare", remote], check=True)
    page = tmp_path / "model" / "xrun"
    page.mkdir(parents=True)
    code = {"commit": "0" * 40, "remote": str(remote)}
    (page / "recipe.yaml").write_text("model: {name: own}\ndataset: {name: digits}\n")
    (page / "run.json").write_text('{"run": "tiny-1"}')
    (page / "lock.json").write_text(json.dumps({"code": code}))
    done = xrun(tmp_path / "a", "reproduce", str(page.parent))
    assert done.code == 3
    assert "xrun: The project's commit 000000000000 cannot be fetched from" in done.err


@pytest.mark.parametrize(
    ("fails", "code", "hint"), [(0, 3, "Take what is installed here"), (9, 75, "Try again.")]
)
def test_a_version_that_is_not_to_be_had_is_one_sentence(
    tmp_path: Path,
    index: PackageIndex,
    monkeypatch: pytest.MonkeyPatch,
    fails: int,
    code: int,
    hint: str,
) -> None:
    """Where no index has the package, and where none answers, which may pass."""
    for name, value in index.environ(tmp_path).items():
        monkeypatch.setenv(name, value)
    index.fails = fails
    with pytest.raises(RehearsalFailed, match="environment of the run cannot be built") as found:
        python_of(Lock(packages={"scaling": "1.0"}), print)
    assert (found.value.exit_code, found.value.hint[: len(hint)]) == (code, hint)
    assert "scaling" in str(found.value)


def test_what_this_account_may_not_see_is_not_made_again(tmp_path: Path, hub: Hub) -> None:
    """A stranger's private page is told apart from nothing at all by its owner alone."""
    hub.create_repo("alice/secret")
    refused = xrun(tmp_path / "a", "reproduce", "hub://alice/secret", **hub.environ("bob"))
    assert (refused.code, refused.out) == (3, "")
    assert refused.err.startswith("xrun: There is no repository alice/secret on the Hub, or this")


def test_nothing_is_run_that_nobody_has_agreed_to(tmp_path: Path) -> None:
    """Where nobody can be asked that is a no; what would have been run is told before."""
    page = tmp_path / "model" / "xrun"
    (page / "models").mkdir(parents=True)
    (page / "models" / "own.py").write_text("raise SystemExit")
    (page / "recipe.yaml").write_text("model: {name: own}\ndataset: {name: digits}\n")
    (page / "lock.json").write_text("{}")
    (page / "run.json").write_text('{"run": "tiny-1"}')
    done = xrun(tmp_path / "a", "reproduce", str(page.parent), "--folder", str(tmp_path / "again"))
    assert done.code == 3
    assert f"           {tmp_path}/again/models/own.py\n" in done.err
    assert "xrun: Nothing of tiny-1 was run: you have not agreed to it." in done.err
    assert "Traceback" not in done.err


def test_other_bytes_are_found(tmp_path: Path) -> None:
    """By the digest that the export has noted."""
    page = tmp_path / "model" / "xrun"
    page.mkdir(parents=True)
    (page.parent / "w.safetensors").write_bytes(b"changed")
    (page / "run.json").write_text(json.dumps({"run": "t", "files": {"w.safetensors": "00"}}))
    done = xrun(tmp_path / "a", "verify", str(page.parent))
    found = hashlib.sha256(b"changed").hexdigest()
    wrong, note = done.err.splitlines()[::-1]
    assert wrong == f"w.safetensors has the SHA-256 {found}, and was exported with 00"
    told = f"{tmp_path}/model holds no run."
    assert (done.code, note) == (5, f"  note     only the model was checked: {told}")


def test_a_run_whose_state_is_gone_is_not_fine(tmp_path: Path) -> None:
    """Its model may be whole; a model that stands by itself is."""
    project = Project(tmp_path / "a")
    assert project.attempt("train.steps=2", "train.evaluate=null").code == 0
    run = project.run
    assert xrun(tmp_path / "a", "verify", run.run).code == 0
    shutil.rmtree(run.state)
    done = xrun(tmp_path / "a", "verify", run.run)
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith(f"The state of the run {run.run} is gone: ")
    run.witness.unlink()
    done = xrun(tmp_path / "a", "verify", str(run.path), "--json")
    assert (done.code, json.loads(done.out)["wrong"]) == (5, [f"{run.state} holds no run."])
    alone = run.model.rename(tmp_path / "model")
    done = xrun(tmp_path / "a", "verify", str(alone))
    assert (done.code, done.out) == (0, f"{alone}: 1 file is as it was exported.\n")


def test_a_model_that_was_deleted_is_noted(tmp_path: Path) -> None:
    """The checkpoints are whole, and the model is not there to be checked; of a run that has none
    yet nothing is missing."""
    project = Project(tmp_path / "a")
    project.trap("SIGKILL", call=7 * PER_STEP, committed=5)
    assert project.attempt("train.steps=10", "train.evaluate=null").code == 75
    assert xrun(tmp_path / "a", "verify", project.run.run).err == ""
    assert project.attempt("train.steps=10", "train.evaluate=null").code == 0
    shutil.rmtree(project.run.model)
    done = xrun(tmp_path / "a", "verify", project.run.run)
    assert (done.code, "as they were committed" in done.out) == (0, True)
    assert "the checkpoints were checked alone (model deleted); `xrun export-model" in done.err
    told = json.loads(xrun(tmp_path / "a", "verify", project.run.run, "--json").out)
    assert told["no_model"] == "model deleted"


def test_a_page_of_an_older_xrun_is_read(tmp_path: Path, hub: Hub) -> None:
    """It does not name its state: the model is verified and made again by what lies beside it, and
    of the run there is nothing to be read."""
    facts = {"run": "tiny-1", "files": {"w.safetensors": hashlib.sha256(b"w").hexdigest()}}
    recipe = {"model": {"name": "own"}, "dataset": {"name": "digits"}}
    told = {"run.json": facts, "recipe.yaml": recipe, "lock.json": {}}
    hub.create_repo("alice/old")
    files = {f"xrun/{name}": json.dumps(each).encode() for name, each in told.items()}
    hub.write("alice/old", {**files, "w.safetensors": b"w", "xrun/models/own.py": b""})
    page, account = f"{hub.url}/alice/old", hub.environ("alice")
    checked = xrun(tmp_path / "a", "verify", page, **account)
    assert (checked.code, checked.out) == (0, f"{page}: 1 file is as it was exported.\n")
    again = xrun(tmp_path / "a", "reproduce", page, **account)
    assert "Nothing of tiny-1 was run: you have not agreed to it." in again.err
    report = xrun(tmp_path / "a", "report", page, **account)
    assert report.code == 3
    assert report.err.startswith("xrun: hub://alice/old holds no run.")


def test_nothing_to_verify_is_not_fine(tmp_path: Path) -> None:
    """A run that has committed nothing."""
    folder = tmp_path / "runs" / "tiny-1"
    store = DirectoryStore(folder / "state", "tiny-1", "20260101T000000000-aaaaaa", "me")
    store.commit(RunRecord(digest="d").to_json(), None)
    done = xrun(tmp_path / "a", "verify", str(folder))
    assert done.code == 3
    assert "tiny-1 has neither a model nor a committed checkpoint; nothing was checked." in done.err


def test_the_project_comes_from_its_recorded_commit(tmp_path: Path) -> None:
    """Which may lie in a folder of the repository; the recipe is the run's own."""
    repository = tmp_path / "repository"
    Project(repository / "sub")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    code = locked(replace(Project(repository / "sub").plan(), code={"commit": "x"})).locked.code
    assert code == {"commit": "x", "folder": "sub/"}
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    told = Lock(code={"commit": commit, "remote": str(repository), "folder": "sub/"})
    recipe = "model: {name: line}\ndataset: {name: points}\nbudget: {usd: 5}\n"
    copy = laid_out(Original("there", Facts("tiny-1"), recipe, told, []), tmp_path / "again")
    assert copy.code == f"{repository} at {commit[:12]}"
    assert (copy.folder / "models" / "line.py").read_text() == MODEL
    assert "budget" not in copy.recipe.read_text()


@pytest.mark.parametrize(
    ("remote", "kept"),
    [
        ("https://me:token@host/a.git", "https://host/a.git"),
        ("git@host:a.git", "git@host:a.git"),
        ("ssh://git@host/a.git", "ssh://git@host/a.git"),
    ],
)
def test_no_secret_of_a_remote_is_kept(remote: str, kept: str) -> None:
    """Some people have a token in it."""
    assert without_secrets(remote) == kept


def test_the_first_step_that_differs_is_named() -> None:
    """By the digest of its samples or by its loss; the clock and the attempt do not count."""
    point = {"step": 1, "train/loss": 0.5, "train/samples": "aa"}
    wanted = {(1, 0): point, (2, 0): {**point, "step": 2}}
    same = [{**point, "time": 1.0, "attempt": "b", "speed/step_seconds": 2.0}]
    assert compared(wanted, same, 2) == (1, None, ())
    other = {**point, "step": 2, "train/samples": "ab"}
    assert compared(wanted, [*same, other], 2) == (1, 2, ("train/samples aa -> ab",))
    assert compared(wanted, [*same, other], 1) == (1, None, ())


def test_a_strangers_lock_reaches_nothing_else(tmp_path: Path) -> None:
    """Neither a folder outside of the project nor an option of the installer."""
    repository = tmp_path / "repository"
    Project(repository)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    told = Lock(code={"commit": commit, "remote": str(repository), "folder": "../../victim"})
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "kept").touch()
    recipe = "model: {name: line}\ndataset: {name: points}\n"
    with pytest.raises(LaunchError, match="a folder that its project does not have"):
        laid_out(Original("there", Facts("tiny-1"), recipe, told, []), tmp_path / "again")
    assert (tmp_path / "victim" / "kept").exists()
    with pytest.raises(LaunchError, match=r"no valid version .* \(got '1\\n--index-url x'\)"):
        python_of(Lock(packages={"scaling": "1\n--index-url x"}), print)
