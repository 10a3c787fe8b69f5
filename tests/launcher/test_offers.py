"""Offers are ranked by what the whole run costs, and priced from SkyPilot's real catalogs, never
without day and source.

Covers `xrun.cli.offers`, `xrun.launcher.sky.catalogs` and `xrun.launcher.sky.offers`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from loopback.hub import Hub
from support.hub_store import HUB_WARNINGS
from support.named_repositories import fill
from support.paths import ROOT
from support.running import Done
from support.sky_home import CLOUDS, SkyHome
from xrun.cli.offers import offers_json, offers_text
from xrun.launcher.offers import Offer, rank
from xrun.launcher.quote import Quote, Range
from xrun.launcher.throughput import Machines, Speed, Throughput
from xrun.recipe.accelerators import Accelerators
from xrun.recipe.schema import Candidate
from xrun.run.prices import Price


def eight(name: str, nodes: int = 1) -> Machines:
    """Nodes of eight."""
    return Machines(Accelerators(name, 8), nodes)


A100, H100 = eight("A100"), eight("H100")
DAY = 1_790_000_000


def offer(
    machines: Machines,
    hourly: float,
    *,
    throughput: Throughput | None = None,
    candidate: int = 0,
    spot: bool = True,
) -> Offer:
    """An offer of one zone, twice as dear on demand."""
    kind = str(machines.accelerators)
    prices = tuple(
        Price(
            cloud="aws",
            usd_per_hour=price,
            region="us-east-1",
            instance=kind,
            accelerators=machines.accelerators,
            spot=spot_price,
            date="2026-11-21",
            source="a catalog",
        )
        for spot_price, price in ((True, hourly), (False, 2 * hourly))
    )
    known = throughput or Throughput()
    return Offer(
        candidate,
        "aws",
        "us-east-1",
        kind,
        machines,
        prices,
        spot,
        known.on(machines),
        _quote(known, machines, hourly if spot else 2 * hourly),
    )


def _quote(known: Throughput, machines: Machines, hourly: float) -> Quote | None:
    """Steps over speed, and nothing besides."""
    speed = known.on(machines)
    if speed is None or known.steps_left is None:
        return None
    hours = known.steps_left / speed.steps_per_second / 3600
    taken = Range(hours, hours, hours)
    return Quote(taken, taken.times(hourly), Range(0, 0, 0))


def measured(steps: int = 36_000, **speeds: float) -> Throughput:
    return Throughput(
        steps,
        {eight(name): Speed(speed, "measured", measured=True) for name, speed in speeds.items()},
    )


CANDIDATES = [
    Candidate(accelerators="A100:8"),
    Candidate(accelerators="H100:8"),
    Candidate(accelerators="H100:8", nodes=2),
]


def test_a_machine_twice_as_dear_and_three_times_as_fast_comes_first() -> None:
    speeds = measured(A100=1.0, H100=3.0)
    offers = rank(
        [offer(A100, 10, throughput=speeds), offer(H100, 20, throughput=speeds, candidate=1)],
        CANDIDATES,
    )
    assert offers.best.machines == H100
    assert offers.best.hours == pytest.approx(36_000 / 3 / 3600)
    assert offers.best.usd == pytest.approx(20 * 36_000 / 3 / 3600)
    assert offers.ordered  # SkyPilot would take the cheaper hour
    assert "measured" in offers.order


def test_what_was_measured_elsewhere_is_an_estimate_and_called_one() -> None:
    speeds = measured(A100=1.0)
    offers = rank(
        [offer(A100, 10, throughput=speeds), offer(H100, 20, throughput=speeds, candidate=1)],
        CANDIDATES,
    )
    assert offers.best.machines == H100
    assert offers.best.hours == pytest.approx(10 * 312 / 989)
    assert "data sheets" in offers.order
    lines = offers_text(offers).splitlines()
    assert "est." in lines[1]
    assert "est." not in lines[2]


def test_one_kind_of_machine_is_left_to_skypilots_own_order() -> None:
    """The cheapest hour is the cheapest run then, and stays so when prices change."""
    offers = rank([offer(H100, 20, candidate=1), offer(H100, 15, candidate=1)], CANDIDATES)
    assert not offers.ordered
    assert offers.best.hourly == 15


def test_prices_travel_with_what_the_same_costs_on_demand() -> None:
    """Only those that may be launched; an on-demand one is its own."""
    spot, dear = rank([offer(H100, 20), offer(H100, 15, spot=False)], CANDIDATES).prices
    assert (spot.usd_per_hour, spot.on_demand_usd_per_hour) == (20, 40)
    assert (dear.spot, dear.usd_per_hour, dear.on_demand_usd_per_hour) == (False, 30, 30)
    assert Price.from_json(spot.to_json()) == spot


def test_unknown_accelerators_are_compared_by_the_hour() -> None:
    unknown = eight("TPU-X")
    offers = rank([offer(H100, 20, candidate=1), offer(unknown, 19)], CANDIDATES)
    assert offers.best.machines == unknown
    assert not offers.ordered
    assert offers.order == "The cheapest hour first."


def test_spot_comes_before_on_demand_at_the_same_price() -> None:
    same = Price(
        cloud="aws", usd_per_hour=20, accelerators=H100.accelerators, spot=False, region="r"
    )
    dear = Offer(1, "aws", "r", "i", H100, (same, Price(**{**vars(same), "spot": True})), False)
    spot = Offer(**{**vars(dear), "use_spot": True})
    assert [each.use_spot for each in rank([dear, spot], CANDIDATES).offers] == [True, False]


def test_a_job_has_one_number_of_nodes() -> None:
    """The best offer's; what is left out is said."""
    two = eight("H100", 2)
    offers = rank([offer(H100, 20, candidate=1), offer(two, 50, candidate=2)], CANDIDATES)
    assert [each.machines for each in offers.offers] == [H100]
    assert "2 x H100:8" in offers.notes[0]


def test_no_price_without_its_day_and_its_source() -> None:
    offers = rank([offer(H100, 20, candidate=1)], CANDIDATES)
    assert "a catalog of 2026-11-21" in offers_text(offers)
    assert {(each["date"], each["source"]) for each in offers_json(offers)["offers"]} == {
        ("2026-11-21", "a catalog")
    }


def test_the_table_is_short_and_the_json_whole() -> None:
    offers = rank(
        [
            Offer(**{**vars(offer(H100, price, candidate=1)), "region": f"r{price}"})
            for price in range(1, 31)
        ],
        CANDIDATES,
    )
    assert "and 18 dearer places" in offers_text(offers)
    assert len(offers_json(offers)["offers"]) == 30


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    """A person with three clouds, whose catalogs are of one known day."""
    home = SkyHome(tmp_path_factory.mktemp("sky"))
    home.enable(*CLOUDS)
    for path in (home.folder / ".sky" / "catalogs").rglob("*.csv"):
        os.utime(path, (DAY, DAY))
    return home


@pytest.fixture(scope="module")
def planned(home: SkyHome) -> Done:
    """`xrun plan recipes/vit_a100.yaml --json`."""
    return home.xrun("plan", str(ROOT / "recipes" / "vit_a100.yaml"), "--json", "--no-measure")


@pytest.mark.cloud
def test_three_clouds_are_compared_and_the_cheapest_is_chosen(planned: Done) -> None:
    assert planned.code == 0, planned.err
    told = json.loads(planned.out)
    chosen = told["chosen"]
    assert (chosen["cloud"], chosen["instance"], chosen["use_spot"]) == (
        "aws",
        "p4d.24xlarge",
        True,
    )
    assert chosen["usd_per_hour"] == 2.4655  # as published
    assert chosen["saving"] == pytest.approx(1 - 2.4655 / 21.957642, abs=1e-4)
    assert {each["cloud"] for each in told["offers"]} == {"aws", "nebius"}
    assert {each["accelerators"] for each in told["offers"]} == {"A100:8", "A100-80GB:8", "H100:8"}
    assert {each["date"] for each in told["offers"]} == {"2026-09-21"}
    assert told["plan"]["run"] == told["run"]


@pytest.mark.cloud
def test_a_sweep_is_priced_before_anything_is_trained(home: SkyHome, tmp_path: Path) -> None:
    """Beside the table of its trials; what nobody has measured is said with what does."""
    swept = ("-s", "sweep={parameters: {train.optimizer.lr: [1e-3, 3e-3]}}")
    done = home.xrun("check", str(ROOT / "recipes" / "vit_a100.yaml"), *swept)
    assert done.code == 0, done.err
    *_, first, second, dollars = done.out.splitlines()
    assert [first.split()[:2], second.split()[:2]] == [["1", "0.001"], ["2", "0.003"]]
    assert "Each on A100:8 on aws/us-east-1, spot, $2.47 an hour; " in dollars
    assert "`xrun plan RECIPE --trial 1` measures how long one takes." in dollars


@pytest.mark.cloud
def test_the_table_says_the_same(home: SkyHome, planned: Done, tmp_path: Path) -> None:
    """And planning leaves nothing behind."""
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "vit_a100.yaml"
    recipe.write_bytes((ROOT / "recipes" / "vit_a100.yaml").read_bytes())
    done = home.xrun("plan", str(recipe), "--no-measure")
    assert done.code == 0, done.err
    header, first, *_ = done.out.splitlines()
    assert header.split()[:5] == ["CLOUD", "REGION", "INSTANCE", "ACCELERATORS", "NODES"]
    assert first.split()[:8] == [
        ">",
        "aws",
        "us-east-1",
        "p4d.24xlarge",
        "A100:8",
        "1",
        "2.47",
        "21.96",
    ]
    assert "SkyPilot's catalog nebius/vms.csv of 2026-09-21" in done.out
    assert list(tmp_path.iterdir()) == [tmp_path / "recipes"]


COMPARED = """
import json
import sky
from xrun.launcher.offers import rank
from xrun.recipe.schema import Candidate
from xrun.launcher.sky.offers import _ask, _offers
from xrun.launcher.sky.client import enabled_clouds, skypilot

WISHES = [
    {"accelerators": "A100:8", "spot": True},
    {"accelerators": "H100:8", "spot": False},
    {"accelerators": "H100", "spot": "auto"},
    {"accelerators": "H100:8", "spot": True, "clouds": ["aws"], "regions": ["us-west-2"]},
]

def ours(candidate):
    return rank(_offers(0, candidate, _ask(candidate, enabled_clouds())), [candidate]).offers

def theirs(candidate, offers):
    kinds = [True, False] if candidate.spot == "auto" else [candidate.spot]
    places = {"/".join([offer.cloud, *(candidate.regions or ())]) for offer in offers}
    with sky.Dag() as dag:
        wanted = [(place, kind) for place in places for kind in kinds]
        sky.Task(run="true").set_resources(
            {
                sky.Resources(infra=place, accelerators=str(candidate.accelerators), use_spot=kind)
                for place, kind in wanted
            }
        )
    return sky.Optimizer.optimize(dag, quiet=True).tasks[0].best_resources

answers = []
with skypilot():
    for wish in WISHES:
        offers = ours(Candidate(**wish))
        mine, best = offers[0], theirs(Candidate(**wish), offers)
        infra = f"{best.cloud}/{best.region}".lower()
        answers.append([
            [mine.infra, mine.instance, mine.use_spot, round(mine.hourly, 3)],
            [infra, best.instance_type, best.use_spot, round(best.get_cost(3600), 3)],
        ])
print(json.dumps(answers))
"""


@pytest.mark.cloud
def test_the_cheapest_hour_is_the_one_that_skypilots_optimizer_takes(home: SkyHome) -> None:
    done = home.python(COMPARED)
    assert done.code == 0, done.err
    answers = json.loads(done.out)
    assert len(answers) == 4
    for ours, theirs in answers:
        assert ours == theirs


RECIPE = """
name: small
model: {{name: mlp, args: {{inputs: 64, hidden: 16, depth: 1, classes: 10}}}}
dataset: {{name: digits}}
task: classification
hardware: {{any_of: [{candidate}]}}
train: {{steps: 20, global_batch: 64, micro_batch: 4}}
checkpoint: {{store: hub}}
"""


def plan_of(home: SkyHome, folder: Path, candidate: str, *more: str) -> Done:
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / "small.yaml").write_text(RECIPE.format(candidate=candidate))
    return home.xrun("plan", "recipes/small.yaml", "--json", "--no-measure", *more, cwd=folder)


@pytest.mark.cloud
def test_a_cloud_that_cannot_run_managed_jobs_is_left_out_and_named(
    home: SkyHome, tmp_path: Path
) -> None:
    """Verda has the cheapest H100, and SkyPilot cannot stop a machine there by itself: a job there
    would fail."""
    told = json.loads(plan_of(home, tmp_path, '{accelerators: "H100:1"}').out)
    assert {each["cloud"] for each in told["offers"]} == {"nebius"}
    assert told["ordered"]  # SkyPilot must not look elsewhere
    assert "verda" in told["notes"][0]


@pytest.mark.cloud
def test_the_highest_price_is_for_all_nodes_together(home: SkyHome, tmp_path: Path) -> None:
    """Two nodes for at most 21 dollars: those of 10 and 10.24, but not of 11.25."""
    told = json.loads(
        plan_of(home, tmp_path, '{accelerators: "H100:8", nodes: 2, max_hourly_cost: 21}').out
    )
    assert [(each["cloud"], each["region"], each["usd_per_hour"]) for each in told["offers"]] == [
        ("nebius", "eu-north1", 20.0),
        ("aws", "us-east-1", 20.4794),
    ]


@pytest.mark.cloud
def test_what_nobody_offers_is_said(home: SkyHome, tmp_path: Path) -> None:
    done = plan_of(
        home, tmp_path, '{accelerators: "A100:8", max_hourly_cost: 1, clouds: [aws, gcp]}'
    )
    assert done.code == 3
    assert "(aws, nebius, verda) do not offer A100:8 for at most $1 an hour" in done.err
    assert "--local" in done.err


@pytest.mark.cloud
def test_clouds_that_are_not_enabled_are_priced_beside(home: SkyHome, tmp_path: Path) -> None:
    """The lists of AWS and Verda lie here as well; nobody has enabled these."""
    own = SkyHome(tmp_path / "home")
    own.enable("nebius")
    told = json.loads(plan_of(own, tmp_path, '{accelerators: "H100:8"}').out)
    assert {each["cloud"] for each in told["offers"]} == {"nebius"}
    assert "nebius" not in {each["cloud"] for each in told["elsewhere"]}
    best = next(each for each in told["elsewhere"] if each["cloud"] == "aws")
    assert (best["instance"], best["use_spot"], best["enabled"]) == ("p5.48xlarge", True, False)
    assert best["usd_per_hour"] == pytest.approx(10.24, abs=0.01)
    assert best["source"] == "SkyPilot's catalog aws/vms.csv"


@pytest.mark.soak
@HUB_WARNINGS[0]
@HUB_WARNINGS[1]
def test_every_recipe_for_clouds_has_a_quote(tmp_path: Path) -> None:
    """Before any cloud is enabled, with a Hub that has what they name: hours and dollars to the
    end, whether it fits, and each place once."""
    home = SkyHome(tmp_path / "home")
    with Hub(tmp_path / "hub") as hub:
        fill(hub, tmp_path / "named")
        home.environment |= hub.environ("me")
        for name in ("gpt_h100", "vit_a100", "llama_chat_a100"):
            recipe = str(ROOT / "recipes" / f"{name}.yaml")
            done = home.xrun("plan", recipe)
            assert done.code == 0, done.err
            assert re.search(r"To the end: [\d.]+ \([\d.]+ to [\d.]+\) hours, \$", done.out), name
            assert "It fits: " in done.out
            table = done.out[done.out.index("  CLOUD") : done.out.index("Prices:")].splitlines()
            places = [line.split()[:4] for line in table]
            assert len(places) == len({tuple(each) for each in places}) >= 4
            told = json.loads(home.xrun("plan", recipe, "--json").out)
            dollars = [each["usd"] for each in told["elsewhere"]]
            assert dollars[0] == min(dollars), "the cheapest run comes first"


@pytest.mark.cloud
def test_without_any_cloud_price_lists_and_the_way_out_are_said(tmp_path: Path) -> None:
    """Nobody needs an account to be told a price; a task for SkyPilot there is none."""
    home = SkyHome(tmp_path / "home", "allowed_clouds: [nebius]")
    done = plan_of(home, tmp_path, '{accelerators: "H100:8"}')
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["chosen"] is None
    assert told["offers"] == []
    assert {each["cloud"] for each in told["elsewhere"]} >= {"aws", "nebius"}
    assert told["notes"][0].startswith("No cloud is enabled in SkyPilot. Run `sky check`")
    refused = plan_of(home, tmp_path, '{accelerators: "H100:8"}', "--sky")
    assert refused.code == 3
    assert refused.err.startswith("xrun: No cloud is enabled in SkyPilot. Run `sky check`")
    assert len(refused.err.splitlines()) == 1, "nothing of what SkyPilot says to itself"
    assert "--local" in refused.err
    shutil.rmtree(home.folder / ".sky" / "catalogs")
    home.environment["https_proxy"] = "http://127.0.0.1:9"  # where nobody is
    lost = plan_of(home, tmp_path, '{accelerators: "H100:8"}', "--measure")
    assert (lost.code, len(lost.err.splitlines())) == (3, 1), lost.err
    assert f"{home.folder}/.sky/catalogs/v8 has none. Nothing was measured." in lost.err


FITTING = """
import json
from xrun.errors import LaunchError
from xrun.launcher.sky.offers import find_offers
from xrun.launcher.throughput import Throughput
from xrun.recipe.load import load_recipe
from xrun.run.cost import Cost, Trial
from xrun.run.plan import make_plan
from pathlib import Path

path = Path("recipes/small.yaml")
plan = make_plan(load_recipe(path), path)


def offers(gib, **how):
    size = gib << 30
    trial = Trial(4, size, size, 1e12, 10)
    cost = Cost(10**6, 10**6, 0, 0, 0, 0, 10**9, 0, 2, (trial,))
    known = Throughput(20_000, {}, cost, plan.load_recipe().train)
    try:
        found = find_offers(plan, known, **how)
    except LaunchError as error:
        return str(error)
    kinds = sorted({str(offer.machines) for offer in found.offers})
    return [kinds, list(found.notes), found.best.summary()]


print(json.dumps([offers(30), offers(50), offers(90), offers(90, any_memory=True)]))
"""


@pytest.mark.cloud
def test_what_cannot_fit_is_not_offered(home: SkyHome, tmp_path: Path) -> None:
    """30 GiB of tensors fit everywhere, 50 not into 40, and 90 nowhere, unless somebody insists."""
    (tmp_path / "recipes").mkdir()
    candidates = '{accelerators: "A100:8"}, {accelerators: "H100:8"}'
    (tmp_path / "recipes" / "small.yaml").write_text(RECIPE.format(candidate=candidates))
    done = home.python(FITTING, cwd=tmp_path)
    assert done.code == 0, done.err
    both, one, none, insisted = json.loads(done.out)
    assert both[0] == ["A100:8", "H100:8"]
    quoted = both[2]["quote"]
    assert quoted["hours"]["low"] < both[2]["hours"] < quoted["hours"]["high"]
    hourly = both[2]["usd_per_hour"] + quoted["saved_usd_per_hour"]
    assert both[2]["usd"] == pytest.approx(both[2]["hours"] * hourly)
    assert one[0] == ["H100:8"]
    left = "A100:8 (56.0 of 40 GiB with micro-batches of 4: 16.0 GiB too few)"
    assert one[1] == [f"Left out because the step does not fit: {left}."]
    assert none.startswith("The step does not fit: A100:8 (100.0 of 40 GiB")
    assert "--any-memory" in none
    assert insisted[0] == ["A100:8", "H100:8"]
    assert not insisted[2]["memory"]["fits"]
