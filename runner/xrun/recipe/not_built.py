"""What people ask a recipe for that xrun does not have, by the names that they would type, and what
does instead."""

from __future__ import annotations

import re
from dataclasses import replace

from ..errors import Problem

_PREFERENCES = (
    "xrun has no preference tuning (DPO and its kin, reward models). On the answers that are"
    " preferred `task: language_modeling` trains with datasets/chat; a loss of your own is computed"
    " in your model, with `task: model`."
)
_OPTIMIZERS = (
    "xrun has one optimizer for the whole model, so GANs and others that take turns are not built."
    " One loss of all parts is computed in your model, with `task: model`."
)
_SHARDS = (
    "xrun reads no WebDataset shards. datasets/image_folder reads pictures in class folders,"
    " datasets/hub_images and datasets/hub_text read the Hub, and a dataset of your own streams tar"
    " files as a split with `num_shards` and `shard(i)`."
)
_SHARDING = (
    "xrun shards weights, gradients and optimizer state over all processes alike (`train.sharding:"
    " fsdp`, what others call ZeRO-3). Sharding within nodes alone (HSDP), offload to the"
    " processor's memory, tensor and pipeline parallelism are not built."
)
_POOLS = (
    "xrun starts each trial as a managed job of its own. SkyPilot's pools hand a job to a machine"
    " that is there already and neither send its files nor run its setup, by which a run's plan and"
    " project arrive. `parallel: 4` has four jobs at a time."
)
_ASKED = (
    (
        r"task: (preferences?|[a-z]*dpo|orpo|kto|ipo|ppo|grpo|rlhf|reward(_model(ing)?)?)",
        _PREFERENCES,
    ),
    (r"dataset\.name: (preferences?|dpo)", _PREFERENCES),
    (r"task: (w?gan|adversarial)", _OPTIMIZERS),
    (r"train\.optimizers: .*", _OPTIMIZERS),
    (r"train\.optimizer: a list", _OPTIMIZERS),
    (r"train\.optimizer\.(generator|discriminator|critic|g|d): .*", _OPTIMIZERS),
    (
        r"train\.sharding: ([a-z]*hsdp|hybrid.*|zero.*|deepspeed.*|.*offload.*|tp|pp|tensor.*)",
        _SHARDING,
    ),
    (r"train\.([a-z]*_?offload|(tensor|pipeline)_parallel(ism)?|hsdp|deepspeed): .*", _SHARDING),
    (r"sweep\.pool: .*", _POOLS),
    (r"dataset\.name: (web_?dataset|wds|tar(_files)?|shards)", _SHARDS),
)
"""A problem's key and the value that stands there."""


def with_what_is(problem: Problem, value: str) -> Problem:
    """The problem, its hint the sentence about what xrun has not where `value` asks for that."""
    asked = f"{problem.key}: {value.lower()}"
    found = (told for names, told in _ASKED if re.match(rf"({names})\Z", asked))
    return replace(problem, hint=next(found, problem.hint))
