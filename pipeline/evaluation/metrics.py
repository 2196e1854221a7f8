"""Retrieval metrics from ranks, each over N = the number of queries. Always N, whatever ties there are.

    recall_metrics(ranks [N], "t2v")  ->  {"t2v_r1": 0.501, "t2v_r5": ..., "t2v_mdr": 1.0, "t2v_mnr": ...}

Recalls are fractions in 0..1; a rank counts for R@k when it is at most k.
"""

import math

import numpy as np
from numpy.typing import NDArray

RECALL_LEVELS = (1, 5, 10)
RISING = tuple(
    f"{direction}_{name}" for direction in ("t2v", "v2t") for name in (*(f"r{k}" for k in RECALL_LEVELS), "gm")
)
"""The metrics of a set of which higher is better, beside the accuracies of its minimal pairs."""


def recall_metrics(ranks: NDArray[np.float64], direction: str) -> dict[str, float]:
    """R@1, R@5, R@10, their geometric mean, median and mean rank of one direction ("t2v" or "v2t")."""
    recalls = {f"{direction}_r{k}": float(np.mean(ranks <= k)) for k in RECALL_LEVELS}
    return {
        **recalls,
        f"{direction}_gm": math.prod(recalls.values()) ** (1 / len(recalls)),
        f"{direction}_mdr": float(np.median(ranks)),
        f"{direction}_mnr": float(np.mean(ranks)),
    }


def chance_metrics(num_positives: NDArray[np.int64], num_items: int, direction: str) -> dict[str, float]:
    """The same metrics for a ranking at random: `num_positives` [N] of `num_items` are right for each query.

    The best of m positives among G items has mean rank (G+1)/(m+1), and misses the first k with probability
    C(G-k, m) / C(G, m).
    """
    values, counts = np.unique(num_positives, return_counts=True)
    weights = counts / counts.sum()
    recalls = {
        f"{direction}_r{k}": float(weights @ [1 - _miss(int(m), num_items, k) for m in values]) for k in RECALL_LEVELS
    }
    return {
        **recalls,
        f"{direction}_gm": math.prod(recalls.values()) ** (1 / len(recalls)),
        f"{direction}_mdr": _median_rank(values, weights, num_items),
        f"{direction}_mnr": float(weights @ ((num_items + 1) / (values + 1))),
    }


def _miss(num_positives: int, num_items: int, k: int) -> float:
    """Probability that none of the positives is among the first k of a random order."""
    return math.prod(max(num_items - k - i, 0) / (num_items - i) for i in range(num_positives))


def _median_rank(values: NDArray[np.int64], weights: NDArray[np.float64], num_items: int) -> float:
    """The middle of the distribution of a random rank: halfway where the probability 1/2 is met exactly."""
    if values.tolist() == [1]:
        return (num_items + 1) / 2
    low, high = 1, num_items
    while low < high:
        middle = (low + high) // 2
        if weights @ [1 - _miss(int(m), num_items, middle) for m in values] >= 0.5:
            high = middle
        else:
            low = middle + 1
    return float(low)
