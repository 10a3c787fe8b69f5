"""The same round trips against the public services: `make contract`, with a token and a key of your
own.

Needs HF_TOKEN (with write access) and WANDB_API_KEY in the environment. A private repository and a
W&B run of the project `xrun-contract` are made; the repository is deleted at the end. HF_ENDPOINT
and WANDB_BASE_URL lead to other servers, for instance those of `python -m loopback`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from support.far_away import environment
from support.running import PER_STEP, STEPS, Project, curve, weights
from xrun.run.folder import RunFolder

PUBLIC = "https://huggingface.co"
WANDB = ["-s", "tracking.wandb={project: xrun-contract}"]
HISTORY = """
import json, sys, wandb
run = wandb.Api().run(sys.argv[1])
rows = run.scan_history(keys=["train/step", "train/loss"])
print(json.dumps([[row["train/step"], row["train/loss"]] for row in rows]))
"""

pytestmark = [pytest.mark.contract, pytest.mark.timeout(1800)]


@pytest.fixture(params=["hub", "hub-bucket"])
def store(request: pytest.FixtureRequest, accounts: dict[str, str]) -> Iterator[str]:
    if not {"HF_TOKEN", "WANDB_API_KEY"} <= accounts.keys():
        pytest.fail("set HF_TOKEN and WANDB_API_KEY")
    api = HfApi(endpoint=accounts.get("HF_ENDPOINT", PUBLIC), token=accounts["HF_TOKEN"])
    name = f"{api.whoami()['name']}/xrun-contract-{secrets.token_hex(4)}"
    yield f"{request.param}://{name}"
    api.delete_repo(name, missing_ok=True)
    if request.param == "hub-bucket":
        api.delete_bucket(name, missing_ok=True)


def test_a_run_comes_back_on_a_bare_machine(
    tmp_path: Path, store: str, accounts: dict[str, str]
) -> None:
    """Half of the run on one machine, the other half on a bare one, with a kill: the same weights
    as without, each step once."""
    undisturbed = Project(tmp_path / "undisturbed")
    assert undisturbed.attempt().code == 0
    accounts = {"HF_ENDPOINT": PUBLIC, **accounts}
    settings = ["-s", f"checkpoint.store={store}", *WANDB]
    name = f"contract-{secrets.token_hex(4)}"
    command = ["recipes/tiny.yaml", "--yes", "--run", name, *settings]
    first, second = Project(tmp_path / "first"), Project(tmp_path / "second")
    done = first.xrun("check", "--online", "recipes/tiny.yaml", *settings, environ=accounts)
    assert done.code == 0, done.err
    done = first.xrun(*command, "-s", "train.steps=10", environ=accounts, seconds=900)
    assert done.code == 0, done.err
    second.trap("SIGKILL", call=5 * PER_STEP)
    done = second.xrun(*command, environ=accounts, seconds=900)
    assert done.code == 0, done.err
    run = RunFolder(second.home / name)
    assert weights(run) == weights(undisturbed.run)
    assert curve(run) == curve(undisturbed.run)
    with environment(accounts):
        read = subprocess.run(
            [sys.executable, "-c", HISTORY, f"xrun-contract/{name}"],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
    rows = json.loads(read.stdout.splitlines()[-1])
    assert [step for step, _ in rows] == list(range(1, STEPS + 1))
    assert [loss for _, loss in rows] == [
        curve(undisturbed.run)[step]["train/loss"] for step in range(1, STEPS + 1)
    ]
