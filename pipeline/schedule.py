"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore.

    learning_rate(step, total_steps=20, peak=1e-3, shape="cosine", warmup=0.1, floor=1e-8)

Steps count from 1: the first update of the weights uses `learning_rate(1)`.
"""

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def learning_rate(step: int, *, total_steps: int, peak: float, shape: Shape, warmup: float, floor: float) -> float:
    """The learning rate of `step`: a linear rise over the first `warmup` (a fraction) of the run, then `shape` to zero.

    `floor` is absolute and the least value returned, as in the official code (a rate of 0 would still move moments).
    """
    progress = min(step / total_steps, 1.0)
    if progress < warmup:
        return max(peak * progress / warmup, floor)
    after_warmup = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
    if shape == "cosine":
        factor = 0.5 * (1.0 + math.cos(math.pi * after_warmup))
    elif shape == "linear":
        factor = 1.0 - after_warmup
    else:
        factor = 1.0
    return max(peak * factor, floor)
