"""How sure a recall is: percentile bootstrap over videos (captions of one video are drawn together).

bootstrap_intervals(ranks [N], groups [N], "t2v")  ->  {"t2v_r1": (0.47, 0.53), ...}
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import RECALL_LEVELS

NUM_RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_intervals(
    ranks: NDArray[np.float64], groups: NDArray[np.int64], direction: str, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95% interval of each recall over 1,000 resamples of the groups."""
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    hits = np.stack([np.bincount(group, weights=ranks <= k) for k in RECALL_LEVELS], axis=1)
    rng = np.random.default_rng(seed)
    recalls = np.empty((NUM_RESAMPLES, len(RECALL_LEVELS)))
    for number in range(NUM_RESAMPLES):
        times = np.bincount(rng.integers(0, len(sizes), len(sizes)), minlength=len(sizes))
        recalls[number] = (times @ hits) / (times @ sizes)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(recalls, [tail, 1 - tail], axis=0)
    return {f"{direction}_r{k}": (float(low[column]), float(high[column])) for column, k in enumerate(RECALL_LEVELS)}
