"""What people ask a recipe for by other names than xrun's: what it does not have, and what does
instead, and the keys that are called otherwise elsewhere."""

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
_LOSS = (
    "`task` says which loss is computed, by what the model is for: `classification`,"
    " `language_modeling`, `regression`, ... A loss of your own is computed in your model, with"
    " `task: model`."
)
_MACHINES = (
    "`hardware` says where it trains: `hardware: {local: {processes: 2}}` with two processes on"
    " this machine, one for each GPU, `hardware: {any_of: [{accelerators: A100:2}]}` on a cloud."
)
_SCRIPTS = (
    "xrun runs no script: it trains the model and the dataset that the recipe names, files in"
    " models/ and datasets/. `xrun init` writes a recipe to begin with."
)
_ASKED = (
    (r"(train\.)?(loss(_f(n|unction))?|criterion|objective): .*", _LOSS),
    (
        r"(train\.)?(((n|num)_)?gpus?|devices?|cuda|accelerators?|resources|spot|clouds?): .*",
        _MACHINES,
    ),
    (r"(script|run|command|entry_?point|main): .*", _SCRIPTS),
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
    (r"dataset\.name: (web_?dataset|wds|tar(_files)?|shards)", _SHARDS),
)
"""A problem's key and the value that stands there."""


OTHER_NAMES = {
    **dict.fromkeys(("batch_size", "global_batch_size", "train_batch_size"), "train.global_batch"),
    **dict.fromkeys(("micro_batch_size", "per_device_train_batch_size"), "train.micro_batch"),
    **dict.fromkeys(("gradient_accumulation", "gradient_accumulation_steps"), "train.micro_batch"),
    **dict.fromkeys(("learning_rate", "max_lr", "base_lr"), "train.optimizer.lr"),
    **dict.fromkeys(("num_epochs", "max_epochs", "num_train_epochs", "n_epochs"), "train.epochs"),
    **dict.fromkeys(("max_steps", "num_steps", "iterations", "max_iters"), "train.steps"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule"), "train.schedule"),
    **dict.fromkeys(("warmup", "num_warmup_steps"), "train.schedule.warmup_steps"),
    **dict.fromkeys(("mixed_precision", "dtype", "amp", "bf16", "fp16"), "train.precision"),
    **dict.fromkeys(("grad_clip", "gradient_clip_val", "max_grad_norm"), "train.clip_grad_norm"),
    **dict.fromkeys(("random_seed", "random_state"), "train.seed"),
    **dict.fromkeys(("workers", "dataloader_num_workers"), "train.num_workers"),
    **dict.fromkeys(("fsdp", "zero"), "train.sharding"),
    **dict.fromkeys(("gradient_checkpointing",), "train.activation_checkpointing"),
    **dict.fromkeys(("eval", "evaluation", "validation"), "train.evaluate"),
    **dict.fromkeys(("eval_every", "eval_steps", "evaluate_every"), "train.evaluate.every"),
    **dict.fromkeys(("early_stopping", "early_stopping_patience"), "train.evaluate.patience"),
    **dict.fromkeys(("save_every", "save_steps", "checkpoint_every"), "checkpoint.every"),
    **dict.fromkeys(("keep_last", "save_total_limit"), "checkpoint.keep"),
    **dict.fromkeys(("output", "output_dir", "out_dir", "checkpoint_dir"), "checkpoint.store"),
    **dict.fromkeys(("lora", "peft"), "model.adapter"),
    **dict.fromkeys(("dropout", "hidden_size", "num_classes"), "model.args"),
    **dict.fromkeys(("data", "data_dir", "data_path"), "dataset"),
    **dict.fromkeys(("logging", "logger", "report_to"), "tracking"),
    **dict.fromkeys(("pip", "dependencies", "packages"), "requirements"),
}
"""What a key is called elsewhere."""


def with_what_is(problem: Problem, value: str) -> Problem:
    """The problem, its hint the sentence about what xrun has not where `value` asks for that."""
    asked = f"{problem.key}: {value.lower()}"
    found = (told for names, told in _ASKED if re.match(rf"({names})\Z", asked))
    return replace(problem, hint=next(found, problem.hint))
