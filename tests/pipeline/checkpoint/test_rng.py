"""Random states come back to the last draw."""

import random

import numpy as np
import torch

from pipeline.checkpoint.rng import random_state, seed_everything, set_random_state


def draws() -> tuple[float, float, float, float]:
    # The Gaussian generators of numpy and Python keep a second value: it must be saved as well.
    return random.gauss(0, 1), float(np.random.standard_normal()), torch.rand(1).item(), torch.randn(1).item()  # noqa: NPY002


def test_draws_repeat_after_restoring():
    seed_everything(3, 1)
    draws()
    state = random_state()
    first = [draws() for _ in range(3)]
    draws()
    set_random_state(state)
    assert [draws() for _ in range(3)] == first


def test_ranks_differ():
    seed_everything(3, 0)
    first = draws()
    seed_everything(3, 1)
    assert draws() != first
