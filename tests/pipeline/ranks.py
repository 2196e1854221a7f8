"""Ranks for tests: processes forked from one warm server, since importing torch, DeepSpeed and open_clip takes longer
than most cases.

    with RankPool(2) as pool:
        results = pool.run(case, argument)        # case(argument) on every rank, results in rank order
    process = start_training(["config.yaml"])     # one rank of its own, to be killed

A case is a function of an importable module. What it raises, rank by rank, is raised here.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CASE_LIMIT_S = 240.0


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pipeline.warm"])
    return context


class RankPool:
    """A process group of `world_size` ranks that runs one case after the other."""

    def __init__(self, world_size: int) -> None:
        context = _context()
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        meeting = f"tcp://127.0.0.1:{_free_port()}"
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, meeting, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, case: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`case(*arguments)` on every rank."""
        for pipe in self.pipes:
            pipe.send((case, arguments))
        results, errors = [], []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(CASE_LIMIT_S):
                self.close()
                raise TimeoutError(f"rank {rank} did not answer within {CASE_LIMIT_S} s in {case}{arguments}")
            error, result = pipe.recv()
            results.append(result)
            if error:
                errors.append(f"rank {rank}:\n{error}")
        if errors:
            raise AssertionError("\n".join(errors))
        return results

    def close(self) -> None:
        """End the ranks."""
        for process in self.processes:
            process.kill()
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(rank: int, world_size: int, meeting: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    from pipeline.engine import start_distributed
    from pipeline.engine_config import EngineConfig
    from pipeline.log import quiet

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    with quiet():
        start_distributed(EngineConfig(device="cpu", precision="fp32"))
    while True:
        case, arguments = pipe.recv()
        try:
            pipe.send((None, case(*arguments)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))


def start_training(
    argv: list[str], output: Path, environment: dict[str, str] | None = None, case: Callable[..., int] | None = None
) -> BaseProcess:
    """`python -m pipeline.train argv...` as a process of its own, alone; what it says goes to `output`.

    With `case` (a function of an importable module), that runs in place of pipeline.train.main.
    """
    process: BaseProcess = _context().Process(target=_train, args=(argv, str(output), environment or {}, case))
    process.start()
    return process


def start_ranks(
    argv: list[str], folder: Path, world_size: int, case: Callable[..., int] | None = None
) -> list[BaseProcess]:
    """The same with `world_size` ranks, each a process of its own; rank n says what it says in `folder`/out{n}.txt."""
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return [
        start_training(argv, folder / f"out{rank}.txt", common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, case)
        for rank in range(world_size)
    ]


def _train(argv: list[str], output: str, environment: dict[str, str], case: Callable[..., int] | None) -> None:
    import torch

    from pipeline.errors import run_command
    from pipeline.train import main

    os.environ |= environment
    torch.set_num_threads(1)
    stream = open(output, "a", buffering=1)  # noqa: SIM115 - open to the end: the last word may be a traceback
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    sys.argv = ["train", *argv]
    run_command(case or main)
