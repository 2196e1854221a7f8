"""Cross-entropy against many candidates, in blocks of the logit matrix that are computed again in the backward pass.

B rows of this rank, N candidates of all ranks, b rows of a block, D dimensions
rows [B, D], candidates [N, D] -> logits [b, N], one block at a time -> losses [B]

positives = Candidates(features_ND, allowed_N, "positive")
losses_B = cross_entropies(rows_BD, own_B, logit_scale, [positives], block_rows=512)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

Own = Literal["positive", "negative", "excluded"]


@dataclass(frozen=True)
class Candidates:
    """One kind of candidates, of all ranks."""

    features_ND: Tensor
    allowed_N: Tensor
    own: Own
    """What the candidate that belongs to the row's own clip is."""
    prior_N: Tensor | None = None
    """For the dual softmax: the log of the sum over the rows of exp(logit)."""


def cross_entropies(
    rows_BD: Tensor, own_B: Tensor, logit_scale: Tensor, candidates: Sequence[Candidates], *, block_rows: int
) -> Tensor:
    """-log softmax(positive among all candidates) of each row: [B]. `own_B` are the rows' numbers among candidates."""
    block = partial(_block_cross_entropies, [each.own for each in candidates])
    tensors = [tensor for each in candidates for tensor in (each.features_ND, each.allowed_N, each.prior_N)]
    losses_B: Tensor = _Blockwise.apply(block, block_rows, rows_BD, own_B, logit_scale, *tensors)
    return losses_B


def log_sum_exps(
    rows_BD: Tensor, own_B: Tensor, logit_scale: Tensor, candidates: Candidates, *, block_rows: int
) -> Tensor:
    """log sum exp of each row's logits: [B]."""
    tensors = (candidates.features_ND, candidates.allowed_N)
    result_B: Tensor = _Blockwise.apply(_block_log_sum_exps, block_rows, rows_BD, own_B, logit_scale, *tensors)
    return result_B


def _block_cross_entropies(owns: list[Own], rows_bD: Tensor, own_b: Tensor, logit_scale: Tensor, *flat: Any) -> Tensor:
    positive_b, parts = rows_bD.new_zeros(len(rows_bD)), []
    for own, (features_ND, allowed_N, prior_N) in zip(owns, zip(*[iter(flat)] * 3, strict=True), strict=True):
        logits_bN = _logits(rows_bD * logit_scale, own_b, Candidates(features_ND, allowed_N, own, prior_N))
        parts.append(logits_bN.logsumexp(1))
        if own == "positive":
            positive_b = logits_bN.gather(1, own_b.unsqueeze(1)).squeeze(1)
    return torch.stack(parts).logsumexp(0) - positive_b


def _block_log_sum_exps(
    rows_bD: Tensor, own_b: Tensor, logit_scale: Tensor, features_ND: Tensor, allowed_N: Tensor
) -> Tensor:
    return _logits(rows_bD * logit_scale, own_b, Candidates(features_ND, allowed_N, "positive")).logsumexp(1)


def _logits(scaled_bD: Tensor, own_b: Tensor, candidates: Candidates) -> Tensor:
    """One block of the logit matrix, [b, N], what is not allowed pushed to the lowest number.

    The positive itself always stays, so that a row that the caller masks still has a finite loss.
    """
    logits_bN = scaled_bD @ candidates.features_ND.T
    if candidates.prior_N is not None:
        logits_bN = logits_bN * (logits_bN - candidates.prior_N).exp()
    own_b1 = own_b.unsqueeze(1)
    positive_b1 = logits_bN[torch.arange(len(own_b), device=own_b.device), own_b].unsqueeze(1)
    lowest = torch.finfo(logits_bN.dtype).min
    logits_bN.masked_fill_(~candidates.allowed_N, lowest)  # in place, here and below: a block exists once
    if candidates.own == "positive":
        logits_bN.scatter_(1, own_b1, positive_b1)
    elif candidates.own == "excluded":
        logits_bN.scatter_(1, own_b1, lowest)
    return logits_bN


class _Blockwise(torch.autograd.Function):
    """`block(rows_bD, own_b, *shared)` over blocks of rows, joined to [B]; only the inputs are kept for backward.

    torch's checkpoint would do, but each of its calls keeps a graph, and its first one loads the compiler: 6 s.
    """

    @staticmethod
    def forward(
        ctx: Any,
        block: Callable[..., Tensor],
        block_rows: int,
        rows_BD: Tensor,
        own_B: Tensor,
        *shared: Tensor | None,
    ) -> Tensor:
        """[B]."""
        ctx.block, ctx.block_rows = block, block_rows
        ctx.save_for_backward(rows_BD, own_B, *shared)
        blocks = zip(torch.split(rows_BD, block_rows), torch.split(own_B, block_rows), strict=True)
        return torch.cat([block(rows_bD, own_b, *shared) for rows_bD, own_b in blocks])

    @staticmethod
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the rows and of what is shared; the sums over blocks grow in place."""
        rows_BD, own_B, *shared = ctx.saved_tensors
        rows_gradient_BD = torch.empty_like(rows_BD)
        sums = {
            number: torch.zeros_like(value)
            for number, (value, needed) in enumerate(zip(shared, ctx.needs_input_grad[4:], strict=True))
            if needed
        }
        leaves = [value.detach().requires_grad_() if number in sums else value for number, value in enumerate(shared)]
        for start in range(0, len(rows_BD), ctx.block_rows):
            part = slice(start, start + ctx.block_rows)
            rows_bD = rows_BD[part].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(rows_bD.device.type, enabled=False):
                result_b = ctx.block(rows_bD, own_B[part], *leaves)
            wanted = [rows_bD, *(leaves[number] for number in sums)]
            rows_gradient_BD[part], *gradients = torch.autograd.grad(result_b, wanted, gradient_B[part])
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient
        return None, None, rows_gradient_BD, None, *(sums.get(number) for number in range(len(shared)))
