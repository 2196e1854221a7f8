"""Rank facts and the few collectives on Python values that a run needs. Without a process group: one rank."""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


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


def gather_values(value: Value) -> list[Value]:
    """Every rank's (picklable) `value`, in rank order, on every rank."""
    if not is_initialized():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_value(value: Value, source: int = 0) -> Value:
    """Rank `source`'s (picklable) `value` on every rank."""
    if not is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]  # type: ignore[no-any-return]


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is true on at least one rank; the same answer on every rank."""
    return any_ranks([flag], device)[0]


def any_ranks(flags: Sequence[bool], device: torch.device | str = "cpu") -> list[bool]:
    """`any_rank` for several flags in one collective."""
    if not is_initialized():
        return list(flags)
    votes = torch.tensor([int(flag) for flag in flags], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def share_of(items: Sequence[Value]) -> Sequence[Value]:
    """This rank's contiguous part of `items`: the parts of all ranks, in rank order, are `items`."""
    total, count, mine = len(items), world_size(), rank()
    return items[total * mine // count : total * (mine + 1) // count]
