"""W ranks on this machine, for tests: forked from one server that has imported torch, so that a rank starts at once.

run_ranks(check, 4, tmp_path)      # check(rank, num_ranks, tmp_path) on 4 processes of one gloo group
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

# The last one is what torch loads at the first backward pass.
PRELOADED = ["pytest", "torch.distributed", "pipeline.losses", "torch.fx.experimental.symbolic_shapes"]


def run_ranks(function: Callable[[int, int, Path], None], num_ranks: int, folder: Path) -> None:
    """Call `function(rank, num_ranks, folder)` on every rank; raises what a rank raised."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    mp.start_processes(_run, args=(function, num_ranks, folder), nprocs=num_ranks, start_method="forkserver")


def _run(rank: int, function: Callable[[int, int, Path], None], num_ranks: int, folder: Path) -> None:
    meeting = f"file://{folder}/meeting_{num_ranks}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_ranks)
    try:
        function(rank, num_ranks, folder)
    finally:
        dist.destroy_process_group()
