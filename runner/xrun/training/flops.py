"""What a model computes for one sample, counted by torch.

Model FLOPs as "model FLOPs utilization" (Chowdhery et al. 2022, appendix B) has them: what forward
and backward need by themselves, with nothing that is computed again to save memory. The products of
the forward pass are counted as they are called (matrix products, convolutions, attention), and
backward takes as much for the gradients of activations and as much again for those of weights, in
proportion to the weights that are trained.
"""

from __future__ import annotations

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.batch import Batch
from .modes import Modes
from .objective import Objective

log = logging.getLogger("xrun")


def sample_flops(objective: Objective, batch: Batch, samples: int) -> float:
    """Of a batch of so many samples, forward and backward, by one forward pass in evaluation mode;
    0.0 where that does not work, for nobody's training hangs on it."""
    training, modes, whole = objective.training, Modes.of(objective), objective.whole
    objective.whole = False  # a compiled call could not be counted
    objective.eval()
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            objective(batch, samples)
    except Exception as error:  # the step itself will say what is wrong, if something is
        log.info("MFU is not known: counting FLOPs failed with %s.", type(error).__name__)
        return 0.0
    finally:
        objective.train(training)
        modes.restore()
        objective.whole = whole
    return counter.get_total_flops() * (2 + _trained_share(objective)) / samples


def _trained_share(objective: Objective) -> float:
    """Of the weights, how many are trained."""
    parameters = list(objective.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained / max(1, sum(p.numel() for p in parameters))
