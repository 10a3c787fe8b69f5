"""Plan + offers -> SkyPilot's task, its YAML, and the command that launches it.

One task with one set of rules for recovery in every candidate. Where offers are ranked by the whole
run, the task has them `ordered`, each pinned to its place; else `any_of`, and SkyPilot takes the
cheapest hour.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ... import environment
from ...recipe.location import target_there
from ...recipe.schema import Candidate, FileSource
from ...run.plan import Plan
from ..bundle import there
from ..offers import Offer, Offers, affordable
from ..secrets import secret_names

HOOK_SECONDS = 60
"""How long a pod waits until the attempt in it has saved (xrun.supervisor.preempted)."""
_TRAVEL = (
    "HF_ENDPOINT",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
    environment.HUB_SPACING.name,
    environment.HUB_HOURLY.name,
    environment.HUB_PATIENCE.name,
    environment.BUCKET_PATIENCE.name,
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ALLOW_HTTP",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_STORAGE_ACCOUNT_NAME",
)
"""Where the Hub, the bucket and W&B are and what they take, for people who have their own. Keys are
no part of it: they are secrets, by name."""


def task_config(
    plan: Plan,
    offers: Offers,
    cargo: Path,
    recovery: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """The task as SkyPilot's YAML has it, with this `job_recovery`; secrets are names without
    values."""
    recipe = plan.load_recipe()
    config = {
        "name": plan.run,
        "num_nodes": offers.best.machines.nodes,
        "resources": {"job_recovery": dict(recovery), **resources(recipe.hardware.any_of, offers)},
        "envs": {**{name: environ[name] for name in _TRAVEL if environ.get(name)}, **_alerts(plan)},
        "secrets": dict.fromkeys(secret_names(recipe)),
        "file_mounts": {there(plan.run): str(cargo), **_files(plan, recipe.files)},
        "volumes": _volumes(recipe.files),
        "run": _run(plan.run),
        "config": _hooks(plan.run, offers),
    }
    return {name: value for name, value in config.items() if value not in ({}, None)}


def task_yaml(config: Mapping[str, Any]) -> str:
    """The YAML that `sky jobs launch` takes."""
    return yaml.dump(
        dict(config), Dumper=_Dumper, sort_keys=False, width=120, default_flow_style=None
    )


def launch_command(config: Mapping[str, Any], path: str) -> str:
    """The command that launches the YAML at `path`; the values of the secrets are in the
    environment."""
    secrets = [part for name in config.get("secrets", {}) for part in ("--secret", name)]
    return shlex.join(["sky", "jobs", "launch", "--name", config["name"], *secrets, path])


def resources(candidates: Sequence[Candidate], offers: Offers) -> dict[str, Any]:
    """SkyPilot's `ordered`, with each offer pinned to its place, or `any_of`."""
    if not offers.ordered:
        numbers = sorted({offer.candidate for offer in offers.offers})
        return {
            "any_of": [
                entry
                for number in numbers
                for entry in _unpinned(candidates[number], _of(number, offers))
            ]
        }
    pinned = [(candidates[offer.candidate], offer) for offer in offers.offers]
    return {
        "ordered": [
            wish(candidate, offer.use_spot, place, offer.fast_network)
            for candidate, offer in pinned
            for place in _pins(offer, candidate)
        ]
    }


def _of(number: int, offers: Offers) -> list[Offer]:
    return [offer for offer in offers.offers if offer.candidate == number]


def _unpinned(candidate: Candidate, offers: Sequence[Offer]) -> list[dict[str, Any]]:
    """As wide as the recipe leaves it: SkyPilot looks for the best place, now and at each recovery.

    Clouds are named also where some have a fast network: SkyPilot leaves out those that have none.
    """
    named = candidate.clouds or any(offer.fast_network for offer in offers)
    wanted = dict.fromkeys(
        (
            offer.use_spot,
            offer.infra if candidate.regions else offer.cloud if named else "",
            offer.fast_network,
        )
        for offer in offers
    )
    return [wish(candidate, *entry) for entry in sorted(wanted, key=lambda entry: not entry[0])]


def _pins(offer: Offer, candidate: Candidate) -> list[str]:
    """The offer's region; its single zones where some of them are dearer than the candidate may
    be."""
    prices = [price for price in offer.prices if price.spot == offer.use_spot]
    cheap = [price for price in prices if affordable(price, candidate)]
    if len(cheap) == len(prices):
        return [offer.infra]
    return [
        f"{offer.infra}/{price.zone}"
        for price in sorted(cheap, key=lambda price: price.usd_per_hour)
    ]


def wish(candidate: Candidate, spot: bool, infra: str, fast_network: bool) -> dict[str, Any]:
    """One candidate in SkyPilot's words. SkyPilot limits the price of a node, a recipe that of all
    nodes."""
    limit = candidate.max_hourly_cost
    entry = {
        "infra": infra or None,
        "accelerators": str(candidate.accelerators) if candidate.accelerators else None,
        "use_spot": spot,
        "disk_size": candidate.disk,
        "image_id": candidate.image,
        "network_tier": "best" if fast_network else None,
        "max_hourly_cost": round(limit / candidate.nodes, 4) if limit else None,
    }
    return {name: value for name, value in entry.items() if value is not None}


def _files(plan: Plan, files: Mapping[str, FileSource]) -> dict[str, str | dict[str, str]]:
    """The recipe's own files: path on the machine -> path here, or a bucket that is copied or
    mounted there."""
    mounts: dict[str, str | dict[str, str]] = {}
    for target, each in files.items():
        if (source := each.source) is None:
            continue
        if each.mode != "COPY":
            mounts[target_there(target)] = {"source": str(source), "mode": each.mode}
        else:
            here = source.path(plan.project)
            mounts[target_there(target)] = os.path.realpath(here) if here else str(source)
    return mounts


def _volumes(files: Mapping[str, FileSource]) -> dict[str, str]:
    """Path on the machine -> the name of the volume that is attached there."""
    return {target_there(target): each.volume for target, each in files.items() if each.volume}


def _hooks(run: str, offers: Offers) -> dict[str, Any]:
    """Where pods may go without a word of a metadata server: SkyPilot runs this on the first node
    before, and the attempt saves. On a machine that is not set up yet there is nothing to save."""
    if not any(offer.cloud == "kubernetes" for offer in offers.offers):
        return {}
    python = "~/xrun/python"
    ask = f"{python} -P -m xrun.supervisor.preempted ~/xrun/runs/{run}/plan.json"
    hook = {"run": f"[ ! -x {python} ] || {ask}", "events": ["preemption"], "timeout": HOOK_SECONDS}
    return {"hooks": [hook]}


def _alerts(plan: Plan) -> dict[str, str]:
    """For xrun's plugin of SkyPilot, which tells what happens while no machine is alive."""
    told = asdict(plan.alerts)
    return {environment.ALERTS.name: json.dumps(told)} if plan.alerts.to else {}


def _run(run: str) -> str:
    """What each node of the job runs; it installs as well, since SkyPilot gives up a job whose
    `setup` fails, whatever its exit code says. A run's id is plain, so nothing needs quotes. xrun's
    plugin tells the price of the very machines that it has asked for."""
    cargo = there(run)
    return (
        f"export {environment.PRICES.name}=${{{environment.PRICES.name}:-{cargo}/prices.json}}\n"
        f"exec bash {cargo}/attempt.sh {cargo} ~/xrun/runs/{run}/plan.json\n"
    )


class _Dumper(yaml.SafeDumper):
    """Shell commands as blocks, and every name written out in place of anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)
