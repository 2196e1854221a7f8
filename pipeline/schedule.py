"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore.

    learning_rate(step, total_steps=20, peak=1e-3, shape="cosine", warmup=0.1, floor=1e-8)

Steps count from 1: the first update of the weights uses `learning_rate(1)`.
"""

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def learning_rate(step: int, *, total_steps: int, peak: float, shape: Shape, warmup: float, floor: float) -> float:
    """The learning rate of `step`: a linear rise over the first w = int(warmup * total_steps) steps, then `shape`.

    The official rule: a step s < w has s / w of `peak`; later ones follow `shape` at (s - w) / (total_steps - w), from
    the peak at step w to 0 at the last step, and stay there. `floor` replaces a rate of 0 or less, and no other: a rate
    of 0 would still move the optimizer's moments.
    """
    num_warmup = int(warmup * total_steps)
    step = min(step, total_steps)
    factor = step / num_warmup if step < num_warmup else _decay(step - num_warmup, total_steps - num_warmup, shape)
    rate = peak * factor
    return rate if rate > 0 else floor


def _decay(step: int, num_steps: int, shape: Shape) -> float:
    """The share of the peak after `step` of the `num_steps` that follow warm-up; all of it where none follow."""
    progress = step / num_steps if num_steps else 0.0
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if shape == "linear" else 1.0
