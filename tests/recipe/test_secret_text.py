"""Secrets go by name: a value that looks like one is refused wherever it stands, and not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.mutations import SMALL
from xrun.errors import RecipeError
from xrun.recipe.load import load_recipe
from xrun.recipe.secret_text import is_secret_file

TOKENS = {
    "hugging face": "hf_SECRETsecretSECRETsecret12",
    "wandb": "0123456789abcdef0123456789abcdef01234567",
    "wandb, newer": "wandb_v1_Abcdefghijkl0123",
    "openai": "sk-proj-abcDEF0123456789abcDEF",
    "anthropic": "sk-ant-api03-abcDEF0123456789",
    "github": "ghp_0123456789abcdef0123456789abcdef0123",
    "github, newer": "github_pat_11ABCDEFG0123456789_abcdef",
    "gitlab": "glpat-abcDEF0123456789abcd",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIzaSyA0123456789abcdefghijklmnopqrstuv",
    "slack": "xoxb-0123456789-abcdefABCDEF",
    "slack's hook": "https://hooks.slack.com/services/T0000/B0000/abcdefgh",
    "azure": "AccountKey=abcdefABCDEF0123456789abcdef==",
    "jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIn0.abc",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "address": "postgres://me:hunter2hunter2@host/db",
    "proxy": "http://:hunter2hunter2@host:8080",
}
PLACES = {
    "model.args.more": "model={name: hub, args: {name: a/b, more: VALUE}}",
    "model.args.deep.0.x": "model={name: hub, args: {name: a/b, deep: [{x: VALUE}]}}",
    "dataset.args.VALUE": "dataset={name: hub_text, args: {VALUE: 1}}",
    "model.init_from": "model.init_from=VALUE",
    "train.optimizer.args.x": "train.optimizer.args={x: VALUE}",
    "tracking.wandb.tags.0": "tracking.wandb={project: p, tags: [VALUE]}",
    "tracking.wandb.entity": "tracking.wandb={project: p, entity: VALUE}",
    "env.A": "env={A: VALUE}",
    "hardware.any_of.0.setup": "hardware={any_of: [{nodes: 1, spot: false, setup: VALUE}]}",
    "hardware.any_of.0.image": "hardware={any_of: [{nodes: 1, spot: false, image: VALUE}]}",
    "secrets.0": "secrets=[VALUE]",
    "train.evaluate.metric": "train.evaluate={metric: VALUE, mode: max}",
    "nothing": "nothing=VALUE",
}
"""Where a value may stand in a recipe, as an override."""


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    """What is wrong, in the words that a person reads; "" if nothing is."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("place", PLACES)
def test_a_token_is_refused_and_not_shown(tmp_path: Path, place: str, kind: str) -> None:
    """Whoever made it, wherever it stands, in a file or as an override."""
    token = TOKENS[kind]
    of_commits = kind == "wandb" and place.endswith(("init_from", "image", "VALUE"))
    override = PLACES[place].replace("VALUE", f"'{token}'")
    said = problems(tmp_path, SMALL, override)
    assert bool(said) or of_commits
    assert token not in said
    assert "hunter2" not in said
    key, _, value = override.partition("=")
    if key in ("env", "secrets", "nothing"):
        said = problems(tmp_path, SMALL + f"{key}: {value}\n")
        assert said
        assert token not in said


@pytest.mark.parametrize(
    "key", ["password", "db_password", "api_key", "apikey", "secret", "aws_secret_access_key",
            "access_token", "hf_token", "private-key"],
)  # fmt: skip
def test_a_value_is_a_secret_by_its_name(tmp_path: Path, key: str) -> None:
    """Whatever it looks like; the name of a variable is none. The override is not repeated."""
    said = problems(tmp_path, SMALL.replace("inputs: 8", f"{key}: hunter2"))
    assert "looks like a secret" in said
    assert "hunter2" not in said
    said = problems(tmp_path, SMALL, f"model.args.{key}=hunter2")
    assert "looks like a secret" in said
    assert "hunter2" not in said
    said = problems(tmp_path, SMALL, f"model.args.{key}=MY_VARIABLE")
    assert "looks like a secret" not in said


@pytest.mark.parametrize(
    "value",
    [
        "model.init_from=owner/name@0123456789abcdef0123456789abcdef01234567",
        "model={name: hub, args: {name: a/b, revision: 0123456789abcdef0123456789abcdef01234567}}",
        "model={name: hub, args: {name: a/b, pad_token: \"</s>\", key: query, sort_key: length}}",
        "model={name: hub, args: {name: hf_internal_testing, path: sk-learn-and-other-things}}",
        "dataset.args={seed: 5}",
        "tracking.wandb={project: risk-aware-tokens, tags: [task-classification-of-things]}",
        "model={name: hub, args: {name: a/b, url: \"https://host:8080/a@b\"}}",
    ],
)  # fmt: skip
def test_what_is_none_stays(tmp_path: Path, value: str) -> None:
    """Commits, ordinary words and addresses are no secrets."""
    assert "looks like a secret" not in problems(tmp_path, SMALL, value)


@pytest.mark.parametrize(
    ("name", "secret"),
    [(".env", True), ("prod.env", True), ("environment.yaml", False), ("key.pem", True),
     ("keys.py", False), ("secrets.py", False), ("secrets.toml", True), ("tokens.txt", False),
     ("token", True), ("tokenizer.json", False), ("id_rsa", True), ("id_rsa.pub", True),
     ("monkey.png", False), ("credentials", True), ("_netrc", True), ("vocab.json", False)],
)  # fmt: skip
def test_secret_files_by_name(name: str, secret: bool) -> None:
    assert is_secret_file(name) == secret
