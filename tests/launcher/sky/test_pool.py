"""A pool's machines have the files of one trial; each job makes its own run's of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launcher.sky.test_task import config_of, offer, plan_of

from support.sky_home import CLOUDS, SkyHome
from xrun.errors import LaunchError
from xrun.launcher.bundle import Cargo, there
from xrun.launcher.offers import rank
from xrun.launcher.sky.launch import Launch
from xrun.launcher.sky.pool import LIMIT, Pool
from xrun.launcher.sky.recovery import OF_SKYPILOT

FILES = {
    "attempt.sh": b'echo "$1 $2 $XRUN_PRICES"\n',
    "plan.json": b'{"lr": 1}',
    "project/a file's.py": b"x = 1\n",
    "project/old.py": b"",
}


def launch_of(tmp_path: Path, run: str, files: dict[str, bytes], *offers: Any) -> Launch:
    plan = replace(plan_of(tmp_path), run=run)
    cargo = Cargo(tmp_path / run / "cargo", files, {"attempt.sh"})
    candidates = plan.load_recipe().hardware.any_of
    ranked = rank(offers or [offer(z1=20)], candidates)
    task = config_of(plan, tmp_path, *offers)
    mounts = {there(run): str(cargo.folder)}
    return Launch(plan, ranked, cargo, {**task, "file_mounts": mounts})


def pool_of(launch: Launch) -> Pool:
    launch.cargo.write()
    return Pool("digits-s1", 3, 20.0, str(launch.cargo.folder), asked=1.0)


def test_a_job_has_the_cargo_of_its_own_run(tmp_path: Path) -> None:
    """To the byte and the mode, whatever was changed, added or deleted since the pool was made; a
    second time on the same machine as well."""
    first = launch_of(tmp_path, "digits-1", FILES)
    pool = pool_of(first)
    files = {**FILES, "plan.json": b'{"lr": 2}', "project/new/b.py": b"y = 2\n"}
    del files["project/old.py"]
    second = launch_of(tmp_path, "digits-2", files)
    job = pool.job(second)
    assert job["name"] == second.task["name"]
    assert job["resources"] == {"job_recovery": OF_SKYPILOT}
    assert "file_mounts" not in job
    home = tmp_path / "home"
    on_machine = home / there(pool.name).removeprefix("~/")
    on_machine.parent.mkdir(parents=True)
    subprocess.run(["cp", "-R", first.cargo.folder, on_machine], check=True)
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", job["run"]],
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        own = home / there("digits-2").removeprefix("~/")
        told = {str(p.relative_to(own)): p.read_bytes() for p in own.rglob("*") if p.is_file()}
        assert told == files
        assert (own / "attempt.sh").stat().st_mode & 0o777 == 0o700
        cargo, plan, prices = done.stdout.split()
        assert (cargo, prices) == (str(own), f"{own}/prices.json")
        assert plan == str(home / "xrun/runs" / second.task["name"] / "plan.json")


def test_the_first_trial_s_own_files_travel_once(tmp_path: Path) -> None:
    """Its command writes out nothing of what the pool has."""
    first = launch_of(tmp_path, "digits-1", {**FILES, "large": bytes(range(256)) * 4096})
    assert len(pool_of(first).job(first)["run"]) < 1000


def test_what_is_too_large_to_be_sent_is_said(tmp_path: Path) -> None:
    """With the way out: another pool."""
    pool = pool_of(launch_of(tmp_path, "digits-1", FILES))
    noise = b"".join(hashlib.sha256(bytes([i >> 8, i & 255])).digest() for i in range(LIMIT // 32))
    second = launch_of(tmp_path, "digits-2", {**FILES, "project/c.py": noise})
    with pytest.raises(LaunchError, match="since the pool digits-s1 was made takes") as error:
        pool.job(second)
    assert "xrun sweep stop" in str(error.value)


def test_its_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """One that is damaged says how the machines are found."""
    assert Pool.of(tmp_path) is None
    (tmp_path / "pool.json").write_text('{"name": "digits-s1", "machi')
    with pytest.raises(LaunchError, match="is damaged") as error:
        Pool.of(tmp_path)
    assert "sky jobs pool down" in str(error.value)


TAKEN = """
import json, sys
import sky
from sky.serve.serve_utils import validate_service_task
task = sky.Task.from_yaml_config(json.loads(sys.argv[1]))
validate_service_task(task, pool=True)
print(task.service.min_replicas, sorted(str(each.use_spot) for each in task.resources))
"""


@pytest.mark.cloud
def test_skypilot_takes_the_pool(tmp_path: Path) -> None:
    """Its own validation: one kind of price, no order, no rule of recovery."""
    home = SkyHome(tmp_path / "sky")
    home.enable(*CLOUDS)
    offers = [offer(z1=20), offer(cloud="gcp", z1=21), offer(spot=False, z1=60)]
    launch = launch_of(tmp_path, "digits-1", FILES, *offers)
    pool = pool_of(launch)
    done = home.python(TAKEN, json.dumps(pool.task(launch)))
    assert done.code == 0, done.err
    assert done.out.split(maxsplit=1) == ["3", "['True']\n"]
