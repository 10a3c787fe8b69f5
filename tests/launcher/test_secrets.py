"""Secrets go by name; their values are found where people keep them, at a launch."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.paths import RECIPES
from xrun.errors import LaunchError
from xrun.launcher.secrets import secret_names, secret_values
from xrun.recipe.load import load_recipe


def test_secrets_are_found_where_the_logins_keep_them(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_from_login\n")
    (tmp_path / "netrc").write_text(
        "machine api.wandb.ai\n  login user\n  password key-from-login\n"
    )
    (tmp_path / "netrc").chmod(0o600)
    wanted = ["checkpoint.store=hub", "tracking.wandb={project: p}"]
    names = secret_names(load_recipe(RECIPES / "digits.yaml", wanted))
    environ = {"HF_TOKEN_PATH": str(tmp_path / "token"), "NETRC": str(tmp_path / "netrc")}
    assert secret_values(names, environ) == {
        "HF_TOKEN": "hf_from_login",
        "WANDB_API_KEY": "key-from-login",
    }
    assert secret_values(["HF_TOKEN"], {**environ, "HF_TOKEN": "hf_from_environment"}) == {
        "HF_TOKEN": "hf_from_environment"
    }
    with pytest.raises(LaunchError, match="needs MINE, WANDB_API_KEY") as caught:
        secret_values(
            ["MINE", "WANDB_API_KEY"],
            {"WANDB_BASE_URL": "https://elsewhere", "NETRC": str(tmp_path / "netrc")},
        )
    assert "`wandb login`" in caught.value.hint


def test_a_model_on_the_hub_needs_its_token() -> None:
    """Wherever the state is."""
    wanted = ["checkpoint.store=s3://bucket/runs", "publish=hub"]
    assert secret_names(load_recipe(RECIPES / "digits.yaml", wanted)) == ["HF_TOKEN"]


def test_a_bucket_needs_no_token_of_the_hub() -> None:
    """Its keys are secrets that the recipe names, or the machine has an identity of its own."""
    store = "checkpoint.store=s3://bucket/runs"
    assert secret_names(load_recipe(RECIPES / "digits.yaml", [store])) == []
    named = [store, "secrets=[AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]"]
    names = secret_names(load_recipe(RECIPES / "digits.yaml", named))
    assert names == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
