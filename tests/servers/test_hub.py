"""The loopback Hub does what the real client asks of the service, and fails on demand as the
service does.

Covers `loopback.__main__`, `loopback.faults`, `loopback.hub_access`, `loopback.hub_accounts`,
`loopback.hub_buckets`, `loopback.hub_files`, `loopback.hub_git`, `loopback.hub_history`,
`loopback.hub_repository`, `loopback.hub_xet`, `loopback.listener` and `loopback.server`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from loopback.hub import Hub
from loopback.hub_xet import ContentStore, Term
from loopback.listener import listen
from support.paths import ROOT

REPO = "alice/run"
BIG = bytes(range(256)) * 512
"""A large file of 128 KiB."""
PASTED = ("HF_ENDPOINT", "HF_TOKEN", "WANDB_BASE_URL", "WANDB_API_KEY")
"""What `python -m loopback` prints, in this order."""
LOST = HfHubHTTPError.__bases__[0]
"""Every error of HTTP: a status, and a connection that broke (httpx for one version of the client,
httpx2 for the other)."""

# The client's own ways to send a large file: by LFS, and by Xet as its older version does.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning"),
]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub that is empty."""
    with Hub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def client(hub: Hub) -> Callable[[str], HfApi]:
    """The real client as a user."""
    return lambda user: HfApi(endpoint=hub.url, token=hub.token(user))


@pytest.fixture(params=["xet", "lfs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How large files are sent."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def alice(client: Callable[[str], HfApi]) -> HfApi:
    """Alice, with her empty private repository."""
    api = client("alice")
    api.create_repo(REPO, private=True)
    return api


def commit(
    api: HfApi, files: dict[str, bytes], *, repo: str = REPO, message: str = "Add", **options: Any
) -> str:
    """One commit of these files."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(repo, operations, commit_message=message, **options).oid


def titles(api: HfApi, revision: str = "main") -> list[str]:
    """The history, newest first."""
    return [entry.title for entry in api.list_repo_commits(REPO, revision=revision)]


def sha256(data: bytes) -> str:
    """As LFS names it."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def refused(status: int) -> Iterator[None]:
    """The Hub answers with this status."""
    with pytest.raises(HfHubHTTPError) as error:
        yield
    assert error.value.response.status_code == status


# What the service does.


def test_files_come_back_as_they_were_sent(hub: Hub, alice: HfApi, way: str, tmp_path: Path):
    """Large and small files, by commit, snapshot, tree and path; the large ones really went by the
    chosen way."""
    oid = commit(
        alice, {"state/a.safetensors": BIG, "meta.json": b"{}", "empty": b"", "a b/ü.txt": b"text"}
    )
    folder = Path(alice.snapshot_download(REPO, revision=oid, cache_dir=tmp_path / "cache"))
    assert (
        (folder / "state/a.safetensors").read_bytes()
        == BIG
        == hub.read(REPO, "state/a.safetensors")
    )
    assert [(folder / name).read_bytes() for name in ("meta.json", "empty", "a b/ü.txt")] == [
        b"{}",
        b"",
        b"text",
    ]
    tree = {entry.path: entry for entry in alice.list_repo_tree(REPO, recursive=True)}
    assert {"state", "a b", "state/a.safetensors"} < set(tree)
    assert tree["state/a.safetensors"].lfs.sha256 == sha256(BIG)
    assert bool(tree["state/a.safetensors"].xet_hash) == (way == "xet")
    assert [entry.path for entry in alice.get_paths_info(REPO, ["meta.json", "state", "nope"])] == [
        "meta.json",
        "state",
    ]
    assert any(r.path.startswith("/lfs/") for r in hub.requests) == (way == "lfs")
    assert any(r.path.startswith("/cas/") for r in hub.requests) == (way == "xet")


def test_no_two_servers_of_a_process_have_one_address():
    """hf_xet remembers by the address what a Hub has, and would not send it to the next one."""
    ports = set()
    for _ in range(1000):  # of some 28,000 that there are: without a rule 17 come twice
        with closing(listen(0)) as listening:
            ports.add(listening.getsockname()[1])
    assert len(ports) == 1000
    again = max(ports)  # a server that starts again has asked for its port
    with closing(listen(again)) as listening:
        assert listening.getsockname()[1] == again


def test_no_chunk_is_offered_twice(tmp_path: Path):
    """Stretches of one xorb do not overlap, and each term lies in one: hf_xet has panicked over
    many equal chunks."""
    content = ContentStore(tmp_path)
    content.put_xorb(
        "x", b"".join(bytes([0, 5, 0, 0, 0, 5, 0, 0]) + b"%05d" % number for number in range(9))
    )
    terms = [
        Term("x", 5 * (end - start), start, end)
        for start, end in [(4, 5), (0, 2), (1, 2), (1, 4), (3, 4), (7, 9)]
    ]
    stretches = content.fetch_info("x", terms, "http://hub")
    assert [(one["range"]["start"], one["range"]["end"]) for one in stretches] == [
        (0, 4),
        (4, 5),
        (7, 9),
    ]
    assert [(one["url_range"]["start"], one["url_range"]["end"]) for one in stretches] == [
        (0, 51),
        (52, 64),
        (91, 116),
    ]


def test_a_repository_is_real_git(hub: Hub, alice: HfApi, tmp_path: Path):
    """git clones it, with pointers for the large files."""
    commit(alice, {"a.safetensors": BIG, "b.txt": b"text"})
    folder = hub.folder(REPO, "model")
    subprocess.run(["git", "clone", "--quiet", str(folder), str(tmp_path / "clone")], check=True)
    subprocess.run(["git", "-C", str(folder), "fsck", "--strict", "--no-dangling"], check=True)
    assert (tmp_path / "clone" / "b.txt").read_bytes() == b"text"
    assert f"oid sha256:{sha256(BIG)}" in (tmp_path / "clone" / "a.safetensors").read_text()


def test_one_commit_adds_copies_and_deletes(alice: HfApi, way: str):
    """Files, folders and copies, in one commit that is all or nothing."""
    commit(alice, {"old/1.txt": b"1", "old/2.txt": b"2", "gone.txt": b"", "a.safetensors": BIG})
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("old/"),
        CommitOperationDelete("gone.txt"),
        CommitOperationCopy("a.safetensors", "b.safetensors"),
    ]
    alice.create_commit(REPO, operations, commit_message="All")
    assert set(alice.list_repo_files(REPO)) == {
        ".gitattributes",
        "new.txt",
        "a.safetensors",
        "b.safetensors",
    }
    with pytest.raises(EntryNotFoundError):
        alice.create_commit(
            REPO,
            [CommitOperationAdd("x", b"x"), CommitOperationDelete("nöpe – no")],
            commit_message="No",
        )
    assert not alice.file_exists(REPO, "x")


def test_a_large_file_that_no_pattern_names_gets_a_line(hub: Hub, alice: HfApi):
    """In .gitattributes, once (huggingface_hub#2666)."""

    def attributes() -> str:
        repository = hub.repository(REPO)
        return repository.blob(
            repository.tree(repository.head("main"))[".gitattributes"].oid
        ).decode()

    before = attributes()
    commit(alice, {"a.safetensors": BIG, "logs/0.lfs.log": BIG})
    assert attributes() == before
    for _ in range(2):
        commit(alice, {"logs/0.odd": BIG})
    assert attributes() == before + "logs/0.odd filter=lfs diff=lfs merge=lfs -text\n"


def test_a_commit_on_an_old_parent_is_refused(alice: HfApi):
    """412, and nothing is committed."""
    parent = alice.repo_info(REPO).sha
    newer = commit(alice, {"a.txt": b"a"}, parent_commit=parent)
    with refused(412):
        commit(alice, {"b.txt": b"b"}, parent_commit=parent)
    assert alice.repo_info(REPO).sha == newer


def test_of_many_commits_on_one_parent_one_lands(alice: HfApi):
    """All others get 412; without a parent all of them land, one after the other."""
    parent = alice.repo_info(REPO).sha

    def race(number: int, **options: str) -> int:
        try:
            commit(alice, {f"{number}.txt": b""}, **options)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(6) as pool:
        assert (
            sorted(pool.map(lambda n: race(n, parent_commit=parent), range(6))) == [200] + [412] * 5
        )
        assert set(pool.map(race, range(10, 16))) == {200}
    assert len(titles(alice)) == 8


def test_history_has_titles_and_dates(hub: Hub, alice: HfApi):
    """The newest first, with the title, the rest of the message and the Hub's clock."""
    hub.clock = lambda: 1_700_000_000.0
    commit(alice, {"a.txt": b"a"}, message="Second", commit_description="why\n\nand how")
    newest, first = alice.list_repo_commits(REPO)
    assert (newest.title, newest.message, newest.authors, first.title) == (
        "Second",
        "why\n\nand how",
        ["alice"],
        "initial commit",
    )
    assert newest.created_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert hub.history(REPO)[0].id == newest.commit_id == alice.repo_info(REPO).sha


def test_branches_and_tags(alice: HfApi):
    """Made, moved, listed, refused when they exist, deleted."""
    alice.create_branch(REPO, branch="run/1")
    alice.create_branch(REPO, branch="run/1", exist_ok=True)
    oid = commit(alice, {"a.txt": b"a"}, revision="run/1")
    alice.create_tag(REPO, tag="best", revision="run/1", tag_message="the best")
    refs = alice.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit == oid for branch in refs.branches} == {
        "main": False,
        "run/1": True,
    }
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("best", oid)]
    assert (
        alice.repo_info(REPO, revision="best").sha
        == alice.repo_info(REPO, revision=oid[:8]).sha
        == oid
    )
    for make in (alice.create_branch, alice.create_tag):
        with refused(409):
            make(REPO, **{"branch": "run/1"} if make == alice.create_branch else {"tag": "best"})
    alice.delete_tag(REPO, tag="best")
    alice.delete_branch(REPO, branch="run/1")
    with pytest.raises(RevisionNotFoundError):
        alice.repo_info(REPO, revision="run/1")


def test_squash_leaves_one_commit(alice: HfApi):
    """The files stay, the history goes, and whoever commits on the old head is refused."""
    old = commit(alice, {"a.txt": b"a"})
    alice.super_squash_history(REPO, branch="main", commit_message="All in one")
    assert titles(alice) == ["All in one"]
    assert alice.file_exists(REPO, "a.txt")
    with refused(412):
        commit(alice, {"b.txt": b"b"}, parent_commit=old)


def test_an_object_that_is_deleted_here_is_still_there_elsewhere(
    hub: Hub, alice: HfApi, way: str, tmp_path: Path
):
    """Two repositories share content; each one counts it, keeps it and deletes it for itself."""
    alice.create_repo("alice/other", private=True)
    for repo in (REPO, "alice/other"):
        commit(alice, {"a.safetensors": BIG, "b.safetensors": BIG}, repo=repo)
        assert hub.stored_bytes(repo) == len(BIG)
    head = alice.repo_info(REPO).sha
    [large] = alice.list_lfs_files(REPO)
    assert (large.file_oid, large.size) == (sha256(BIG), len(BIG))
    alice.permanently_delete_lfs_files(REPO, [large], rewrite_history=False)
    assert (hub.stored_bytes(REPO), hub.stored_bytes("alice/other")) == (0, len(BIG))
    assert alice.repo_info(REPO).sha == head
    with pytest.raises(EntryNotFoundError):
        alice.hf_hub_download(REPO, "a.safetensors", cache_dir=tmp_path)
    path = alice.hf_hub_download("alice/other", "a.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == BIG


def test_a_deleted_object_has_to_be_sent_again(hub: Hub, alice: HfApi, way: str):
    """A commit that names it is refused, even if another repository has it; sent again it is kept
    again."""
    commit(alice, {"a.safetensors": BIG})
    hub.create_repo("alice/other", files={"a.safetensors": BIG})
    alice.permanently_delete_lfs_files(REPO, alice.list_lfs_files(REPO), rewrite_history=False)
    lines = [{"key": "header", "value": {"summary": "Never sent"}}]
    lines += [
        {"key": "lfsFile", "value": {"path": "b.safetensors", "algo": "sha256", "oid": sha256(BIG)}}
    ]
    answer = raw(
        hub.url, f"/api/models/{REPO}/commit/main", "\n".join(map(json.dumps, lines)).encode()
    )
    assert (answer.status, b"does not exist" in answer.body) == (400, True)
    commit(alice, {"b.safetensors": BIG})
    assert hub.read(REPO, "b.safetensors") == BIG


def test_deleting_with_rewritten_history_moves_every_branch(alice: HfApi):
    """Commits from the first that names the object on are made anew without it; those before it
    stay."""
    first = commit(alice, {"a.txt": b"a"}, message="One")
    commit(alice, {"b.safetensors": BIG, "b.txt": b"b"}, message="Two")
    old = commit(alice, {"c.txt": b"c"}, message="Three")
    alice.permanently_delete_lfs_files(REPO, alice.list_lfs_files(REPO))
    commits = alice.list_repo_commits(REPO)
    assert [entry.title for entry in commits] == ["Three", "Two", "One", "initial commit"]
    assert (commits[0].commit_id != old, commits[2].commit_id) == (True, first)
    assert set(alice.list_repo_files(REPO)) == {".gitattributes", "a.txt", "b.txt", "c.txt"}


def test_an_upload_without_a_commit_is_not_stored(hub: Hub, alice: HfApi, way: str):
    """It belongs to the repository once a commit names it."""
    addition = CommitOperationAdd("a.safetensors", BIG)
    alice.preupload_lfs_files(REPO, [addition])
    assert (hub.stored_bytes(REPO), list(alice.list_lfs_files(REPO))) == (0, [])
    alice.create_commit(REPO, [addition], commit_message="Now")
    assert hub.stored_bytes(REPO) == len(BIG)


def test_what_has_hardly_changed_is_hardly_sent(hub: Hub, alice: HfApi):
    """Xet sends changed chunks only."""
    first = os.urandom(3_000_000)
    commit(alice, {"a.safetensors": first})
    hub.requests.clear()
    changed = first[:1_500_000] + b"changed" + first[1_500_007:]
    commit(alice, {"a.safetensors": changed})
    assert sum(request.size for request in hub.requests) < 400_000
    assert hub.read(REPO, "a.safetensors") == changed


def test_lists_come_in_pages(hub: Hub, alice: HfApi):
    """The client follows the links."""
    commit(alice, {f"{n}.safetensors": bytes([n]) * 100 for n in range(5)})
    hub.page = 2
    assert len(list(alice.list_repo_tree(REPO))) == 6
    assert len(list(alice.list_lfs_files(REPO))) == 5
    assert len(titles(alice)) == 2
    assert any("cursor=4" in str(request.query) for request in hub.requests)


def test_a_bucket_keeps_the_last_write(hub: Hub, client: Callable[[str], HfApi], tmp_path: Path):
    """Files are added, overwritten, copied from a repository, listed, read, deleted; there is no
    history."""
    api = client("alice")
    api.create_bucket("alice/bulk", private=True)
    api.create_bucket("alice/bulk", exist_ok=True)
    api.batch_bucket_files("alice/bulk", add=[(b"first", "r/a.bin"), (BIG, "r/deep/b.bin")])
    api.batch_bucket_files("alice/bulk", add=[(b"second", "r/a.bin")])
    assert {(row.path, row.size) for row in api.list_bucket_tree("alice/bulk", recursive=True)} == {
        ("r/a.bin", 6),
        ("r/deep/b.bin", len(BIG)),
    }
    assert {row.path for row in api.list_bucket_tree("alice/bulk", prefix="r")} == {
        "r/a.bin",
        "r/deep",
    }
    api.download_bucket_files(
        "alice/bulk", [("r/a.bin", tmp_path / "a"), ("r/deep/b.bin", tmp_path / "b")]
    )
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"second", BIG)
    api.batch_bucket_files("alice/bulk", delete=["r/a.bin"])
    assert api.bucket_info("alice/bulk").total_files == 1
    with refused(404):
        client("bob").bucket_info("alice/bulk")
    api.delete_bucket("alice/bulk")


# Who may do what.


def test_a_private_repository_does_not_exist_for_strangers(
    hub: Hub, alice: HfApi, client: Callable[[str], HfApi]
):
    """404 for another user, for nobody too; it opens when it is made public, and still nobody else
    may write."""
    bob = client("bob")
    with pytest.raises(RepositoryNotFoundError):
        bob.repo_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).repo_info(REPO)
    alice.update_repo_settings(REPO, private=False)
    assert bob.repo_info(REPO).private is False
    with refused(403):
        commit(bob, {"a.txt": b"a"})
    with refused(403):
        bob.create_repo("alice/bobs")
    alice.auth_check(REPO, write=True)
    with refused(403):
        bob.auth_check(REPO, write=True)


def test_a_read_token_reads_and_does_not_write(hub: Hub, alice: HfApi):
    """403 for every kind of writing; `whoami` names the role."""
    assert alice.whoami()["auth"]["accessToken"]["role"] == "write"
    hub.read_only.add("alice")
    assert alice.whoami()["auth"]["accessToken"]["role"] == "read"
    assert alice.repo_info(REPO).id == REPO
    writing: list[Callable[[], Any]] = [
        lambda: commit(alice, {"a.txt": b"a"}),
        lambda: alice.create_repo("alice/new"),
        lambda: alice.delete_repo(REPO),
        lambda: alice.create_branch(REPO, branch="b"),
        lambda: alice.super_squash_history(REPO),
    ]
    for write in writing:
        with refused(403):
            write()


def test_members_of_an_organisation_share_its_repositories(
    hub: Hub, client: Callable[[str], HfApi]
):
    """They see, make and write them; others do not."""
    hub.organisations["lab"] = {"alice", "bob"}
    assert [organisation["name"] for organisation in client("bob").whoami()["orgs"]] == ["lab"]
    client("alice").create_repo("lab/run", private=True)
    commit(client("bob"), {"a.txt": b"a"}, repo="lab/run")
    with pytest.raises(RepositoryNotFoundError):
        client("carol").repo_info("lab/run")


def test_a_fine_grained_token_may_do_what_it_says(hub: Hub, alice: HfApi):
    """Permissions are of a namespace or of one repository."""
    hub.fine_grained["alice"] = {
        "alice": ["repo.content.read"],
        REPO: ["repo.content.read", "repo.write"],
    }
    token = alice.whoami()["auth"]["accessToken"]
    assert token["role"] == "fineGrained"
    assert token["fineGrained"]["scoped"][0]["entity"]["name"] == "alice"
    commit(alice, {"a.txt": b"a"})
    with refused(403):
        alice.create_repo("alice/new")


def test_the_files_of_a_gated_repository_need_to_be_granted(
    hub: Hub, client: Callable[[str], HfApi], tmp_path: Path
):
    """It can be seen, but its files cannot be read; the client knows why."""
    hub.create_repo("corp/model", private=False, gated=True, files={"config.json": b"{}"})
    bob = client("bob")
    assert bob.repo_info("corp/model").gated == "auto"
    with pytest.raises(GatedRepoError):
        bob.auth_check("corp/model")
    with pytest.raises(GatedRepoError):
        bob.hf_hub_download("corp/model", "config.json", cache_dir=tmp_path)
    hub.granted["corp/model"] = {"bob"}
    bob.auth_check("corp/model")
    assert (
        Path(bob.hf_hub_download("corp/model", "config.json", cache_dir=tmp_path)).read_bytes()
        == b"{}"
    )


def test_a_wrong_token_is_nobody(hub: Hub, alice: HfApi):
    """401, also where no token is needed."""
    for token in ("wrong", "hf_"):
        with refused(401):
            HfApi(endpoint=hub.url, token=token).whoami()
    hub.users = {"alice": "hf_secret"}
    with refused(401):
        alice.whoami()
    assert (
        HfApi(endpoint=hub.url, token=hub.environ("alice")["HF_TOKEN"]).whoami()["name"] == "alice"
    )


# Faults.


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": True}], ids=["status", "cut"])
def test_an_answer_can_be_lost_after_the_commit_has_landed(
    hub: Hub, alice: HfApi, fault: dict[str, object]
):
    """The client gets an error, the commit is there; and with a fault before the work it is not."""
    hub.faults.add(r"POST .*/commit/", when="after", **fault)
    with pytest.raises(LOST):
        commit(alice, {"a.txt": b"a"}, message="Landed")
    hub.faults.add(r"POST .*/commit/", when="before", **fault)
    with pytest.raises(LOST):
        commit(alice, {"b.txt": b"b"}, message="Lost")
    assert titles(alice) == ["Landed", "initial commit"]


def test_too_many_requests_say_when_to_come_back(hub: Hub, alice: HfApi):
    """429 with Retry-After, as often as asked for, after as many as asked for."""
    fault = hub.faults.add("GET .*/refs$", status=429, retry_after=7, times=2, skip=1)
    alice.list_repo_refs(REPO)
    for _ in range(2):
        answer = raw(hub.url, f"/api/models/{REPO}/refs")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    assert raw(hub.url, f"/api/models/{REPO}/refs").status == 200
    assert fault.hits == 2


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Message
    body: bytes


def raw(url: str, path: str, body: bytes | None = None, method: str = "", **headers: str) -> Answer:
    """The answer to a plain request as alice, whatever its status."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"))) as connection:
        connection.request(
            method or ("GET" if body is None else "POST"),
            path,
            body,
            {"Authorization": "Bearer hf_alice"} | headers,
        )
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def test_a_stall_lasts_until_it_is_lifted(hub: Hub, alice: HfApi):
    """A commit that hangs has not happened yet; it happens afterwards."""
    hub.faults.add(r"POST .*/commit/", stall=600)
    thread = threading.Thread(target=lambda: commit(alice, {"a.txt": b"a"}, message="Late"))
    thread.start()
    hub.wait_for("/commit/")
    assert titles(alice) == ["initial commit"]
    hub.faults.clear()
    thread.join()
    assert titles(alice)[0] == "Late"


def test_a_stale_read_shows_the_state_before(hub: Hub, alice: HfApi):
    """Reads of a branch answer with its commit before the last; reads by commit are never stale."""
    before = alice.repo_info(REPO).sha
    after = commit(alice, {"a.txt": b"a"})
    hub.faults.add("GET|HEAD", stale=True, times=None)
    assert alice.repo_info(REPO).sha == before
    assert [branch.target_commit for branch in alice.list_repo_refs(REPO).branches] == [before]
    assert "a.txt" not in alice.list_repo_files(REPO)
    assert "a.txt" in alice.list_repo_files(REPO, revision=after)
    hub.faults.clear()
    assert alice.repo_info(REPO).sha == after
    alice.super_squash_history(REPO)
    hub.faults.add("GET", stale=True)
    assert alice.repo_info(REPO).sha == after


def test_answers_are_ranged_cut_and_truncated(hub: Hub, alice: HfApi):
    """A range is a range; a truncated body is a well-formed answer that is too short."""
    hub.write(REPO, {"a.bin": BIG, "b.txt": b"0123456789"})
    for path, whole in (("a.bin", BIG), ("b.txt", b"0123456789")):
        answer = raw(hub.url, f"/{REPO}/resolve/main/{path}", Range="bytes=3-6")
        assert (answer.status, answer.body) == (206, whole[3:7])
    hub.faults.add("GET .*b.txt", truncate=4)
    assert raw(hub.url, f"/{REPO}/resolve/main/b.txt").body == b"0123"


def test_after_an_outage_everything_is_there(hub: Hub, alice: HfApi, tmp_path: Path):
    """The server comes back at the same address; another one in the same folder knows it all, even
    if the first was killed."""
    commit(alice, {"a.safetensors": BIG})
    hub.stop()
    with pytest.raises(ConnectionRefusedError):
        raw(hub.url, "/api/whoami-v2")
    hub.start()
    assert raw(hub.url, "/api/whoami-v2").status == 200
    (hub.folder(REPO, "model") / "refs/heads/main.lock").touch()
    with Hub(tmp_path / "hub") as again:
        assert again.read(REPO, "a.safetensors") == BIG
        again.write(REPO, {"b.txt": b"b"})


def test_everything_received_is_recorded(hub: Hub, alice: HfApi):
    """Method, path, headers, body and status of every request, in their order."""
    hub.requests.clear()
    commit(alice, {"a.txt": b"hello"}, message="Recorded")
    assert [(r.method, r.path, r.status) for r in hub.requests] == [
        ("POST", f"/api/models/{REPO}/preupload/main", 200),
        ("POST", f"/api/models/{REPO}/commit/main", 200),
    ]
    assert b"Recorded" in hub.requests[-1].body
    assert hub.requests[-1].headers["authorization"] == "Bearer hf_alice"


# For people, and with the libraries that people use.


def test_both_servers_run_for_people(tmp_path: Path):
    """The command prints what to paste; faults and requests are there over HTTP."""
    command = [sys.executable, "-m", "loopback", str(tmp_path / "state")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")
            exports = [
                next(line for line in lines if line.startswith(f"export {name}=")).strip()
                for name in PASTED
            ]
            url = exports[0].partition("=")[2]
            assert (
                raw(url, "/_faults", json.dumps({"match": "whoami", "status": 418}).encode()).status
                == 200
            )
            assert raw(url, "/api/whoami-v2").status == 418
            [request] = json.loads(raw(url, "/_requests").body)
            assert request == {"method": "GET", "path": "/api/whoami-v2", "status": 418, "size": 0}
        finally:
            process.terminate()


LOADS = """
import sys
from pathlib import Path

import datasets, huggingface_hub, torch, transformers
from PIL import Image

from xrun.component import load_build
from xrun.errors import ComponentError

root, work = map(Path, sys.argv[1:])
build = lambda kind, component, **args: load_build(kind, component, root)(**args)

config = transformers.ViTConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
    patch_size=4, num_labels=2
)
sent = transformers.ViTForImageClassification(config)
sent.push_to_hub("alice/tiny", private=True)
model = build("models", "hub", name="alice/tiny", auto_class="AutoModelForImageClassification")
own = model.state_dict()
assert all(torch.equal(value, own[name]) for name, value in sent.state_dict().items())

pictures = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(10)]
columns = {"image": pictures, "label": [i % 2 for i in range(10)]}
label = datasets.ClassLabel(names=["even", "odd"])
features = datasets.Features({"image": datasets.Image(), "label": label})
table = datasets.Dataset.from_dict(columns, features=features)
table.push_to_hub("alice/parquet", private=True, num_shards=2)
for i, picture in enumerate(pictures):
    folder = work / "folder" / "train" / ("even", "odd")[i % 2]
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{i}.png")
api = huggingface_hub.HfApi()
api.create_repo("alice/folder", repo_type="dataset", private=True)
sent = api.upload_folder(repo_id="alice/folder", repo_type="dataset", folder_path=work / "folder")
revision = sent.oid

parquet, folder = {"name": "alice/parquet"}, {"name": "alice/folder", "revision": revision}
for args in (parquet, {**parquet, "streaming": True}, folder):
    args |= dict(val_split=None, image_size=8, augment=False)
    train = build("datasets", "hub_images", **args)["train"]
    shards = range(train.num_shards if args.get("streaming") else 0)
    streamed = [train.transform(raw) for i in shards for raw in train.shard(i)]
    items = streamed or [train[i] for i in range(len(train))]
    reds = sorted((round((pixels[0, 0, 0].item() + 1) / 2 * 255), label) for pixels, label in items)
    assert reds == [(20 * i, i % 2) for i in range(10)], (args, reds)

for name in ("alice/nothing", "corp/secret", "corp/gated"):
    try:
        build("models", "hub", name=name)
    except ComponentError as error:
        assert f"{name} cannot be loaded" in str(error), error
    else:
        raise AssertionError(f"{name} was loaded")
"""


def test_the_hub_components_load_from_it(hub: Hub, tmp_path: Path):
    """transformers and datasets push and load: a model, a parquet dataset (held and streamed), a
    folder of images.

    What is not there, not to be seen or not granted is a mistake in the recipe, not a network to
    wait for.
    """
    hub.create_repo("corp/secret", files={"config.json": b"{}"})
    hub.create_repo("corp/gated", private=False, gated=True, files={"config.json": b"{}"})
    environment = (
        os.environ
        | hub.environ("alice")
        | {
            "HF_HOME": str(tmp_path / "hf"),
            "OMP_NUM_THREADS": "1",
        }
    )
    command = [sys.executable, "-c", LOADS, str(ROOT), str(tmp_path)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert hub.stored_bytes("alice/tiny") == len(hub.read("alice/tiny", "model.safetensors"))
