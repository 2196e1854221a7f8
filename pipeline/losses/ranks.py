"""The collectives of the loss: gather and exchange with gradient, sum without. One rank without a process group.

B clips of this rank, N clips of all ranks

ranks = Ranks(group)
features_ND = ranks.gather(features_BD)
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Ranks:
    """This rank among those that share the batch."""

    def __init__(self, group: ProcessGroup | None) -> None:
        alone = not (dist.is_available() and dist.is_initialized())
        self.group = group
        self.count = 1 if alone else dist.get_world_size(group)
        self.rank = 0 if alone else dist.get_rank(group)

    def gather(self, local: Tensor) -> Tensor:
        """[B, ...] of every rank, in rank order, to [N, ...], with gradient."""
        if self.count == 1:
            return local
        gathered: Tensor = _Gather.apply(local, self)
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """Over ranks, without gradient."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def join_log_sum_exps(self, by_column_N: Tensor) -> Tensor:
        """Every rank's log-sum-exps for all clips, [N], to those of this rank's clips over all ranks, [B]."""
        if self.count == 1:
            return by_column_N
        parts_N: Tensor = _Exchange.apply(by_column_N, self)
        return torch.unflatten(parts_N, 0, (self.count, -1)).logsumexp(0)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every rank's loss says about this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: Ranks) -> Tensor:
        """[B, ...] to [N, ...]."""
        ctx.ranks = ranks
        gathered = local.new_empty(ranks.count * len(local), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous(), group=ranks.group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """[N, ...] to [B, ...]."""
        ranks: Ranks = ctx.ranks
        local = gradient.new_empty(len(gradient) // ranks.count, *gradient.shape[1:])
        dist.reduce_scatter_tensor(local, gradient.contiguous(), group=ranks.group)
        return local, None


class _Exchange(torch.autograd.Function):
    """The r-th part of this rank's vector goes to rank r; its gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, ranks: Ranks) -> Tensor:
        """[N] to [N]: one part from every rank, in rank order."""
        ctx.ranks = ranks
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent.contiguous(), group=ranks.group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """[N] to [N]."""
        returned = torch.empty_like(gradient)
        dist.all_to_all_single(returned, gradient.contiguous(), group=ctx.ranks.group)
        return returned, None
