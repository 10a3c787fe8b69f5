"""What xrun's plugin is told of a run, and what a person is told of the plugin."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.paths import ROOT
from xrun.errors import RecipeError
from xrun.launcher.offers import Offer, rank
from xrun.launcher.sky.recovery import (
    assignment,
    first_launch,
    recovery,
    with_plugin,
    without_plugin,
)
from xrun.launcher.throughput import Machines, Speed, Throughput
from xrun.recipe.accelerators import Accelerators
from xrun.recipe.load import load_recipe
from xrun.run.folder import RunFolder
from xrun.run.plan import Plan, check_deadline, make_plan
from xrun.run.prices import Price

pytestmark = pytest.mark.once

LAUNCHED = 1_800_000_000.0
RECIPE = ROOT / "recipes" / "digits.yaml"
CANDIDATES = "[{accelerators: 'A100:8'}, {accelerators: 'H100:8', nodes: 2, max_hourly_cost: 60}]"


def plan_of(tmp_path: Path, *overrides: str, candidates: str = CANDIDATES) -> Plan:
    wanted = [
        "train.micro_batch=1",
        f"hardware.any_of={candidates}",
        "checkpoint.store=hub://alice/digits",
        *overrides,
    ]
    made = make_plan(
        load_recipe(RECIPE, wanted), RECIPE, environ={"XRUN_HOME": str(tmp_path / "runs")}
    )
    return replace(made, launched=LAUNCHED)


def offer(candidate: int, accelerators: str, *, spot: bool = True, **prices: float) -> Offer:
    """An offer with a price per zone."""
    each, nodes = Accelerators.parse(accelerators), candidate + 1
    seen = tuple(
        Price(
            cloud="aws",
            region="r1",
            zone=zone,
            usd_per_hour=price,
            instance=f"m{candidate}",
            accelerators=each,
            spot=spot,
        )
        for zone, price in prices.items()
    )
    return Offer(candidate, "aws", "r1", f"m{candidate}", Machines(each, nodes), seen, spot)


OFFERS = (
    offer(0, "A100:8", a=10.0, b=11.0),
    offer(0, "A100:8", spot=False, a=30.0, b=30.0),
    offer(1, "H100:8", a=40.0, b=61.0),
)


def test_every_place_is_named_with_its_price_and_its_speed(tmp_path: Path) -> None:
    """Spot zone by zone, on demand by region; other numbers of nodes too, by what the data sheets
    say of them; a zone that is too dear is none."""
    plan = plan_of(tmp_path)
    offers = rank(OFFERS, plan.load_recipe().hardware.any_of, any_nodes=True)
    told = assignment(plan, offers, Throughput())
    best = {place.infra: place for place in told.places}["aws/r1"]
    assert [
        (each.infra, each.spot, each.usd_per_hour, each.nodes, round(each.speed, 2))
        for each in told.places
    ] == [
        ("aws/r1/a", True, 40.0, 2, 1.0),
        ("aws/r1/a", True, 10.0, 1, 0.16),
        ("aws/r1/b", True, 11.0, 1, 0.16),
        ("aws/r1", False, 30.0, 1, 0.16),
    ]
    assert best.resources == {"infra": "aws/r1", "accelerators": "A100:8", "use_spot": False}
    assert best.instance == "m0"
    assert offers.best.machines.nodes == 2
    assert "After a loss it may go on with A100:8 as well." in list(with_plugin(plan, offers))


def test_without_the_plugin_a_job_has_one_number_of_nodes(tmp_path: Path) -> None:
    candidates = plan_of(tmp_path).load_recipe().hardware.any_of
    offers = rank(OFFERS, candidates)
    assert offers.others == ()
    assert offers.notes == (
        "Left out, because a job has one number of nodes and one setup: A100:8.",
    )


def test_what_the_run_was_promised_goes_along(tmp_path: Path) -> None:
    """The deadline from its first launch, what is left of its budget, how fast it was seen to be,
    and where its head is."""
    plan = plan_of(tmp_path, "hardware.deadline=36h", "hardware.max_wait=1h", "budget.usd=500")
    measured = replace(OFFERS[0], speed=Speed(2.0, "measured", measured=True))
    offers = rank([measured], plan.load_recipe().hardware.any_of)
    rule = recovery(plan, offers, Throughput(steps_left=700))
    told = rule["xrun"]
    assert (rule["strategy"], rule["recover_on_exit_codes"]) == ("XRUN", [75, 76])
    assert (told["launched"], told["deadline"]) == (LAUNCHED, LAUNCHED + 36 * 3600)
    assert (told["max_wait"], told["budget_usd"]) == (3600, 500)
    assert (told["left"], told["rate"], told["state"]) == (700, 2.0, "hub://alice/digits")
    assert told["run"] == plan.run


def test_a_launch_says_what_will_be_done(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "hardware.deadline=36h")
    offers = rank(OFFERS[:2], plan.load_recipe().hardware.any_of)
    said = " ".join(with_plugin(plan, offers))
    assert "on-demand machines, from $30.00 an hour, could still finish it by" in said
    assert "2027-01-16 20:00 UTC (hardware.deadline)" in said
    assert "Nobody has measured the speed of training yet" in said
    patient = plan_of(tmp_path, "hardware.max_wait=3h", "budget.usd=5")
    (said,) = with_plugin(patient, offers)
    assert said == (
        "Without spot machines for 3h (hardware.max_wait) it goes on demand, from $30.00 an hour,"
        " if budget.usd covers the rest of the run."
    )
    only_spot = rank(OFFERS[:1], plan.load_recipe().hardware.any_of)
    assert list(with_plugin(plan_of(tmp_path), only_spot)) == []


def test_a_launch_says_what_is_lost(tmp_path: Path) -> None:
    said = without_plugin(plan_of(tmp_path, "hardware.deadline=36h").load_recipe().hardware)
    assert "hardware.deadline (36h) is not kept" in said
    assert "nobody counts machines on which no attempt begins" in said
    assert "`xrun setup sky` installs it." in said
    assert "deadline" not in without_plugin(plan_of(tmp_path).load_recipe().hardware)


def test_a_later_launch_counts_from_the_first(tmp_path: Path) -> None:
    """As the run's folder has it, whatever this launch's plan knows."""
    new = replace(plan_of(tmp_path), launched=0.0)
    assert first_launch(new, now=5.0) == 5.0
    assert first_launch(replace(new, launched=3.0), now=5.0) == 3.0
    folder = RunFolder(new.folder)
    folder.write_plan(replace(new, launched=4.0))
    assert folder.plan().launched == 4.0


def test_a_deadline_that_has_passed_is_refused_at_its_place(tmp_path: Path) -> None:
    """A span by the first launch, a time by itself."""
    text = RECIPE.read_text().replace("hardware: local", "")
    hardware = "hardware:\n  any_of: [{spot: false}]\n  deadline: {}\n"
    for deadline, launched in (("2h", time.time() - 7201), ("2026-01-01T00:00Z", time.time())):
        path = tmp_path / "recipe.yaml"
        path.write_text(text + "\n" + hardware.replace("{}\n", f"{deadline}\n"))
        recipe = load_recipe(path)
        line = path.read_text().splitlines().index(f"  deadline: {deadline}") + 1
        with pytest.raises(RecipeError, match=rf"{path}:{line}:13: hardware\.deadline: 2.* passed"):
            check_deadline(recipe, path, (), launched)
    check_deadline(load_recipe(RECIPE), RECIPE, (), 0.0)
