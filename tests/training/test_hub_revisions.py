"""What the Hub gives to a run is what it gave when the run began, whoever asks: with the real
client and a loopback Hub.

Covers `xrun.training.made_from` and `xrun.store.hub.watching`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from loopback.hub import Hub
from xrun.training.hub_revisions import read

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASKS = """
import json, sys
from xrun.errors import XrunError
from xrun.training.hub_revisions import HubRevisions

HubRevisions({"models/alice/words@main": "f" * 40}).use()  # the newest counts
revisions = HubRevisions(json.loads(sys.argv[1]), frozenset(sys.argv[3:]))
late = sys.argv[2] in ("late", "ours")
if not late:
    from huggingface_hub import hf_hub_download, snapshot_download
revisions.use()
try:
    if late:
        assert not any(name.startswith(("huggingface_hub.", "httpx")) for name in sys.modules)
    if sys.argv[2] == "late":
        from huggingface_hub import hf_hub_download
        got = open(hf_hub_download("alice/words", "words.txt")).read()
    elif sys.argv[2] == "ours":
        from xrun.store.hub.client import hub_api
        got = open(hub_api().hf_hub_download("alice/words", "words.txt")).read()
    elif sys.argv[2] == "file":
        got = open(hf_hub_download("alice/words", "words.txt")).read()
    elif sys.argv[2] == "snapshot":
        folder = snapshot_download("alice/words", repo_type="dataset")
        got = open(folder + "/words.txt").read()
    elif sys.argv[2] == "cached":
        got = open(hf_hub_download("alice/words", "words.txt")).read()
        revisions.taken_offline("name: alice/words")
    else:
        got = sorted(revisions.moved().items())
    print(json.dumps([got, dict(revisions.now())]))
except XrunError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub


def say(hub: Hub, word: str, kind: str = "model") -> str:
    """A commit of `words.txt` on main; its id."""
    api = HfApi(hub.url, token="hf_alice")
    api.create_repo("alice/words", repo_type=kind, exist_ok=True)
    done = api.upload_file(
        path_or_fileobj=word.encode(),
        path_in_repo="words.txt",
        repo_id="alice/words",
        repo_type=kind,
    )
    return str(done.oid)


def ask(
    hub: Hub, what: str, fixed: dict[str, str], *own: str, home: Path, **more: str
) -> list[object]:
    environ = {**os.environ, **hub.environ("alice"), "HF_HOME": str(home), **more}
    command = [sys.executable, "-c", ASKS, json.dumps(fixed), what, *own]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    answer: list[object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("path", "name", "at"),
    [
        ("/api/models/a/b", "models/a/b@main", f"/api/models/a/b/revision/{COMMIT}"),
        ("/api/models/gpt2?x=1", "models/gpt2@main", f"/api/models/gpt2/revision/{COMMIT}?x=1"),
        (
            "/api/datasets/a/b/revision/refs%2Fpr%2F1",
            "datasets/a/b@refs/pr/1",
            f"/api/datasets/a/b/revision/{COMMIT}",
        ),
        (
            "/api/datasets/a/b/tree/v1/data?recursive=1",
            "datasets/a/b@v1",
            f"/api/datasets/a/b/tree/{COMMIT}/data?recursive=1",
        ),
        ("/a/b/resolve/main/x/y", "models/a/b@main", f"/a/b/resolve/{COMMIT}/x/y"),
        ("/datasets/a/b/resolve/main/x", "datasets/a/b@main", f"/datasets/a/b/resolve/{COMMIT}/x"),
    ],
)
def test_a_path_that_names_a_branch_has_the_same_at_a_commit(path: str, name: str, at: str) -> None:
    """Models, datasets and canonical names, as huggingface_hub asks for them."""
    meant = read(path)
    assert meant is not None
    assert (meant.name, meant.at(COMMIT)) == (name, at)


@pytest.mark.parametrize("path", [f"/a/b/resolve/{COMMIT}/x", "/api/whoami-v2", "/api/models"])
def test_what_cannot_move_is_left_alone(path: str) -> None:
    """A commit, and questions about no repository."""
    assert read(path) is None


def test_what_a_component_took_from_a_branch_is_recorded(hub: Hub, tmp_path: Path) -> None:
    """By the file's commit, and by that of a whole snapshot."""
    model, data = say(hub, "one"), say(hub, "two", "dataset")
    assert ask(hub, "file", {}, home=tmp_path) == ["one", {"models/alice/words@main": model}]
    assert ask(hub, "snapshot", {}, home=tmp_path) == ["two", {"datasets/alice/words@main": data}]


def test_a_run_that_goes_on_gets_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    """Though the branch has moved, and the machine has cached the newest; and where the library,
    which takes memory in each rank, is imported only by whoever asks."""
    first = say(hub, "one")
    second = say(hub, "another")
    fixed = {"models/alice/words@main": first}
    assert ask(hub, "file", {}, home=tmp_path)[0] == "another"
    assert ask(hub, "file", fixed, home=tmp_path) == ["one", fixed]
    for late in ("late", "ours"):
        assert ask(hub, late, fixed, home=tmp_path / late) == ["one", fixed]
    assert ask(hub, "moved", fixed, home=tmp_path)[0] == [["models/alice/words@main", second]]


def test_the_repository_of_the_state_is_never_fixed(hub: Hub, tmp_path: Path) -> None:
    """Its branches move with each commit of a checkpoint."""
    say(hub, "one")
    assert ask(hub, "file", {}, "alice/words", home=tmp_path) == ["one", {}]


def test_a_commit_that_has_vanished_ends_the_run(hub: Hub, tmp_path: Path) -> None:
    """One sentence with the commit, what it was, and the way out."""
    say(hub, "one")
    got = ask(hub, "file", {"models/alice/words@main": COMMIT}, home=tmp_path)
    told = (
        f"The commit {COMMIT} of models/alice/words (main when the run began) is no longer on the"
        " Hub, so the run cannot go on with what it was made from. Bring the commit back, or begin"
        " another run with --again."
    )
    assert got == ["CheckpointError", told]


def test_offline_the_cache_says_what_was_taken(hub: Hub, tmp_path: Path) -> None:
    """And one that has another commit than the run's is refused."""
    first = say(hub, "one")
    ask(hub, "file", {}, home=tmp_path)
    offline = {"HF_HUB_OFFLINE": "1"}
    got = ask(hub, "cached", {}, home=tmp_path, **offline)
    assert got == ["one", {"models/alice/words@main": first}]
    other = ask(hub, "cached", {"models/alice/words@main": COMMIT}, home=tmp_path, **offline)
    assert other[0] == "CheckpointError"
    assert f"at {first[:12]}, and the run was made from {COMMIT[:12]}" in str(other[1])
