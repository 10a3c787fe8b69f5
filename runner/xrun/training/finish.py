"""The end of a run that is trained: which weights become its model, and what the record says where
that fails."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from ..bar import bar
from ..checkpoint import restore
from ..checkpoint.lease import Lease
from ..errors import ExportError, LeaseLost, PublishError, StoreError, XrunError
from ..recipe.schema import Evaluate
from ..run.record import Finished
from .adapter import final_of
from .companions import companions_of
from .contract import in_short
from .evaluate import is_chosen_by
from .export import export, full_copy, publish
from .failure import is_of_the_machine
from .instances import revision_of
from .start import taken

if TYPE_CHECKING:
    from ..run.checkpoint import Checkpoint
    from .build import Model, Setting

log = logging.getLogger("xrun")


def finish(
    setting: Setting,
    model: Model,
    lease: Lease,
    rebuild: Callable[..., nn.Module],
    steps_per_epoch: int | None,
    early: Mapping[str, Any] = MappingProxyType({}),
) -> Finished | None:
    """Make the final weights, the averaged ones where there are; what the record says of them on
    the first process. The last state is committed; `rebuild` is `build_started` for this setting,
    and `early` is what the record says of a run that ended before its last step.

    Raises:
        ExportError: the model cannot be made, or (`PublishError`) not be published; the record has
            it, and that the run is finished.
        XrunError: it cannot now; the record has it, and the next attempt tries again.
    """
    split, state = setting.splits["train"], model.state
    finished = Finished(
        step=state.step,
        steps_per_epoch=steps_per_epoch,
        samples=state.samples,
        metrics=setting.folder.metrics_now(),
        data_revision=revision_of(split),
        **early,
    )
    with _outlived(setting, lease, finished):
        step = state.step
        if setting.train.export == "best":
            step = take_best(setting, model, lease, rebuild)
        final = model.objective.model if model.averaged is None else model.averaged
        whole: nn.Module | None = final
        if setting.sharded:
            whole = full_copy(final, rebuild, setting.folder.path)
        if setting.world.rank or whole is None:
            return None
        # The card tells of the exported weights, the record of the whole run.
        own = replace(finished, exported_step=step, metrics=setting.folder.metrics_now(step))
        companions = companions_of(split, setting.recipe)
        attempts = lease.record.attempts
        whole = final_of(whole, setting.recipe.model, functools.partial(rebuild, packed=False))
        made = export(setting.plan, whole, own, attempts, companions, lease.locked())
    made = replace(made, metrics=finished.metrics)
    shown = bar(f"Publishing the model at {setting.plan.model_address}")
    with (
        _outlived(setting, lease, made),
        shown if setting.plan.model_address else contextlib.nullcontext(),
    ):
        return publish(setting.plan, lease.attempt, setting.store, made)


def take_best(
    setting: Setting, model: Model, lease: Lease, rebuild: Callable[..., nn.Module]
) -> int:
    """Put the weights of the best committed checkpoint into the model; returns their step. The last
    ones stay where none of the committed ones was the best.

    Every process takes part. Raises what `Store.fetch` raises.
    """
    (found,) = setting.world.from_first(lambda: (_best(lease, setting.train.evaluate),))
    if found is None or found.step == model.state.step:
        return model.state.step
    share = setting.start.share
    paths = taken(setting.store, share, setting.world, found)
    restore.load_weights(model.state, found, paths, rebuild, share)
    return found.step


def _best(lease: Lease, evaluate: Evaluate) -> Checkpoint | None:
    """The best checkpoint of those that are committed, by the recipe's metric."""
    newest = lease.record.newest
    best = newest.best_step if newest else None
    bests = [each for each in lease.record.checkpoints if each.best_step == each.step]
    kept = [each for each in bests if is_chosen_by(each.numbers["best"], evaluate)]
    if not kept or kept[-1].step != best:
        log.warning(
            "train.export: the best state%s is not among the committed ones; %s becomes the model.",
            "" if best is None else f", step {best},",
            f"the best of those, step {kept[-1].step}," if kept else "the last one",
        )
    return kept[-1] if kept else None


@contextlib.contextmanager
def _outlived(setting: Setting, lease: Lease, finished: Finished) -> Iterator[None]:
    """What fails in here leaves a run that is finished; a rehearsal wants the cause alone."""
    try:
        yield
    except LeaseLost:
        raise
    except Exception as error:  # a model's own code may raise anything
        passes = _passes(error)
        why, hint, code = _told(setting, error)
        if setting.world.rank == 0:
            failed = replace(finished, export_failed=why, export_again=passes or None)
            with contextlib.suppress(StoreError):  # then the next attempt comes here again
                lease.finish(failed)
        if passes:
            raise
        if not setting.plan.rehearsal:
            what = _what(setting, finished)
            why = f"Training is finished, and step {finished.step} is committed; {what}: {why}"
            hint = (
                f"{hint} Fix the cause, then type `xrun export-model {setting.plan.run}`.".strip()
            )
        kind = PublishError if finished.is_made else ExportError
        raise kind(why, hint, code) from error


def _what(setting: Setting, finished: Finished) -> str:
    if not finished.is_made:
        return "the export failed"
    return f"the model is made, and is not published at {setting.plan.model_address}"


def _passes(error: Exception) -> bool:
    """Whether it may not come again, here or on another machine."""
    if isinstance(error, XrunError):
        return error.again
    return is_of_the_machine(error)


def _told(setting: Setting, error: Exception) -> tuple[str, str, int]:
    """The sentence about a failed export, the way out, and the exit code."""
    if isinstance(error, XrunError):
        return error.message, error.hint, error.exit_code
    return f"{setting.components.model}: {in_short(error)}.", "", ExportError.exit_code
