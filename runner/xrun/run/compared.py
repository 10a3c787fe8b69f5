"""In what runs differ: the keys of their recipes, and what they have come to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .plan import leaves
from .report import RunReport

ABSENT = "-"
"""What a run has no value for."""


def of_recipes(recipes: Sequence[Mapping[str, Any] | None]) -> dict[str, tuple[str, ...]]:
    """The keys in which these recipes differ, each with its values in their order, as JSON.

    A key that an older xrun did not know has the default that held then; without a recipe all
    values are absent.
    """
    flat = [dict(leaves(recipe)) if recipe else {} for recipe in recipes]
    if len({frozenset(each) for each in flat if each}) > 1:
        flat = [dict(leaves(_in_full(recipe))) if recipe else {} for recipe in recipes]
    named = {name for each in flat for name in each} - {"version"}
    # What is `{}` in one and has keys in another differs in these keys, and not in itself.
    names = sorted(n for n in named if not any(each.startswith(f"{n}.") for each in named))
    found = {name: tuple(_text(each.get(name)) for each in flat) for name in names}
    known = [n for n, each in enumerate(flat) if each]
    return {name: values for name, values in found.items() if len({values[n] for n in known}) > 1}


def _in_full(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """With every default written out, where this xrun can read it."""
    from pydantic import ValidationError

    from ..recipe.schema import Recipe

    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:  # of a newer xrun
        return recipe


def of_sources(reports: Sequence[RunReport]) -> dict[str, tuple[str, ...]]:
    """The files of components that are not the same in all these runs, by their place in the
    project: of each run whether it has the file as the first of them had it, or `edited`, and in
    several ways with a number. Older records do not know."""
    begun = [each.attempts[0].started if each.attempts else 0.0 for each in reports]
    order = sorted(range(len(reports)), key=begun.__getitem__)
    known = [number for number in order if reports[number].sources]
    found = {}
    for place in sorted({place for report in reports for place in report.sources}):
        digests = [report.sources.get(place) for report in reports]
        versions = list(dict.fromkeys(digests[n] for n in known if digests[n] is not None))
        if len(versions) > 1:
            found[place] = tuple(_version(digest, versions) for digest in digests)
    return found


def _version(digest: str | None, versions: Sequence[str | None]) -> str:
    if digest is None:
        return ABSENT
    number = versions.index(digest)
    return ("before", "edited")[number] if number < 2 else f"edited ({number})"


def differing(reports: Sequence[RunReport]) -> list[str]:
    """For each run the keys in which the runs of its recipe differ, with its own values, and the
    files that were edited since the first of them."""
    told = [""] * len(reports)
    names = [report.recipe["name"] if report.recipe else None for report in reports]
    for name in {name for name in names if name is not None}:
        group = [number for number, other in enumerate(names) if other == name]
        keys = of_recipes([reports[number].recipe for number in group])
        files = of_sources([reports[number] for number in group])
        for place, number in enumerate(group):
            own = [f"{_short(key, keys)}={values[place]}" for key, values in keys.items()]
            versions = {file: values[place] for file, values in files.items()}
            own += [f"{file} {how}" for file, how in versions.items() if how.startswith("edited")]
            told[number] = " ".join(own)
    return told


def _short(key: str, among: Iterable[str]) -> str:
    """Its last part, where no other key ends in that."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in among) > 1 else last


def of_results(reports: Sequence[RunReport]) -> dict[str, tuple[str, ...]]:
    """What the runs have come to, each with its values in their order; what is the same of all is
    left out."""
    rows = {
        "status": [report.status for report in reports],
        "step": [progress(report) for report in reports],
        "best": [best(report) for report in reports],
        "attempts": [str(len(report.attempts)) for report in reports],
        "hours": [f"{report.receipt.hours:.2f}" for report in reports],
        "dollars": [report.receipt.price for report in reports],
        "samples/s": [_number(report.speed.get("samples_per_second")) for report in reports],
        "weights": [(report.weights_sha256 or ABSENT)[:8] for report in reports],
    }
    for name in sorted({name for report in reports for name in report.metrics}):
        if name not in ("train/lr", "train/samples"):
            rows[name] = [_number(report.metrics.get(name)) for report in reports]
    return {name: tuple(values) for name, values in rows.items() if len(set(values)) > 1}


def progress(report: RunReport) -> str:
    """The newest committed step, of how many."""
    if report.step is None:
        return ABSENT
    return f"{report.step}/{report.steps}" if report.steps else str(report.step)


def best(report: RunReport) -> str:
    """The best evaluation so far, with its step."""
    known = report.best
    return f"{known['metric']} {known['value']:.4g} at {known['step']}" if known else ABSENT


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.6g}"
