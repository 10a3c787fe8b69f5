"""Prices travel with a job, and people may write them by hand."""

from __future__ import annotations

import json

import pytest

from xrun.recipe.accelerators import Accelerators
from xrun.run.prices import Price, prices_json, read_prices

A100 = Price(
    cloud="aws",
    usd_per_hour=2.5,
    region="us-east-1",
    zone="us-east-1b",
    instance="p4d.24xlarge",
    accelerators=Accelerators.parse("A100:8"),
    spot=True,
    date="2026-11-21",
    source="a catalog",
)


def test_a_list_comes_back_from_one_line() -> None:
    prices = [A100, Price(cloud="gcp", usd_per_hour=1.0)]
    text = prices_json(prices)
    assert "\n" not in text
    assert read_prices(text) == prices


def test_what_is_not_said_fits_everything() -> None:
    """In a list by hand; what a newer xrun has added is ignored."""
    by_hand = [{"cloud": "Slurm", "usd_per_hour": 36.0, "region": None, "later": 1}]
    (price,) = read_prices(json.dumps(by_hand))
    assert (price.region, price.accelerators, price.spot) == ("", None, None)
    assert price.fits("slurm", "anywhere", 8)


@pytest.mark.parametrize(
    ("place", "fits"),
    [
        (("aws", "us-east-1", 8), True),
        (("aws", "us-west-2", 8), False),
        (("aws", "us-east-1", 4), False),
        (("gcp", "us-east-1", 8), False),
    ],
)
def test_a_price_is_of_one_place_and_kind(place: tuple[str, str, int], fits: bool) -> None:
    assert A100.fits(*place) == fits
