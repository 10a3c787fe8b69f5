"""Notices of three clouds from a metadata server on loopback, and of one from a file.

Covers `xrun.machine.metadata` and `loopback.metadata`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loopback.metadata import Metadata
from support.running import PER_STEP, STEPS, Project, curve, record, steps_of, until
from xrun import environment
from xrun.errors import AttemptEnd
from xrun.machine.notice import watching
from xrun.machine.stop import SPARE_SECONDS, StopFlag
from xrun.run.record import AttemptRecord, RunRecord
from xrun.run.stores import open_store

CLOUDS = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
"""Seconds between the notice and the end, as each cloud gives them."""


@pytest.fixture(params=CLOUDS)
def server(request: pytest.FixtureRequest) -> Iterator[Metadata]:
    """Each cloud's."""
    with Metadata(request.param) as one:
        yield one


def environ(server: Metadata) -> dict[str, str]:
    return {environment.METADATA_ADDRESS.name: server.url}


def test_a_notice_sets_the_flag_with_its_deadline(server: Metadata) -> None:
    """Until the notice nothing happens; then the flag is set, with what the cloud leaves, less what
    the attempt's end needs."""
    stop, seconds = StopFlag(), CLOUDS[server.cloud]
    with watching(stop, server.cloud, environ(server), interval=0.01):
        until(lambda: server.times > 5, "a few questions")
        assert not stop
        server.preempt(seconds)
        until(lambda: stop, "the notice")
    assert stop.reason
    assert seconds - SPARE_SECONDS - 3 < stop.seconds_left() <= seconds - SPARE_SECONDS


def test_the_servers_clock_counts(tmp_path: Path) -> None:
    """A machine whose clock is wrong by an hour has the same deadline: the notice is measured by
    who gave it."""
    for cloud in ("aws", "azure"):
        stop = StopFlag()
        with (
            Metadata(cloud, ahead=3600.0) as server,
            watching(stop, cloud, environ(server), interval=0.01),
        ):
            server.preempt(60)
            until(stop.__bool__, "the notice")
        assert 60 - SPARE_SECONDS - 3 < stop.seconds_left() <= 60 - SPARE_SECONDS


def test_errors_are_waited_out(server: Metadata) -> None:
    """A server that fails is asked again, less and less often, and its notice is heard once it
    answers."""
    stop = StopFlag()
    server.broken = True
    with watching(stop, server.cloud, environ(server), interval=0.01):
        until(lambda: server.times > 2, "a few questions")
        assert not stop
        server.broken = False
        server.preempt(30)
        until(lambda: stop, "the notice")


def test_an_aws_token_is_renewed() -> None:
    """When the token has expired a new one is asked for, and no sooner."""
    stop = StopFlag()
    with Metadata("aws") as server, watching(stop, "aws", environ(server), interval=0.01):
        until(lambda: server.times > 4, "a few questions")
        server.expire()
        server.preempt(120)
        until(lambda: stop, "the notice")
        assert server.requests.count("PUT /latest/api/token") == 2


def test_another_machines_event_is_not_ours() -> None:
    """On Azure a set of machines sees the events of all of them."""
    stop = StopFlag()
    with Metadata("azure") as server, watching(stop, "azure", environ(server), interval=0.01):
        server.others.append("vm-8")
        until(lambda: server.times > 5, "a few questions")
        assert not stop
        server.preempt(30)
        until(lambda: stop, "the notice")


def test_proxies_are_for_the_world_outside(
    server: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment is not asked for an address of this machine's own link."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    stop = StopFlag()
    with watching(stop, server.cloud, environ(server), interval=0.01):
        server.preempt(30)
        until(lambda: stop, "the notice", 10)


def test_nobody_is_asked_where_there_are_no_notices() -> None:
    """A machine of one's own, or of a cloud without notices, has no thread for them; an absent
    server holds nobody up."""
    before = threading.active_count()
    for cloud in ("", "slurm", "lambda"):
        with watching(StopFlag(), cloud, {}):
            assert threading.active_count() == before
    began = time.monotonic()
    with watching(StopFlag(), "gcp", {environment.METADATA_ADDRESS.name: "http://127.0.0.1:9"}):
        pass
    assert time.monotonic() - began < 1


def test_it_is_said_at_the_start_whether_there_will_be_a_notice(server: Metadata) -> None:
    """Once, when the machine's server has answered; while it does not, that is said."""
    said: list[str] = []
    with watching(StopFlag(), server.cloud, environ(server), interval=0.01, say=said.append):
        until(lambda: server.times > 5, "a few questions")
    assert len(said) == 1, said
    assert said[0].startswith("Notice: ")
    assert "before it takes it" in said[0]
    server.broken, said[:] = True, []
    with watching(StopFlag(), server.cloud, environ(server), interval=0.01, say=said.append):
        asked = server.times
        until(lambda: server.times > asked + 2, "a few questions")
        server.broken = False
        until(lambda: len(said) == 2, "an answer")
    assert "does not answer on this machine" in said[0]
    assert "before it takes it" in said[1]


@pytest.mark.parametrize(
    ("cloud", "word"),
    [
        ("nebius", "SIGTERM 60 s"),
        *((cloud, f"{cloud} documents no notice") for cloud in ("oci", "runpod", "vast")),
        ("kubernetes", "first node"),
        ("slurm", ""),
    ],
)
def test_clouds_that_nobody_asks_are_told_as_such(cloud: str, word: str) -> None:
    """And machines of one's own say nothing."""
    said: list[str] = []
    with watching(StopFlag(), cloud, {}, say=said.append):
        pass
    assert [word in line for line in said] == ([True] if word else [])


@pytest.mark.parametrize("zone", ["Z", ""], ids=["with a zone", "without"])
def test_a_notice_in_a_file(tmp_path: Path, zone: str) -> None:
    """Mithril writes one when it takes the machine, or moves it, and says when."""
    path, stop, said = tmp_path / "MITHRIL_SIGNAL.yml", StopFlag(), list[str]()
    given = {environment.NOTICE_FILE.name: str(path)}
    with watching(stop, "mithril", given, interval=0.01, say=said.append):
        until(lambda: said, "the first look")
        path.write_text("instance_status: STATUS_RUNNING\n")
        end = f"{datetime.now(UTC) + timedelta(seconds=300):%Y-%m-%dT%H:%M:%S}{zone}"
        text = f'instance_status: "STATUS_PREEMPTING"\nbid_status: Allocated\nend_time: {end}\n'
        new = path.with_suffix(".new")
        new.write_text(text)
        assert not stop
        new.rename(path)
        until(stop.__bool__, "the notice")
    assert stop.reason == f"Mithril is preempting this instance, {end}"
    assert 300 - SPARE_SECONDS - 60 < stop.seconds_left() <= 300 - SPARE_SECONDS
    assert said == ["Notice: Mithril tells this machine five minutes before it takes it."]


def test_a_machine_that_has_no_place_for_the_file_will_hear_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    given = {environment.NOTICE_FILE.name: str(tmp_path / "none" / "MITHRIL_SIGNAL.yml")}
    with watching(StopFlag(), "mithril", given, interval=0.01, say=said.append):
        until(lambda: said, "the first look")
    assert "does not answer on this machine" in said[0]


def test_a_notice_ends_an_attempt_in_time(
    server: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of training: the step at hand is saved and committed, exit 75 well within 30 s,
    and the reason is kept.

    The last save before took so long that this one has to begin at once, and may still be tried
    some seconds later.
    """
    seconds = CLOUDS[server.cloud]
    info = {
        "cluster": "c",
        "cloud": {"aws": "AWS", "gcp": "GCP", "azure": "Azure"}[server.cloud],
        "region": "r",
        "zone": "z",
    }
    monkeypatch.setenv("SKYPILOT_CLUSTER_INFO", json.dumps(info))
    monkeypatch.setenv(environment.METADATA_ADDRESS.name, server.url)
    project = Project(tmp_path)
    plan = project.plan()
    before = AttemptRecord(
        id="before",
        started=1.0,
        ended=2.0,
        code=75,
        end=AttemptEnd.STOPPED,
        from_step=0,
        last_save=0.8 * seconds,
    )
    record_before = RunRecord(digest=plan.digest, rule=plan.rule, attempts=(before,))
    open_store(plan, "before").commit(record_before.to_json(), None)
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)
    began: list[float] = []

    def give() -> None:
        until((tmp_path / "held").exists, "the hold")
        began.append(time.monotonic())
        server.preempt(seconds)

    thread = threading.Thread(target=give)
    thread.start()
    done = project.attempt()
    took = time.monotonic() - began[0]
    thread.join()
    assert done.code == 75, done.err
    assert took < 30
    assert max(steps_of(project.run)) == max(curve(project.run)) == 8
    last = record(project.run)["attempts"][-1]
    assert (last["code"], last["kind"], last["committed"]) == (75, "stopped", 8)
    assert 0 < last["last_save"] < took, "how long it took is for the next attempt"
    assert last["reason"].startswith(
        {"aws": "AWS will terminate", "gcp": "Google Cloud", "azure": "Azure"}[server.cloud]
    )
    assert f"{last['reason']}: saving, then stopping." in done.err
    print(f"{server.cloud}: notice to exit 75 in {took:.2f} s")


def test_training_goes_on_while_there_is_time(tmp_path: Path) -> None:
    """A notice that leaves more than a last save needs, as measured: the training uses it, here to
    its end."""
    project, stop = Project(tmp_path), StopFlag()
    project.trap("hold", call=7 * PER_STEP + 1, committed=5)

    def give() -> None:
        until((tmp_path / "held").exists, "the hold")
        stop.set("the cloud's notice", 100)

    thread = threading.Thread(target=give)
    thread.start()
    done = project.attempt(stop=stop)
    thread.join()
    assert done.code == 0, done.err
    assert max(curve(project.run)) == STEPS
    assert "the cloud's notice: saving, then stopping." in done.err
