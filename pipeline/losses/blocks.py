"""Log-sum-exps over the rows and the columns of a logit matrix that never exists whole.

B rows (videos or frames of this rank), N columns (texts of all ranks), D dimensions; b and n of them in one block.
One direction has Q queries that look among K candidates: rows among columns, or columns among rows.

    rows [B, D], columns [N, D] -> logits [b, n], block by block -> by row [B], by column [N]

    by_row_B, by_column_N = negatives(rows_BD, columns_ND, LogitMatrix(first_own=0))

One pass over the blocks serves both directions. Only the results are kept for the backward pass, which computes every
block once more. The pair of a clip with itself is left out: as a positive it is a dot product, which needs no block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitMatrix:
    """What counts in a matrix, and the blocks in which it is computed."""

    first_own: int
    """The column that belongs to the clip of row 0; those of the other rows follow it."""
    hidden_rows_B: Tensor | None = None
    """Rows that are no candidates; None: all are."""
    hidden_columns_N: Tensor | None = None
    """Columns that are no candidates; None: all are."""
    block_side: int = 1024

    def blocks(self, num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice, int]]:
        """Rows and columns of every block, and which of its diagonals holds pairs of a clip with itself."""
        for row in range(0, num_rows, self.block_side):
            for column in range(0, num_columns, self.block_side):
                rows = slice(row, min(row + self.block_side, num_rows))
                columns = slice(column, min(column + self.block_side, num_columns))
                yield rows, columns, self.first_own + row - column


def negatives(
    rows_BD: Tensor, columns_ND: Tensor, matrix: LogitMatrix, priors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """For each row [B] and each column [N], the log-sum-exp of its logits `rows_BD @ columns_ND.T` over candidates.

    The lowest finite number where no candidate is left. With `priors` of the rows [B] and of the columns [N], every
    logit is multiplied by exp(logit - prior of the candidate) first. A prior bounds the logits of a candidate and a
    query that both count. What is hidden, as a candidate in one direction and as a query in the other, may have logits
    far above it: they reach no exponential.
    """
    row_prior_B, column_prior_N = (None, None) if priors is None else priors
    by_row_B, by_column_N = _Negatives.apply(rows_BD, columns_ND, row_prior_B, column_prior_N, matrix)
    return by_row_B, by_column_N


class _Negatives(torch.autograd.Function):
    """The blocks of `negatives`, forward and again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        columns_ND: Tensor,
        row_prior_B: Tensor | None,
        column_prior_N: Tensor | None,
        matrix: LogitMatrix,
    ) -> tuple[Tensor, Tensor]:
        """By row [B], by column [N]."""
        by_row = _Direction(matrix.hidden_rows_B, matrix.hidden_columns_N, column_prior_N)
        by_column = _Direction(matrix.hidden_columns_N, matrix.hidden_rows_B, row_prior_B)
        row_sum, column_sum = _LogSumExp(rows_BD), _LogSumExp(columns_ND)
        for rows, columns, own in matrix.blocks(len(rows_BD), len(columns_ND)):
            logits_bn = rows_BD[rows] @ columns_ND[columns].T
            row_sum.add(rows, by_row.seen(logits_bn, rows, columns, own))
            column_sum.add(columns, by_column.seen(logits_bn.T, columns, rows, -own))
        ctx.matrix = matrix
        results = row_sum.value(), column_sum.value()
        ctx.save_for_backward(rows_BD, columns_ND, row_prior_B, column_prior_N, *results)
        return results

    @staticmethod
    def backward(ctx: Any, row_gradient_B: Tensor, column_gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        """Of rows, columns and priors."""
        rows_BD, columns_ND, row_prior_B, column_prior_N, by_row_B, by_column_N = ctx.saved_tensors
        matrix: LogitMatrix = ctx.matrix
        hidden_B, hidden_N = matrix.hidden_rows_B, matrix.hidden_columns_N
        by_row = _Direction(hidden_B, hidden_N, column_prior_N, by_row_B, row_gradient_B)
        by_column = _Direction(hidden_N, hidden_B, row_prior_B, by_column_N, column_gradient_N)
        of_rows_BD, of_columns_ND = torch.zeros_like(rows_BD), torch.zeros_like(columns_ND)
        # A backward pass runs under its caller's autocast; the blocks must be those of the forward pass.
        with torch.autocast(rows_BD.device.type, enabled=False):
            for rows, columns, own in matrix.blocks(len(rows_BD), len(columns_ND)):
                logits_bn = rows_BD[rows] @ columns_ND[columns].T
                gradient_bn = by_row.gradient(logits_bn, rows, columns, own)
                gradient_bn += by_column.gradient(logits_bn.T, columns, rows, -own).T
                of_rows_BD[rows].addmm_(gradient_bn, columns_ND[columns])
                of_columns_ND[columns].addmm_(gradient_bn.T, rows_BD[rows])
        return of_rows_BD, of_columns_ND, by_column.of_prior_K, by_row.of_prior_K, None


class _Direction:
    """Queries of one kind among candidates of the other; a block of it is [q, k]."""

    def __init__(
        self,
        hidden_Q: Tensor | None,
        hidden_K: Tensor | None,
        prior_K: Tensor | None,
        result_Q: Tensor | None = None,
        gradient_Q: Tensor | None = None,
    ) -> None:
        """`result_Q` and its gradient are for the backward pass."""
        self.hidden_Q, self.hidden_K, self.prior_K = hidden_Q, hidden_K, prior_K
        self.result_Q, self.gradient_Q = result_Q, gradient_Q
        self.of_prior_K = None if prior_K is None else torch.zeros_like(prior_K)

    def seen(self, logits_qk: Tensor, queries: slice, candidates: slice, own: int) -> Tensor:
        """The logits as this direction sees them: minus infinity where the candidate does not count.

        In place where there is no prior. What the first direction hides in a block hides nothing from the second: a
        hidden candidate of the one is a query without a gradient in the other.
        """
        if self.prior_K is not None:
            logits_qk = logits_qk * self._factor(logits_qk, self.prior_K, queries, candidates)
        if -len(logits_qk) < own < logits_qk.shape[1]:
            logits_qk.diagonal(own).fill_(-torch.inf)
        if self.hidden_K is not None:
            logits_qk.masked_fill_(self.hidden_K[candidates], -torch.inf)
        return logits_qk

    def gradient(self, logits_qk: Tensor, queries: slice, candidates: slice, own: int) -> Tensor:
        """Of the logits; that of the prior adds up in `of_prior_K`."""
        assert self.result_Q is not None and self.gradient_Q is not None
        gradient_qk = self.seen(logits_qk, queries, candidates, own) - self.result_Q[queries].unsqueeze(1)
        gradient_qk.exp_().mul_(self.gradient_Q[queries].unsqueeze(1))
        if self.prior_K is not None and self.of_prior_K is not None:
            factor_qk = self._factor(logits_qk, self.prior_K, queries, candidates)
            self.of_prior_K[candidates] -= (gradient_qk * factor_qk * logits_qk).sum(0)
            gradient_qk *= factor_qk * (1 + logits_qk)
        return gradient_qk

    def _factor(self, logits_qk: Tensor, prior_K: Tensor, queries: slice, candidates: slice) -> Tensor:
        """A candidate's softmax over the queries, at most 1: 0 where one is hidden, which the prior does not bound."""
        above_qk = logits_qk - prior_K[candidates]
        if self.hidden_Q is not None:
            above_qk.masked_fill_(self.hidden_Q[queries].unsqueeze(1), -torch.inf)
        if self.hidden_K is not None:
            above_qk.masked_fill_(self.hidden_K[candidates], -torch.inf)
        return above_qk.exp_()


class _LogSumExp:
    """A log-sum-exp for each query, over candidates that come block by block."""

    def __init__(self, queries_QD: Tensor) -> None:
        """Nothing has come yet."""
        self.highest_Q = queries_QD.new_full((len(queries_QD),), torch.finfo(queries_QD.dtype).min)
        self.sum_Q = torch.zeros_like(self.highest_Q)

    def add(self, queries: slice, logits_qk: Tensor) -> None:
        """More candidates of some queries."""
        before_q = self.highest_Q[queries]
        highest_q = torch.maximum(before_q, logits_qk.amax(1))
        more_q = (logits_qk - highest_q.unsqueeze(1)).exp_().sum(1)
        self.sum_Q[queries] = self.sum_Q[queries] * (before_q - highest_q).exp() + more_q
        self.highest_Q[queries] = highest_q

    def value(self) -> Tensor:
        """[Q]; the lowest finite number where nothing came."""
        return (self.highest_Q + self.sum_Q.log()).clamp_(min=torch.finfo(self.sum_Q.dtype).min)
