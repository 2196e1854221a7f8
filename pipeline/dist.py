"""Rank facts and the few collectives on Python values that a run needs. Without a process group: one rank."""

import os
import resource
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def allow_open_files() -> None:
    """Raise this process's limit of descriptors as far as it may go, for its children too.

    Every group of all ranks takes a descriptor per rank, and a worker keeps a window of shards open: more than 1,024,
    the usual limit, which is there for programs that call select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_initialized() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_initialized() else 1


def local_rank() -> int:
    """This process's number on its node, from LOCAL_RANK (torchrun and our launcher set it)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if is_initialized():
        dist.barrier()


def host_group() -> Any:
    """A gloo group of all ranks with the main group's time limit: for the CPU's own business, also in another thread.

    None without a process group. All ranks.
    """
    if not is_initialized():
        return None
    main = dist.distributed_c10d._get_default_group()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    return dist.new_group(backend="gloo", timeout=main._get_backend(device).options._timeout)


def default_store() -> Any:
    """The key-value store through which the ranks found each other."""
    return dist.distributed_c10d._get_default_store()


def gather_values(value: Value, group: Any = None) -> list[Value]:
    """Every rank's (picklable) `value`, in rank order, on every rank; over the main group unless another is given."""
    if not is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def broadcast_value(value: Value, source: int = 0) -> Value:
    """Rank `source`'s (picklable) `value` on every rank."""
    if not is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]  # type: ignore[no-any-return]


def any_ranks(flags: Sequence[bool], device: torch.device | str = "cpu") -> list[bool]:
    """For each flag whether it is true on at least one rank; the same answer on every rank."""
    if world_size() == 1:  # a GPU would be waited for, to hear what is known
        return list(flags)
    votes = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def share_of(items: Sequence[Value]) -> Sequence[Value]:
    """This rank's contiguous part of `items`: the parts of all ranks, in rank order, are `items`."""
    total, count, mine = len(items), world_size(), rank()
    return items[total * mine // count : total * (mine + 1) // count]
