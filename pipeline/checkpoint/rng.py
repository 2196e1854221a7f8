"""Random states of a rank as a small tensor, so that nothing has to be unpickled: Python, numpy, torch, CUDA.

state = random_state()              # uint8 [n], JSON
set_random_state(state)
"""

import json
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.dist import rank


def seed_everything(seed: int, rank: int) -> None:
    """Start the random generators of this rank; ranks differ, as their samples do."""
    random.seed(f"{seed}/{rank}")
    np.random.seed((seed * 1_000_003 + rank) % 2**32)  # noqa: NPY002 - third parties draw from the global generator
    torch.manual_seed(seed * 1_000_003 + rank)


def random_state() -> Tensor:
    """All random states of this process as one uint8 vector."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - as above
    facts: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": torch.cuda.get_rng_state().numpy().tobytes().hex() if torch.cuda.is_available() else None,
    }
    return torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)


def set_random_state(state: Tensor) -> None:
    """Put back what `random_state` returned."""
    facts = json.loads(state.numpy().tobytes())
    version, words, gauss = facts["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = facts["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002 - as above
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(facts["torch"]), dtype=torch.uint8))
    if facts["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.frombuffer(bytearray.fromhex(facts["cuda"]), dtype=torch.uint8))


def rank_name(number: int | None = None) -> str:
    """Key of a rank's state."""
    return f"rank_{rank() if number is None else number:05d}"
