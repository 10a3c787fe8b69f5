"""`Recipe`: what a person writes, as frozen values. Fields are checked here; rules between fields
are in `rules`.

Nothing here changes a value or looks at the machine: validators say yes or no, and defaults that
depend on something else are resolved in the plan. The docstring under a field is its documentation
(`docs/recipes.md`).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic_core import PydanticCustomError

from ..store.address import Address, NoAddressError
from .accelerators import PATTERN, Accelerators
from .base import Before, Field, Parsed, Part, default
from .deadline import Deadline
from .interval import Every, interval
from .location import Location, NoLocationError
from .metrics import better
from .secret_text import looks_like_a_secret

Count = Annotated[int, Field(ge=1, le=2**53)]
Natural = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
LINE: dict[str, Any] = {"min_length": 1, "max_length": 1024, "pattern": r"^[^\x00-\x1f]+$"}
Line = Annotated[str, Field(**LINE)]
Task = Literal[
    "classification",
    "language_modeling",
    "regression",
    "multi_label",
    "token_classification",
    "segmentation",
    "model",
]
ComponentName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=100)]
NAME_OF_VARIABLE = r"^[A-Z_][A-Z0-9_]*$"
SecretName = Annotated[str, Field(pattern=NAME_OF_VARIABLE, max_length=100)]
ACCELERATORS: dict[str, Any] = {"pattern": PATTERN, "max_length": 64}
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]


def secrets_go_by_name(value: Any) -> Any:
    if isinstance(value, str) and looks_like_a_secret(value):
        raise PydanticCustomError(
            "secret", "a secret goes by name: its value never stands in a recipe"
        )
    return value


def addresses_go_by_name(value: Any) -> Any:
    """An address holds a password or a key, so whatever is no name is a secret."""
    if isinstance(value, str) and not re.fullmatch(NAME_OF_VARIABLE, value):
        raise PydanticCustomError(
            "secret", "an address for alerts goes by name: its value never stands in a recipe"
        )
    return value


def read_address(text: str) -> Address:
    """Where the state goes, or what is wrong with it and the way out."""
    try:
        return Address.parse(text)
    except NoAddressError as error:
        context = {"what": error.what, "hint": error.hint}
        raise PydanticCustomError("sentence", "{what}", context) from None


def read_repository(text: str) -> Address:
    """Where a model is published, or what is wrong with it and the way out."""
    if text != "hub" and not text.startswith("hub://"):
        hint = "Write `hub` or `hub://owner/name`; without it the model lies with the state."
        what = "a model is published in a repository of the Hub"
        raise PydanticCustomError("sentence", "{what}", {"what": what, "hint": hint})
    return read_address(text)


def read_location(text: str) -> Location:
    """Where data lie, or what is wrong with it and the way out."""
    try:
        return Location.parse(text)
    except NoLocationError as error:
        context = {"what": error.what, "hint": error.hint}
        raise PydanticCustomError("sentence", "{what}", context) from None


def read_source(value: Any) -> Any:
    """`/data: s3://bucket` is `/data: {source: s3://bucket}`."""
    if not isinstance(value, str | dict | FileSource):
        raise PydanticCustomError("sentence", "must be a path, an address or a mapping")
    return {"source": value} if isinstance(value, str) else value


class Adapter(Part):
    """Small weights that are trained in place of the model's own, which stay as they are."""

    name: Literal["lora"]
    """`lora`, with the variants that its arguments choose (`use_dora`, `use_rslora`)."""
    args: dict[str, Any] = default({})
    """Arguments of peft's `LoraConfig`, checked without importing it: `{r: 16, lora_alpha: 32,
    target_modules: all-linear}`. For the usual classes of `models/hub` `task_type` follows from
    `auto_class`."""
    merge: bool = False
    """The finished run's model is the base with the adapter merged into it, in the base's own
    layout, in place of the adapter alone. It changes nothing that is trained."""


class ModelRef(Part):
    """A file of `models/` and the arguments of its `build`."""

    name: ComponentName
    """The file `models/NAME.py`, without `.py`."""
    args: dict[str, Any] = default({})
    """Arguments of its `build(...)`, checked against the signature without importing the file."""
    init_from: Line | None = None
    """Warm start from these weights: a local file or folder, or `owner/name[@revision]` on the
    Hugging Face Hub; what the run saves itself counts afterwards. An adapter's folder goes onto
    `adapter`. Where weights are frozen by `adapter` or `frozen_modules` every attempt reads the
    others again, so name a revision that stays. Default: the weights that `build` makes."""
    adapter: Adapter | None = None
    """Train an adapter and freeze the model. A checkpoint has the adapter and a digest of what is
    frozen, which each attempt builds again from its source: one that changed is refused. Default:
    all weights that `build` leaves trainable are trained."""
    frozen_modules: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """Modules of the model, by their names in it (`backbone`, `encoder.layers.0`), whose weights
    are frozen and, as under an adapter, built again instead of saved. What the forward pass moves
    (statistics of a BatchNorm, a teacher that follows) is saved all the same. Default: none."""
    frozen: Literal["bf16", "fp32", "8bit", "4bit"] | None = None
    """Precision in which frozen weights are held; with `bf16` the arithmetic is `train.precision:
    bf16` or `fp16`. `8bit` and `4bit` (nf4) pack the linear layers under an `adapter` by
    bitsandbytes (`xrun[quantized]`), and the rest of the base is held in bf16. Default: `bf16`
    under an `adapter`, else as `build` has made them."""
    trust_remote_code: bool = False
    """Run the code that a Hub repository brings along. Only for the model `hub`."""

    @property
    def freezes(self) -> bool:
        """Whether weights are frozen that are built again from their source, not saved."""
        return self.adapter is not None or bool(self.frozen_modules)

    @property
    def held(self) -> Literal["bf16", "fp32"] | None:
        """The precision of frozen weights that are not packed; None leaves them as `build` has made
        them."""
        if self.frozen in ("bf16", "fp32"):
            return self.frozen
        return "bf16" if self.adapter is not None else None

    @property
    def quantized(self) -> Literal["8bit", "4bit"] | None:
        """How the base's linear layers are packed; None leaves them as they are."""
        return self.frozen if self.frozen in ("8bit", "4bit") else None


class DatasetRef(Part):
    """A file of `datasets/` and the arguments of its `build`."""

    name: ComponentName
    """The file `datasets/NAME.py`, without `.py`."""
    args: dict[str, Any] = default({})
    """Arguments of its `build(...)`, checked against the signature without importing the file."""


class Local(Part):
    """This machine."""

    processes: Count = 1
    """Training processes, one per GPU where there are GPUs."""


class Candidate(Part):
    """One kind of machine that would do. The cheapest of the candidates that can be had is
    taken."""

    accelerators: Annotated[Accelerators, Parsed(Accelerators.parse, **ACCELERATORS)] | None = None
    """Accelerators of each node: `A100:8`, or `A100` for one. Default: a machine without."""
    nodes: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Machines that train together."""
    clouds: Annotated[tuple[Line, ...], Field(strict=False, min_length=1)] | None = None
    """Where to look, by SkyPilot's names: `[aws, gcp]`. Default: every cloud that you have
    enabled."""
    regions: Annotated[tuple[Line, ...], Field(strict=False, min_length=1)] | None = None
    """Regions of these clouds. Default: all."""
    spot: bool | Literal["auto"] = "auto"
    """Interruptible machines: `true`, `false`, or `auto` for the cheaper of the two."""
    max_hourly_cost: Positive | None = None
    """US dollars per hour for all nodes together. Default: no limit."""
    image: Line | None = None
    """Machine or container image, as SkyPilot's `image_id`. Default: SkyPilot's own, on which each
    new machine installs the pinned libraries. On `docker:OWNER/NAME`, made of xrun's
    `docker/Dockerfile`, it installs none."""
    disk: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Disk of each node in GB. Default: SkyPilot's."""
    setup: Text | None = None
    """Shell commands for this kind of machine. They follow the recipe's own `setup` in the same
    shell, and may assume what it says there."""

    @property
    def accelerator(self) -> str | None:
        """The accelerator's name without the count."""
        return self.accelerators.name if self.accelerators else None

    @property
    def count(self) -> int:
        """Accelerators per node; 0 on a machine without."""
        return self.accelerators.count if self.accelerators else 0

    @property
    def processes(self) -> int:
        """Training processes per node."""
        return self.count or 1

    @property
    def world(self) -> int:
        """Training processes on all nodes together."""
        return self.nodes * self.processes


class Hardware(Part):
    """`local`, or any one of several kinds of cloud machines. In a recipe that `extends` another,
    naming either replaces the base's whole."""

    local: Local | None = None
    """Train on this machine. `hardware: local` is short for one process."""
    any_of: Annotated[tuple[Candidate, ...], Field(strict=False)] = ()
    """Kinds of cloud machines that would do; a preempted run may continue on another one of
    them."""
    deadline: Annotated[Deadline, Parsed(Deadline.parse, max_length=64)] | None = None
    """When the run is to have finished: so long after its first launch (`36h`, `2d`), or a time
    with its zone (`2026-12-01T18:00+01:00`). It trains on spot machines as long as it can still be
    in time without them, on demand from the last responsible moment, and on spot again when there
    is time to spare. Needs xrun's plugin in SkyPilot (`xrun setup sky`). Default: none."""
    max_wait: Annotated[Every, interval("seconds")] = default("2h")
    """Without a deadline: how long to wait for spot machines, where `spot: auto` allows others,
    before one on demand is taken, provided that the `budget` covers the rest of the run at that
    price; and how long it is kept before spot machines are looked for again. Needs the plugin as
    well: without it SkyPilot does not wait."""

    @property
    def may_wait(self) -> bool:
        """Whether there is a choice between waiting for spot machines and going on demand."""
        return any(each.spot is not False for each in self.any_of) and any(
            each.spot is not True for each in self.any_of
        )

    @property
    def worlds(self) -> tuple[int, ...]:
        """The numbers of processes that the run may train with, one per candidate."""
        return (
            (self.local.processes,)
            if self.local
            else tuple(candidate.world for candidate in self.any_of)
        )

    def checked(self) -> Self:
        if (self.local is None) == (not self.any_of):
            raise PydanticCustomError(
                "sentence", "must be `local` or hold one of `local` and `any_of`"
            )
        return self


def read_shorthand(value: Any) -> Any:
    """`hardware: local` is `hardware: {local: {}}`."""
    return {"local": {}} if value == "local" else value


class Optimizer(Part):
    """The optimizer; norms, biases and other 1-D parameters are not decayed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)] = "adamw"
    """`adamw`, `sgd` or another class of `torch.optim`, in any case."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled or not as the optimizer has it."""
    args: dict[str, Any] = default({})
    """Further arguments of the class, such as `betas: [0.9, 0.95]`."""


class Schedule(Part):
    """The learning rate as a function of the step."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """The shape after the warmup."""
    warmup_steps: Natural = 0
    """Steps over which the rate rises linearly from 0 to `lr`."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the schedule ends, after the last step, as a fraction of `lr`; not for `constant`."""


class Evaluate(Part):
    """Evaluation on the split `val`."""

    every: Annotated[Every, interval("steps", "epochs")] | None = None
    """`500 steps` or `1 epochs`. Default: at the end of each epoch if `epochs` is set. Always at
    the last step as well."""
    metric: Line = "loss"
    """The metric that decides which checkpoint is the best one. Each task has its `loss`; all but
    `regression`, `language_modeling` and `model` have `accuracy`, `language_modeling` has
    `perplexity`, a `model` what scalars it returns. Or one that `metrics` may name."""
    metrics: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """Further metrics, by torchmetrics over the whole split, each sample once, whatever the batch
    and the number of processes. Of classes: `f1`, `precision`, `recall` (means over classes),
    `f1_micro`, `f1_weighted`, `auroc` and `average_precision` (each class against the rest, the
    mean of those that have both), `top5` or another number. Of labels (`multi_label`): the same
    but for `top5`. Of `segmentation`: `miou` and those of classes that need no ranking. Of numbers
    (`regression`): `mae`, `mse`, `rmse` over all of them, `r2` (the mean over outputs). A `model`
    has all of these, if it returns `preds` and `target` beside its loss while it is evaluated."""
    mode: Literal["min", "max"] | None = None
    """Whether less or more of the metric is better. Default: as its name tells, `min` for losses
    and errors, `max` for accuracies and the like."""
    patience: Count | None = None
    """Stop early: the run ends, finished, after so many evaluations in a row of which none was
    better than the best. Default: it goes to its last step."""
    batch: Count | None = None
    """Samples per forward pass and process. Default: the micro-batch."""

    @property
    def better(self) -> Literal["min", "max"]:
        """`mode`, or what the metric's name tells."""
        return self.mode or better(self.metric) or "min"


class Train(Part):
    """What changes the mathematics, and how it is computed."""

    steps: Count | None = None
    """Optimizer steps. Exactly one of `steps` and `epochs` is given; a larger number later
    continues the run."""
    epochs: Count | None = None
    """Passes over the split `train`."""
    global_batch: Count
    """Samples per optimizer step over all processes together. It stays the same on every
    machine."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Samples per forward pass and process. It divides `global_batch`; gradients are accumulated.
    `auto` finds the largest that fits the first machine's memory and is then kept."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward; weights and optimizer stay in fp32. `fp32` keeps all of
    its 24 significant bits on GPUs too, unless `tf32` allows less."""
    tf32: bool = False
    """Let GPUs from Ampere on multiply numbers of fp32 as TF32, with 11 significant bits, in matrix
    products and convolutions: several times as fast. Runs keep their ids; a run that changes it
    says from which step on bits differ."""
    optimizer: Optimizer = default({})
    """The optimizer and the learning rate."""
    schedule: Schedule = default({})
    """The learning rate over time."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the whole gradient. Default: not clipped."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Initial weights, the data's order and all randomness follow from it."""
    deterministic: bool = True
    """Same machine, same bits: deterministic kernels only. `false` may be faster."""
    reduction: Literal["fast", "exact"] = "fast"
    """`exact` makes the result independent of the number of processes to the last bit (powers of
    two), running statistics of BatchNorm included, for log2(micro-batches per process) + 1
    gradients of memory."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` spreads weights, gradients and optimizer state over the processes."""
    gather: Literal["fp32", "bf16"] = "fp32"
    """With `sharding: fsdp`, in which precision a layer's weights are gathered and computed with.
    `bf16` halves traffic and memory; the weights that are trained, sums of gradients and the
    optimizer stay in fp32."""
    accumulate: Literal["sharded", "whole"] = "sharded"
    """With `sharding: fsdp`, where the gradients of a process's micro-batches add up. `whole` sums
    over the processes once a step instead of after each one, and takes the memory of a whole
    gradient on each process."""
    compile: bool = False
    """Compile the model's call with `torch.compile`, one graph per shape of a whole batch; short
    batches are computed as they are."""
    activation_checkpointing: bool = False
    """Recompute activations in backward: less memory, more time."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved
    as well. Default: none."""
    evaluate: Evaluate = default({})
    """Evaluation on the split `val`."""
    export: Literal["last", "best"] = "last"
    """Which weights become the run's model: those of the last step, or of the best evaluated one by
    `evaluate.metric`, which is then saved as soon as it is known."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Worker processes per training process that load data. 0 loads in the training process."""
    log_every: Count = 1
    """Steps between two logged points."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a global batch is cut into; with `auto` the most there can be."""
        return (
            self.global_batch
            if self.micro_batch == "auto"
            else self.global_batch // self.micro_batch
        )


class Checkpointing(Part):
    """Where the state goes, how often, and what is kept."""

    store: Annotated[Address, Parsed(read_address, **LINE)] = default("local")
    """`local` (`runs/` of the project, or `$XRUN_HOME`), a path, `hub` (a private repository of
    yours), `hub://owner/name`, `hub-bucket://owner/name`, or a bucket: `s3://bucket/prefix`,
    `gs://bucket/prefix`, `az://container/prefix`, below which each run has a folder of its id.
    A bucket's credentials are environment variables of the usual names (`AWS_ACCESS_KEY_ID`,
    `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, ...; keys for
    machines elsewhere go into `secrets`), else the machine's identity."""
    team: Line | None = None
    """Whose the run is: everybody whose recipe names the same team goes on with it, and others are
    refused. Default: the user who launches it, on the Hub the token's."""
    every: Annotated[Every, interval("auto", "seconds", "steps")] = default("auto")
    """`10m`, `90s`, `2h` or `500 steps`. `auto` weighs the measured time of a save, and what a
    cloud bills for what it sends, against the rate of preemptions."""
    keep: Annotated[int, Field(ge=2, le=10_000)] = 2
    """Newest checkpoints that are kept; at least 2, so that a damaged one has a predecessor."""
    keep_every: Annotated[Every, interval("steps")] | None = None
    """Checkpoints at multiples of this are kept for ever, for instance `10000 steps`. Default:
    none."""

    @property
    def durable(self) -> bool:
        """Whether checkpoints outlive the machine."""
        return self.store.durable


class WandbTracking(Part):
    """Weights & Biases; needs `WANDB_API_KEY` or `wandb login`."""

    project: Line
    """The project there."""
    entity: Line | None = None
    """The team or user. Default: yours."""
    tags: Annotated[tuple[Line, ...], Field(strict=False)] = ()
    """Tags of the run."""
    mode: Literal["online", "offline"] = "online"
    """`offline` keeps everything in the run's folder for `xrun sync`."""


class TensorboardTracking(Part):
    """TensorBoard's event files, the same points as `metrics.jsonl`. `true` is short for `{}`. The
    machine needs the library (`pip install 'xrun[tensorboard]'`, in a cloud `requirements:
    [tensorboard]`); `xrun sync RUN` writes them here, of a run on a cloud too."""

    folder: Line | None = None
    """Where a folder with the run's id is put; relative to the project. Default: `tensorboard` in
    the run's own folder (`tensorboard --logdir runs`)."""


def read_switch(value: Any) -> Any:
    """`tensorboard: true` is `tensorboard: {}`."""
    return ({} if value else None) if isinstance(value, bool) else value


class TrackioTracking(Part):
    """Refused: xrun sends nothing to Trackio. Recipes that name it can still be read."""

    project: Line
    """The project there."""


class Tracking(Part):
    """Trackers besides `metrics.jsonl`, which is always written."""

    wandb: WandbTracking | None = None
    """Weights & Biases. Default: off."""
    tensorboard: Annotated[TensorboardTracking | None, Before(read_switch)] = None
    """TensorBoard. Default: off."""
    trackio: TrackioTracking | None = None
    """Refused; use one of the others."""


class Budget(Part):
    """Limits in dollars and hours. What has spent them saves and stops."""

    usd: Positive | None = None
    """US dollars. Default: no limit."""
    hours: Positive | None = None
    """Hours of machine time. Default: no limit."""


class Alerts(Part):
    """Who is told, beside the log, of what happens to the run: Slack, Discord, e-mail, ntfy,
    webhooks and a hundred others, by apprise (`pip install 'xrun[alerts]'`, machines of clouds
    bring it themselves). Each event is told once, however many nodes or restarts there are; a
    server that does not answer costs the training nothing. docs/alerts.md has addresses to start
    from; `xrun alert RECIPE --test` sends one to each."""

    to: Annotated[
        tuple[Annotated[SecretName, Before(addresses_go_by_name)], ...],
        Field(strict=False, min_length=1),
    ]
    """Names of environment variables that hold apprise's addresses (`slack://...`,
    `mailtos://...`, `jsons://...`). They are secrets: their values go along from your machine
    without being written anywhere."""
    on: Annotated[
        tuple[
            Literal[
                "started",
                "preempted",
                "recovered",
                "stalled",
                "budget",
                "finished",
                "failed",
            ],
            ...,
        ],
        Field(strict=False, min_length=1),
    ] = default(["started", "preempted", "recovered", "stalled", "budget", "finished", "failed"])
    """What is told: a command's first step (`started`); that the machine goes away (`preempted`,
    where its cloud says so before); that another attempt goes on (`recovered`, after a machine that
    went without a word too); ranks without a sign of life, and no machines for longer than
    `hardware.max_wait` (`stalled`); a spent `budget`; the end
    (`finished`, `failed`). What a person asks for at a terminal is not told. Default: all."""


class Parameter(Part):
    """What one key of the recipe is in the trials: a list, or a range from `min` to `max`. A list
    is short for `{values: LIST}`."""

    values: Annotated[tuple[Any, ...], Field(strict=False)] = ()
    """The values, each once. `null` is the key's default."""
    min: int | float | None = None
    """Where a range begins. Of two whole numbers it has whole numbers only."""
    max: int | float | None = None
    """Where a range ends; it is one of its values."""
    log: bool = False
    """Evenly in factors instead of differences: as many trials from 1e-4 to 1e-3 as from 1e-3 to
    1e-2."""
    points: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """So many values of the range, both ends among them; a grid needs it. Default: any value,
    rounded to six digits."""

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """Its values, in order; None for a range of any values."""
        if self.values or self.points is None:
            return self.values or None
        last = self.points - 1
        return tuple(dict.fromkeys(self.at(place / last) for place in range(self.points)))

    def at(self, share: float) -> int | float:
        """The value of a range this far on the way, from 0 to 1. It is rounded to six digits: what
        people read is what is computed, and no machine's logarithm shows in it."""
        low, high = self.min or 0, self.max or 0
        if share in (0, 1):
            return high if share else low
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        whole = isinstance(low, int) and isinstance(high, int)
        return round(value) if whole else self.rounded(value)

    def rounded(self, value: float) -> float:
        """A value of a range to six digits, inside of it."""
        return min(max(float(f"{value:.6g}"), self.min or 0.0), self.max or 0.0)

    def checked(self) -> Self:
        if bool(self.values) == (self.min is not None or self.max is not None):
            raise PydanticCustomError("sentence", "must be a list of values, or `min` and `max`")
        if self.values and (self.log or self.points):
            raise PydanticCustomError("sentence", "`log` and `points` are for a range")
        if not self.values and (self.min is None or self.max is None or self.min >= self.max):
            raise PydanticCustomError("sentence", "must have a `min` that is less than its `max`")
        if self.log and (self.min or 0) <= 0:
            raise PydanticCustomError("sentence", "must begin above 0 with `log: true`")
        if self.points and len(self.choices or ()) < self.points:
            raise PydanticCustomError("sentence", "has fewer different numbers than `points`")
        return self


def read_parameter(value: Any) -> Any:
    """`lr: [1e-3, 3e-3]` is `lr: {values: [1e-3, 3e-3]}`."""
    if not isinstance(value, list | tuple | dict | Parameter):
        hint = {"hint": "Write `[1e-3, 3e-3]` or `{min: 1e-4, max: 1e-2, log: true, points: 5}`."}
        raise PydanticCustomError("sentence", "must be a list or a range", hint)
    return {"values": value} if isinstance(value, list | tuple) else value


class EarlyStop(Part):
    """Trials that are behind end early. Each trial has its full length from the start, which
    schedules depend on: a rung is a pause, after `steps / reduction`, `steps / reduction^2`, ...,
    each at the next evaluation. A trial that goes on is to the last bit the run without a sweep."""

    method: Literal["halving", "asha"]
    """`halving` decides once a rung is full, from all of its results (of equal ones the trial with
    the smaller number is better): the same trials go on, whatever was preempted, repeated or run in
    another order. `asha` waits for nobody: a trial goes on if it is among the best of those that
    have come to the rung before it. Each decision is made once and stays, and other timings may
    keep other trials."""
    rungs: Annotated[int, Field(ge=1, le=20)]
    """Pauses before the end."""
    reduction: Annotated[int, Field(ge=2, le=1000)] | Annotated[float, Field(ge=1.1, le=1000)] = 3
    """One of so many goes on at each rung, by `halving` rounded up; at least one trial does. A
    small one with more rungs, such as `rungs: 5, reduction: 1.5`, loses the best trial less often,
    for more steps."""

    @property
    def parts(self) -> tuple[float, ...]:
        """Of how many parts of a trial's steps the first is done at each rung, from the first rung
        on. Multiplied one by one: a power may differ in its last bit from machine to machine."""
        return tuple(math.prod([self.reduction] * power) for power in range(self.rungs, 0, -1))


class Sweep(Part):
    """Many runs of this recipe, the trials, each with other values of some keys. A trial is a run
    like any other, by the id that the recipe with its values has."""

    parameters: dict[Line, Annotated[Parameter, Before(read_parameter)]]
    """Dotted key -> its values: `train.optimizer.lr: [1e-3, 3e-3]`. Any key that a run's id follows
    from; others would give two trials one id."""
    method: Literal["grid", "random", "bayes"] = "grid"
    """`grid`: every combination, the last key fastest. `random`: `max_trials` of them, drawn by
    `train.seed`. `bayes`: `max_trials` of them, each proposed by Optuna from what those before it
    have come to (after ten that are drawn); a proposal is recorded before its trial starts."""
    metric: Line | None = None
    """What decides: a metric of the evaluation. Under `train.export: best` a trial's best value
    counts, else its newest. Default: `train.evaluate.metric`."""
    mode: Literal["min", "max"] | None = None
    """Whether less or more of it is better. Default: as its name tells."""
    max_trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Trials that `random` and `bayes` make; for a grid the most that it may have. Default: 10,000
    of a grid."""
    parallel: Annotated[int, Field(ge=1, le=1000)] = 1
    """Trials that run at a time."""
    pool: Annotated[int, Field(ge=1, le=1000)] | None = None
    """On clouds: so many machines (or groups of nodes) stay until all trials are done, and each
    trial is handed to one that is free, in place of machines of its own that have to be set up.
    They cost also while they wait for a trial. Not more than `parallel`."""
    stop: EarlyStop | None = None
    """Trials that end early. Default: each goes to its end."""
    budget: Budget = default({})
    """Limits over all trials together; `budget` of the recipe is each trial's own."""


class FileSource(Part):
    """Where the data of one path come from. A text is short for `{source: TEXT}`."""

    source: Annotated[Location, Parsed(read_location, **LINE)] | None = None
    """A file or a folder here, or a bucket or a part of one: `s3://`, `gs://`, `r2://`,
    `https://ACCOUNT.blob.core.windows.net/CONTAINER`, `hf://`, `cos://`, `oci://`, `nebius://`, `cw://`,
    `vastdata://`. The machine reads it with the credentials that SkyPilot has for that cloud."""
    volume: Line | None = None
    """In place of `source`: a volume of SkyPilot's by its name (`sky volumes ls`), which is
    attached. It binds the run to the place where the volume is."""
    mode: Literal["COPY", "MOUNT", "MOUNT_CACHED"] = "COPY"
    """How a bucket gets there: `COPY` downloads it to each new machine's disk before the attempt;
    `MOUNT` reads and writes the bucket itself, over the network; `MOUNT_CACHED` does so with a
    cache on the disk, and sends what is written later. The last two take whole buckets."""

    def checked(self) -> Self:
        if (self.source is None) == (self.volume is None):
            raise PydanticCustomError("sentence", "must hold one of `source` and `volume`")
        if self.mode != "COPY" and (self.source is None or not self.source.scheme):
            hint = {"hint": "Remove `mode`."}
            raise PydanticCustomError("sentence", "`mode` is for a bucket", hint)
        if self.mode != "COPY" and self.source is not None and not self.source.is_whole:
            what = f"`mode: {self.mode}` takes a whole bucket, and this is a part of one"
            hint = {"hint": "Use `mode: COPY`, or name the bucket alone.", "what": what}
            raise PydanticCustomError("sentence", "{what}", hint)
        return self


class Recipe(Part):
    """One training run: the model, the data, how it is trained, and on which machines."""

    version: Literal[1] = 1
    """The version of this schema."""
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=28)]
    """What the run is called: lower-case letters, digits and `-`, at most 28 characters. A run's id
    is this and 8 hex digits."""
    extends: Line | None = None
    """Another recipe, relative to this file, that this one changes."""
    model: ModelRef
    """What is trained."""
    dataset: DatasetRef
    """What it is trained on."""
    task: Task
    """How the loss is computed: `classification` and `segmentation` cross entropy over classes,
    `language_modeling` over next tokens, `token_classification` over the classes of tokens,
    `multi_label` binary cross entropy of each label, `regression` squared error, `model` by the
    model itself."""
    hardware: Annotated[Hardware, Before(read_shorthand)] = default("local")
    """Where it runs. Default: here, with one process."""
    train: Train
    """How it is trained."""
    checkpoint: Checkpointing = default({})
    """What survives."""
    publish: Annotated[Address, Parsed(read_repository, **LINE)] | None = None
    """Where the finished model goes, wherever the state is: `hub` (a private repository of yours,
    named like the run) or `hub://owner/name`, which is made private if it is not there. A model
    that cannot be published ends no run: `xrun export-model RUN` tries again. Default: beside the
    state where that is far away, else the run's folder only."""
    tracking: Tracking = default({})
    """Who is told."""
    budget: Budget = default({})
    """Limits over all attempts of the run together. Default: none."""
    alerts: Alerts | None = None
    """Who is told when something happens. Default: nobody."""
    sweep: Sweep | None = None
    """Many runs of this recipe with other values. Default: one run."""
    requirements: Annotated[tuple[Line, ...], Field(strict=False)] | Line = ()
    """Libraries beside those that xrun brings: a list such as `[einops, "timm>=1.0"]`, the path of
    a requirements.txt in the project, `.` for the `dependencies` of the project's pyproject.toml,
    or `.[train]` for its extra `train` as well. A launch fixes them to exact versions and hashes,
    which the run keeps, and each machine installs them once; on this machine you install them."""
    publish_code: bool = False
    """Whether the files of the project's own that the model and the dataset consist of lie beside
    the exported model, as they were trained with, so that `xrun reproduce` needs nothing else.
    Default: only the project's commit and its remote are named there."""
    setup: Text | None = None
    """Shell commands for what is no Python library. They run once on each new machine, after the
    libraries and before the attempt: with `bash -e`, in the home folder, the run's Python first in
    PATH, the network and the recipe's `secrets` at hand. Where the network fails they run again
    from the beginning, so each may be repeated; any other failure ends the run."""
    env: dict[EnvName, str] = default({})
    """Environment variables of the training processes."""
    secrets: Annotated[
        tuple[Annotated[SecretName, Before(secrets_go_by_name)], ...], Field(strict=False)
    ] = ()
    """Names of environment variables whose values go along from your machine without being written
    anywhere."""
    files: dict[Line, Annotated[FileSource, Before(read_source)]] = default({})
    """Data on machines of clouds: path there -> a path here, a bucket (`s3://BUCKET/PREFIX`), or
    the mapping below. A path here begins at the project's folder, a path there at the home folder.
    Nothing is put anywhere on this machine: a local run says which of these paths it does not have.
    What is downloaded while training (`HF_HOME`) is on the machine's disk, and gone with it; what
    `datasets` prepares of it is kept beside the run's state where that is in a bucket."""
