"""All terms of a loss at once, where every logit matrix fits into one block.

B clips of this rank, N clips of all ranks, D dimensions, K matrices (visual, text), T terms, R queries of terms with
their positive, P parts of a query's candidates

    parts_T = term_parts(terms, local, texts, has_text_N2, has_text_here_B2, logit_scale, ranks)

The same numbers as block by block and term by term, in a tenth of the operations: a GPU waits for each of them at the
batches of a step. Which rows of which matrix a term reads is a table of indices, made once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.ranks import Ranks
from pipeline.losses.terms import TEXTS, Term, matrices_of


def fits(terms: tuple[Term, ...], num_rows: int, num_columns: int, block_side: int) -> bool:
    """Whether `term_parts` may be used: one block, and no logit multiplied by its softmax."""
    return max(num_rows, num_columns) <= block_side and not any(term.dual_softmax for term in terms)


def term_parts(
    terms: tuple[Term, ...],
    local: Mapping[str, Tensor],
    texts: Mapping[str, Tensor],
    has_text_N2: Tensor,
    has_text_here_B2: Tensor,
    logit_scale: Tensor,
    ranks: Ranks,
) -> Tensor:
    """This rank's part of every term, [T]: the sum over its rows, divided by the number of rows on all ranks.

    `local` are this rank's features [B, D] by kind, `texts` those of all ranks [N, D] of s and c.
    """
    table = _table(terms, logit_scale.device, logit_scale.dtype)
    scaled_KBD = torch.stack([local[visual] for visual, _ in table.matrices]) * logit_scale
    own_KB = (scaled_KBD * torch.stack([local[text] for _, text in table.matrices])).sum(2)
    logits_KBN = _Products.apply(scaled_KBD, torch.stack([texts[text] for _, text in table.matrices]))
    of_visual_KB, of_text_KN = _negatives(logits_KBN, table, has_text_N2, has_text_here_B2, ranks)
    of_text_KB = ranks.join_log_sum_exps(of_text_KN.T.contiguous()).T if ranks.count > 1 else of_text_KN

    lowest = torch.finfo(own_KB.dtype).min
    rows = [of_visual_KB, of_text_KB, torch.full_like(own_KB[:1], lowest)]
    here_2B = has_text_here_B2.T
    if table.reads_own:  # of the query's own clip, what is not its positive
        rows += [own_KB.masked_fill(~here_2B[which], lowest) for which in (table.text_K, table.text_of_visual_K)]
    parts_RPB = torch.unflatten(torch.cat(rows).index_select(0, table.parts_RP.flatten()), 0, table.parts_RP.shape)
    margin_RB = parts_RPB.logsumexp(1) - own_KB.index_select(0, table.positive_R)
    losses_RB = F.softplus(margin_RB, threshold=50) * here_2B[table.text_of_query_R]  # beyond it, exp(-50) is neglected
    num_rows_T = (table.texts_T2 @ has_text_N2.sum(0).to(own_KB.dtype)).clamp(min=1)
    return (table.terms_TR * losses_RB.sum(1)).sum(1) / num_rows_T


class _Products(torch.autograd.Function):
    """[K, B, D] and [K, N, D] to logits [K, B, N]. A backward pass runs under its caller's autocast; the gradients are
    computed in the operands' own precision all the same."""

    @staticmethod
    def forward(ctx: Any, visuals_KBD: Tensor, texts_KND: Tensor) -> Tensor:
        """All logits."""
        ctx.save_for_backward(visuals_KBD, texts_KND)
        return visuals_KBD @ texts_KND.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient_KBN: Tensor) -> tuple[Tensor, Tensor]:
        """Of visuals and texts."""
        visuals_KBD, texts_KND = ctx.saved_tensors
        with torch.autocast(visuals_KBD.device.type, enabled=False):
            return gradient_KBN @ texts_KND, gradient_KBN.transpose(1, 2) @ visuals_KBD


def _negatives(
    logits_KBN: Tensor, table: "_Table", has_text_N2: Tensor, has_text_here_B2: Tensor, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over all other clips: of every visual [K, B] and of every text [K, N], over this rank's visuals."""
    num_rows, num_columns = logits_KBN.shape[1:]
    lowest = torch.finfo(logits_KBN.dtype).min
    columns_N = torch.arange(num_columns, device=logits_KBN.device)
    is_own_BN = columns_N == columns_N[num_rows * ranks.rank :][:num_rows].unsqueeze(1)
    is_hidden_KBN = is_own_BN | ~has_text_N2.T[table.text_K].unsqueeze(1)
    seen_KBN = logits_KBN.masked_fill(is_hidden_KBN, lowest)
    # Hidden rows are no candidates of a text; as queries they count where they have the other text.
    is_hidden_KB1 = ~has_text_here_B2.T[table.text_of_visual_K].unsqueeze(2)
    return seen_KBN.logsumexp(2), seen_KBN.masked_fill(is_hidden_KB1, lowest).logsumexp(1)


@dataclass(frozen=True)
class _Table:
    """What the terms read, as indices on one device."""

    matrices: tuple[tuple[str, str], ...]
    text_K: Tensor
    """Which of TEXTS a matrix compares."""
    text_of_visual_K: Tensor
    """Which of TEXTS a visual must have to be a candidate."""
    parts_RP: Tensor
    """Rows of (of visual K, of text K, the lowest number, own K by text, own K by the visual's text)."""
    positive_R: Tensor
    text_of_query_R: Tensor
    terms_TR: Tensor
    """1 where a row belongs to a term."""
    texts_T2: Tensor
    """How many queries of a term need which text."""
    reads_own: bool


@lru_cache(maxsize=64)
def _table(terms: tuple[Term, ...], device: torch.device, dtype: torch.dtype) -> _Table:
    text_of_visual = matrices_of(terms)
    matrices = tuple(text_of_visual)
    count = len(matrices)
    nothing = 2 * count
    parts: list[list[int]] = []
    positives, needed = [], []
    terms_of_rows = torch.zeros(len(terms), sum(len(term.pairs) for term in terms), dtype=dtype)
    texts_of_terms = torch.zeros(len(terms), len(TEXTS), dtype=dtype)
    for number, term in enumerate(terms):
        for query, positive in term.pairs:
            places = {kind: _place(matrices, query, kind) for kind in term.candidates}
            row = [place + count * (query in TEXTS) for place in places.values()]
            row += [
                nothing + 1 + place + count * (query in TEXTS)
                for kind, place in places.items()
                if kind != positive and not term.own_excluded
            ]
            terms_of_rows[number, len(parts)] = 1
            parts.append(row)
            positives.append(_place(matrices, query, positive))
            needed.append(TEXTS.index(term.text_of[query]))
            texts_of_terms[number, needed[-1]] += 1
    longest = max(map(len, parts))
    return _Table(
        matrices=matrices,
        text_K=torch.tensor([TEXTS.index(text) for _, text in matrices], device=device),
        text_of_visual_K=torch.tensor([TEXTS.index(text) for text in text_of_visual.values()], device=device),
        parts_RP=torch.tensor([row + [nothing] * (longest - len(row)) for row in parts], device=device),
        positive_R=torch.tensor(positives, device=device),
        text_of_query_R=torch.tensor(needed, device=device),
        terms_TR=terms_of_rows.to(device),
        texts_T2=texts_of_terms.to(device),
        reads_own=any(place > nothing for row in parts for place in row),
    )


def _place(matrices: tuple[tuple[str, str], ...], one: str, other: str) -> int:
    return matrices.index((other, one) if one in TEXTS else (one, other))
