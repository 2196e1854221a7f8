"""How many scores of a block stand above those of the best positives, and how many equal them: exactly.

Q queries, G gallery items, D feature size, P (query, item) pairs. A block is counted along its rows (each query against
its own best positive), and where asked in the same pass along its columns (each item against its best query).

Features are rounded to multiples of 2**-26, below the resolution of float32. Every product is then a multiple of 2**-52
and every partial sum of a dot product of unit vectors stays below 2, so float64 holds all of them exactly: a score has
the same bits whatever the block size, the number of threads or ranks, or the device, and equal items tie exactly.

Nearly all of them need not be computed that way: float32 decides every score that is further from the best positive's
than its rounding error can be, and only the close ones are computed exactly.

    counter = BlockCounter(queries_QD, gallery_GD, best_Q, best_G)
    (greater_R, equal_R), of_columns = counter.count(slice(0, 256), slice(0, 1024))
"""

import torch
from torch import Tensor

GRID = 2.0**26
PAIRS_PER_CHUNK = 16_384
ROUNDING = 2.0**-24
"""Half a unit in the last place of a float32 number near 1."""
MAX_FILTER_DIM = 4096
MAX_CLOSE_SHARE = 0.01
"""Of a block's scores; where more are close (a collapsed model), the whole block is computed exactly."""

Counts = tuple[Tensor, Tensor]
"""(greater, equal), one number per query or per item."""


class BlockCounter:
    """Counts blocks of queries x gallery; `best_G` is given where columns are counted too."""

    def __init__(self, queries_QD: Tensor, gallery_GD: Tensor, best_Q: Tensor, best_G: Tensor | None = None) -> None:
        self._queries_QD, self._gallery_GD = queries_QD, gallery_GD
        self._best = (best_Q[:, None], None if best_G is None else best_G[None, :])
        dim = queries_QD.shape[1]
        # float32 products that are none (TF32), or too many terms to bound: every block is computed exactly.
        self._filters = dim <= MAX_FILTER_DIM and not torch.backends.cuda.matmul.allow_tf32
        # A float32 dot product is off by at most D * 2**-24 of the product of the lengths, in whatever order it is
        # summed; twice that covers casting the inputs and the score.
        self._margin = 2 * dim * ROUNDING * longest(queries_QD) * longest(gallery_GD)

    def count(self, rows: slice, columns: slice) -> tuple[Counts, Counts | None]:
        """What one block adds to the counts of its rows, and of its columns where these are counted."""
        queries, gallery = self._queries_QD[rows], self._gallery_GD[columns]
        best_Q1 = self._best[0][rows]
        best_1G = None if self._best[1] is None else self._best[1][:, columns]
        if self._filters:
            scores_QG = queries.float() @ gallery.float().T
            flags_QG = torch.empty_like(scores_QG)
            of_rows = self._filtered(scores_QG, flags_QG, queries, gallery, best_Q1, dim=1)
            of_columns = None
            if of_rows is not None and best_1G is not None:
                of_columns = self._filtered(scores_QG, flags_QG, queries, gallery, best_1G, dim=0)
            if of_rows is not None and (of_columns is not None or best_1G is None):
                return of_rows, of_columns
        exact_QG = exact_scores(queries, gallery)
        of_columns = None if best_1G is None else count_exactly(exact_QG, best_1G, dim=0)
        return count_exactly(exact_QG, best_Q1, dim=1), of_columns

    def _filtered(
        self, scores_QG: Tensor, flags_QG: Tensor, queries_QD: Tensor, gallery_GD: Tensor, best: Tensor, *, dim: int
    ) -> Counts | None:
        """Counts along `dim` from float32 scores; None where too many of them are close. `best` is [Q, 1] or [1, G]."""
        low, high = (best - self._margin).float(), (best + self._margin).float()
        # Comparing into float32 and summing that is several times as fast as by way of booleans.
        above = torch.gt(scores_QG, high, out=flags_QG).sum(dim)
        num_close = torch.ge(scores_QG, low, out=flags_QG).sum(dim) - above
        greater, equal = above.long(), torch.zeros_like(above, dtype=torch.int64)
        if float(num_close.sum()) > MAX_CLOSE_SHARE * scores_QG.numel():
            return None
        lines = num_close.nonzero().squeeze(1)
        if not len(lines):
            return greater, equal
        kept = scores_QG.index_select(1 - dim, lines)
        low, high = low.index_select(1 - dim, lines), high.index_select(1 - dim, lines)
        places = list(((kept >= low) & (kept <= high)).nonzero(as_tuple=True))
        places[1 - dim] = lines[places[1 - dim]]
        scores_P, best_P = pair_scores(queries_QD, gallery_GD, *places), best.flatten()[places[1 - dim]]
        greater.index_add_(0, places[1 - dim], (scores_P > best_P).long())
        equal.index_add_(0, places[1 - dim], (scores_P == best_P).long())
        return greater, equal


def count_exactly(scores_QG: Tensor, best: Tensor, *, dim: int) -> Counts:
    """How many scores along `dim` are above `best` [Q, 1] or [1, G], and how many equal it."""
    return (scores_QG > best).sum(dim), (scores_QG == best).sum(dim)


def longest(features_ND: Tensor) -> float:
    """The length of the longest feature; 0 where there is none: a rank may have no query of its own."""
    return float(features_ND.float().norm(dim=1).max()) if len(features_ND) else 0.0


def on_grid(features: Tensor) -> Tensor:
    """Unit-norm features as float64 multiples of 2**-26, whose dot products are exact."""
    return torch.round(features.double() * GRID) * (1 / GRID)


def exact_scores(queries_QD: Tensor, gallery_GD: Tensor) -> Tensor:
    """The exact scores [Q, G] of a block."""
    return on_grid(queries_QD) @ on_grid(gallery_GD).T


def pair_scores(queries_QD: Tensor, gallery_GD: Tensor, queries_P: Tensor, items_P: Tensor) -> Tensor:
    """The exact scores [P] of single pairs: the bits that a block would give."""
    chunks = zip(torch.split(queries_P, PAIRS_PER_CHUNK), torch.split(items_P, PAIRS_PER_CHUNK), strict=True)
    return torch.cat([(on_grid(queries_QD[rows]) * on_grid(gallery_GD[columns])).sum(1) for rows, columns in chunks])
