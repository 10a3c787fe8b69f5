"""Tries that train: xrun and the oracle on the same samples, losses and weights compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from support.running import Done, curve
from xrun.run.folder import RunFolder, runs_in

from .cases import Case, recipe_of
from .lives import Wrong, has_traceback, last_line, no_traceback, project, train
from .oracle import Answer, answer

REFUSALS = (2, 6)
CLOSE = 2e-4
"""Relative difference that another order of sums may make in a dozen small steps."""


def play(case: Case, folder: Path) -> None:
    """Train the case by xrun, under its kills, and by hand.

    Raises:
        Wrong: another outcome, another loss, another weight, a traceback.
    """
    recipe, done = _by_xrun(case, folder)
    try:
        right = answer(case)
        if reason := refused(case):
            raise TypeError(reason)
    except Exception as error:  # a component may raise anything
        _refused(done, error)
        return
    no_traceback(done, "training", [0])
    run = runs_in(recipe.parent.parent / "runs")[0]
    for log in [] if case["kills"] else run.path.glob("logs/*/rank*.log"):
        if has_traceback(text := log.read_text(errors="replace")):
            raise Wrong(f"{log.name} of a run that went well has a traceback: {last_line(text)}")
    _compare(run, right, exact=case.get("processes", 1) == 1)


def _by_xrun(case: Case, folder: Path) -> tuple[Path, Done]:
    recipe, both = project(folder, recipe_of(case)), case.get("processes", 1) > 1
    trap = folder / "trap.json"
    if case["kills"]:
        trap.write_text(json.dumps({"calls": case["kills"], "rank": 0, "both": both}))
    done = train(recipe, processes=case.get("processes", 1))
    trap.unlink(missing_ok=True)
    return recipe, done


def refused(case: Case) -> str:
    """Why xrun trains no such case, although torch does; "" if it does."""
    several = case.get("processes", 1) > 1 and case["train"].get("reduction") != "exact"
    if "ownstate" in case["blocks"]:
        return "no checkpoint can hold what its state_dict leaves out"
    return "torch sums wrongly" if several and "sparse" in case["blocks"] else ""


def _refused(done: Done, error: Exception) -> None:
    """What torch cannot do either is refused in one sentence."""
    no_traceback(
        done, f"what torch refuses ({type(error).__name__}: {last_line(str(error))})", REFUSALS
    )
    if not done.err.strip():
        raise Wrong("what torch refuses is refused without a word")


def _compare(run: RunFolder, right: Answer, exact: bool) -> None:
    got = curve(run)
    if sorted(got) != sorted(right.losses):
        raise Wrong(f"the log has the steps {sorted(got)}, not {sorted(right.losses)}")
    for step, loss in right.losses.items():
        _same(f"the loss of step {step}", got[step]["train/loss"], loss, exact)
    evaluated = {p["step"]: p["val/loss"] for p in run.points() if "val/loss" in p}
    if sorted(evaluated) != sorted(right.evaluated):
        raise Wrong(f"evaluated at {sorted(evaluated)}, not at {sorted(right.evaluated)}")
    for step, loss in right.evaluated.items():
        _same(f"the evaluation of step {step}", evaluated[step], loss, exact)
    _compare_weights(load_file(run.model / "model.safetensors"), right.weights, exact)


def _same(what: str, got: float, right: float, exact: bool) -> None:
    if got != right and (exact or not math.isclose(got, right, rel_tol=CLOSE, abs_tol=CLOSE)):
        raise Wrong(f"{what} is {got!r}, not {right!r}")


def _compare_weights(got: dict[str, Tensor], right: dict[str, Any], exact: bool) -> None:
    right = {name: as_saved(value) for name, value in right.items()}
    if more := sorted(set(got) - set(right)):
        raise Wrong(f"the weights have {more[0]}, which the model has not")
    kept = {value.untyped_storage().data_ptr() for name, value in right.items() if name in got}
    for name, value in right.items():
        if name in got:
            _compare_tensor(name, got[name], value, exact)
        elif value.numel() and value.untyped_storage().data_ptr() not in kept:
            raise Wrong(f"the weights lack {name}")


def _compare_tensor(name: str, got: Tensor, right: Tensor, exact: bool) -> None:
    if got.shape != right.shape or got.dtype != right.dtype:
        raise Wrong(
            f"{name} is {got.dtype} {tuple(got.shape)}, not {right.dtype} {tuple(right.shape)}"
        )
    equal = torch.equal(got, right)
    if not equal and not exact and right.is_floating_point():
        equal = torch.allclose(got, right, rtol=CLOSE, atol=CLOSE)
    if not equal:
        apart = (got.to(torch.complex128) - right.to(torch.complex128)).abs().max()
        raise Wrong(f"{name} is not what it should be: {float(apart):.3g} apart at most")


def as_saved(value: Tensor) -> Tensor:
    """Complex numbers of twice the length as pairs, which is how a file can have them."""
    value = value.detach()
    return torch.view_as_real(value) if value.dtype == torch.complex128 else value
