"""Runs whose state is in a bucket: killed, on machines that are gone, by others.

Covers `xrun.launcher.bucket`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from support.bad_way import Answer, BadWay
from support.buckets import Server
from support.far_away import environment
from support.paths import RECIPES, WITH_SUPPORT
from support.running import PER_STEP, STEPS, Done, Project, attempt, curve, until, weights
from xrun.errors import CloudUnavailable, LaunchError
from xrun.launcher.bucket import check_bucket
from xrun.launcher.preflight import check_online, place, refuse
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan, older_rules
from xrun.run.record import RunRecord
from xrun.run.stores import open_store

pytestmark = pytest.mark.once
NUMBERS = iter(range(1000))


@pytest.fixture
def bucket(s3: Server) -> str:
    """The address of an empty bucket with a prefix."""
    return f"{s3.make(f'runs-{next(NUMBERS)}')}/team/runs"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, dict[str, float]]]:
    """The weights and the curve of an undisturbed run."""
    project = Project(tmp_path_factory.mktemp("undisturbed"))
    assert project.attempt().code == 0
    return weights(project.run), curve(project.run)


@pytest.fixture
def here(s3: Server) -> Iterator[None]:
    """This process's environment leads to the server."""
    with environment(s3.environ):
        yield


def live(project: Project, bucket: str, *overrides: str) -> Done:
    return attempt(project.plan(f"checkpoint.store={bucket}", *overrides))


def test_a_run_survives_the_loss_of_every_machine_it_had(
    tmp_path: Path,
    s3: Server,
    bucket: str,
    here: None,
    expected: tuple[str, dict[int, dict[str, float]]],
) -> None:
    """Killed twice in mid-training, its folder deleted each time: on from what was committed, the
    same weights and points, the logs of all attempts; and the bucket never holds more than is
    kept and two."""
    project = Project(tmp_path)
    plan = project.plan(f"checkpoint.store={bucket}")
    for steps, committed in ((8, 5), (12, 10)):  # each life collates from its own first step
        project.trap("SIGKILL", call=steps * PER_STEP, committed=committed, paced=committed == 5)
        assert live(project, bucket).code == 75
        assert project.run.record().newest_step >= committed
        shutil.rmtree(project.home)
    done = live(project, bucket)
    assert done.code == 0, done.err
    assert weights(project.run) == expected[0]
    assert curve(project.run) == expected[1]
    record = project.run.record()
    assert len(record.attempts) == 3
    assert [(each.resumed_step or 0) >= 5 for each in record.attempts[1:]] == [True, True]
    assert "Starting at step 0" in project.run.log_text(1, 0)
    assert "Going on from step" in project.run.log_text(2, 0)
    report = project.run.report()
    assert (report.status, report.step) == ("finished", STEPS)
    found = s3.objects(f"{bucket}/{plan.run}")
    assert {"model/model.safetensors", "model/config.json"} <= found.keys()
    assert live(project, bucket).code == 0, "a finished run started again does nothing"


def test_a_run_is_its_owners_or_its_teams(tmp_path: Path, bucket: str, here: None) -> None:
    """Another user is refused with the owner's name; who names the same team goes on."""
    project = Project(tmp_path)
    plan = project.plan(f"checkpoint.store={bucket}", "checkpoint.team=vision")
    assert plan.owner == "vision"
    assert plan.placed("alice").owner == "vision"
    store = open_store(plan, "20260101T000000-a")
    store.commit(RunRecord().to_json(), store.head())
    alone = project.plan(f"checkpoint.store={bucket}")
    assert alone.run == plan.run
    done = attempt(alone)
    assert done.code == 4
    assert "belongs to vision" in done.err
    assert "-s checkpoint.team=vision" in done.err


def test_readers_need_the_address_and_nothing_more(tmp_path: Path, bucket: str, here: None) -> None:
    """A plan on a machine that has never run it: what is committed, and the wish to stop."""
    project = Project(tmp_path)
    plan = project.plan(f"checkpoint.store={bucket}")
    assert plan.where == f"{bucket}/{plan.run}"
    RunFolder(plan.folder).write_plan(plan)
    assert RunFolder(plan.folder).head() is None
    store = open_store(plan, "20260101T000000-a")
    head = store.commit(RunRecord().to_json(), store.head())
    assert RunFolder(plan.folder).head() == head
    assert RunFolder(plan.folder).store().ask_to_stop() == "20260101T000000-a"
    assert store.asked_to_stop()


def asked(project: Project, bucket: str, *overrides: str) -> Plan:
    """What a launch would go on with."""
    plan = project.plan(f"checkpoint.store={bucket}", *overrides)
    return refuse(check_online(plan.load_recipe(), plan, everything=False))


def test_a_bucket_is_asked_before_money_is_spent(
    tmp_path: Path, s3: Server, bucket: str, here: None
) -> None:
    """It lets this account in and keeps what was there first; nothing of the question is left."""
    project = Project(tmp_path)
    plan = asked(project, bucket)
    assert plan.store == bucket
    assert s3.objects(bucket) == {}
    with pytest.raises(LaunchError, match=r"checkpoint\.store: There is no bucket s3://nobodys"):
        asked(project, "s3://nobodys/runs")


def test_a_server_that_ignores_the_condition_is_refused(
    tmp_path: Path, s3: Server, bucket: str
) -> None:
    """One that makes an object where one is cannot fence a machine that was believed dead."""

    class Ignorant(BadWay):
        """Passes on everything but the condition."""

        def ask(
            self, line: str, headers: list[tuple[str, str]], body: bytes, stale: bool
        ) -> Answer:
            kept = [header for header in headers if header[0].lower() != "if-none-match"]
            return super().ask(line, kept, body, stale)

    project = Project(tmp_path)
    what = "the server overwrites an object"
    with (
        Ignorant(s3.url) as way,
        environment(s3.at(way.url)),
        pytest.raises(LaunchError, match=what) as caught,
    ):
        asked(project, bucket)
    assert "checkpoint.store" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_account_that_may_not_and_a_server_that_is_not_there(
    tmp_path: Path, s3: Server, bucket: str
) -> None:
    """One is the person's to mend, the other may pass."""
    project = Project(tmp_path)
    with BadWay(s3.url) as way, environment(s3.at(way.url)):
        way.faults.add("PUT ", status=403, times=None)
        with pytest.raises(LaunchError, match="denies this account access"):
            asked(project, bucket)
    with pytest.raises(CloudUnavailable, match="does not answer"):
        check_bucket(project.plan(f"checkpoint.store={bucket}"), s3.at("http://127.0.0.1:9"), 0.1)


def test_where_the_bucket_is_may_stand_in_the_recipe(
    tmp_path: Path, s3: Server, bucket: str
) -> None:
    """What the recipe's `env` says goes for the store as well, wherever it is opened."""
    keys = {name: value for name, value in s3.environ.items() if "KEY" in name}
    told = json.dumps({name: value for name, value in s3.environ.items() if name not in keys})
    plan = Project(tmp_path).plan(f"checkpoint.store={bucket}", f"env={told}")
    assert open_store(plan, "a1", environ=keys).head() is None


def test_a_run_begun_elsewhere_is_found_by_its_recipe(
    tmp_path: Path, bucket: str, here: None
) -> None:
    """Also by the rule that it was begun by, though no folder of this machine knows it."""
    project = Project(tmp_path)
    plan = project.plan(f"checkpoint.store={bucket}")
    begun = older_rules(plan)[0]
    assert begun.run != plan.run
    store = open_store(begun, "20260101T000000-a")
    record = replace(RunRecord(), digest=begun.digest, rule=begun.rule)
    store.commit(record.to_json(), store.head())
    online = place(plan, chosen=False)
    assert (online.plan.run, online.plan.store) == (begun.run, bucket)
    assert online.links == (begun.where,)


MEMORY = """
import pathlib, sys
from xrun.store.address import Address
from xrun.store.bucket.store import BucketStore
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
address, folder = Address.parse(sys.argv[1]), pathlib.Path(sys.argv[2])
store = BucketStore(address, "digits-1", "a1", "me", folder / "cache", piece=4 << 20)
head = store.commit({}, store.head())
store.put([b"warm" * 1000])
chunk = bytes(bytearray(b"x") * (16 << 20))
before = peak()
file = store.put(chunk for _ in range(8))
head = store.commit({"file": file.to_json()}, head)
other = BucketStore(address, "digits-1", "a2", "me", folder / "elsewhere")
other.head()
other.fetch(file)
assert not {"torch", "numpy", "huggingface_hub"} & sys.modules.keys()
print(file.size, peak() - before)
"""


@pytest.mark.once
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to see a process's memory"
)
def test_memory_stays_flat_while_a_large_file_is_sent_and_fetched(
    tmp_path: Path, s3: Server, bucket: str
) -> None:
    """128 MB are hashed, sent, fetched and verified with less than 64 MB of memory of their
    own."""
    env = {**os.environ, **s3.environ, "PYTHONPATH": WITH_SUPPORT}
    command = [sys.executable, "-c", MEMORY, f"{bucket}/digits-1", str(tmp_path)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    size, growth_kb = map(int, done.stdout.split())
    assert size == 128 << 20
    assert growth_kb < 64 << 10


@pytest.mark.soak
def test_ten_kills_on_ten_machines_change_no_bit(tmp_path: Path, s3: Server, bucket: str) -> None:
    """The command of the README with state in a bucket, killed ten times, each time on a machine
    that has nothing of the run: the same weights, and at most two checkpoints more than are
    kept."""
    roots = {}
    for name in ("undisturbed", "killed"):
        roots[name] = tmp_path / name
        (roots[name] / "recipes").mkdir(parents=True)
        shutil.copy(RECIPES / "digits.yaml", roots[name] / "recipes")
    told = (
        "recipes/digits.yaml",
        "--yes",
        "-s",
        "train.epochs=40",
        "-s",
        "checkpoint.every=20 steps",
    )
    undisturbed = Project(roots["undisturbed"])
    assert undisturbed.xrun(*told, seconds=1200).code == 0
    killed, step = Project(roots["killed"]), -1
    stored = (*told, "-s", f"checkpoint.store={bucket}")
    for _ in range(10):
        process = killed.start(*stored, environ=s3.environ)
        until(partial(has_passed, killed, step), "a commit", 600)
        step = committed(killed)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert space(s3, f"{bucket}/{killed.run.run}") <= 3 + 2 + 0.1  # the best one stays as well
        shutil.rmtree(killed.home)
    done = killed.xrun(*stored, environ=s3.environ, seconds=1200)
    assert done.code == 0, done.err
    assert sha256(killed) == sha256(undisturbed)
    with environment(s3.environ):
        assert len(killed.run.record().attempts) == 11


def has_passed(project: Project, step: int) -> bool:
    return committed(project) > step


def committed(project: Project) -> int:
    files = project.home.glob("*/committed.json")
    return max((json.loads(path.read_text())["step"] for path in files), default=-1)


def space(s3: Server, address: str) -> float:
    """How many times the largest file of a run is stored."""
    sizes = [size for key, size in s3.objects(address).items() if key.startswith("objects/")]
    return sum(sizes) / max(sizes)


def sha256(project: Project) -> str:
    return hashlib.sha256((project.run.model / "model.safetensors").read_bytes()).hexdigest()


def test_the_recipe_is_read(tmp_path: Path) -> None:
    """A bucket is a store that outlives the machine, and needs no token of the Hub."""
    project = Project(tmp_path)
    recipe = load_recipe(project.recipe, ["checkpoint.store=s3://mine/runs/"])
    assert str(recipe.checkpoint.store) == "s3://mine/runs"
    assert recipe.checkpoint.durable
