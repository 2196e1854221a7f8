"""The contrastive losses of CLIP-ViP, local to the rank, with logits in blocks.

Four features a clip: video v, subtitle s, middle frame f, caption c. Every loss is a list of cross-entropy terms: each
query must find its positive among candidates of the whole global batch.

    B clips of this rank, N clips of all ranks, b rows of a block, D dimensions
    features [B, D] -> gathered with gradient [N, D] -> logits [b, N], block by block, recomputed in the backward pass

    loss, terms = contrastive_loss(*features, has_subtitle_B, has_caption_B, LossConfig(name="vsc_fc"))

A clip without a subtitle (or caption) is neither query, positive nor candidate wherever that text takes part; a mean
is over the queries that are left, on all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from pipeline.config import Section
from pipeline.errors import InputError

LossName = Literal["vs", "vs_fc", "concatenated", "vs_vc", "vs_vc_fc", "vsc", "vsc_fc", "vs_dsl"]
NAMES = {"v": "video", "s": "subtitle", "f": "middle frame", "c": "caption"}


class LossConfig(Section):
    """Which pairs are contrasted, and how much memory it may take."""

    name: LossName = "vsc_fc"
    """Pairs of video (v), subtitle (s), middle frame (f), caption (c); `vsc_fc` is the paper's final loss."""

    reduction: Literal["sum", "mean"] = "sum"
    """Over the cross-entropy terms; `sum` is the official form."""

    block_rows: int = Field(default=512, gt=0)
    """Rows of the logit matrix that exist at a time."""


@dataclass(frozen=True)
class Term:
    """One cross-entropy: the mean over the rows of all `pairs` of -log softmax(positive among the candidates)."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    """(query, positive) kinds; several are stacked."""
    candidates: tuple[str, ...]
    own_excluded: bool = False
    """Candidates of the query's own clip, other than the positive, are left out."""
    dual_softmax: bool = False
    """Logits are multiplied by their softmax over the queries."""


def _pair(query: str, key: str, *, dual_softmax: bool = False) -> tuple[Term, Term]:
    """Both directions."""
    return (
        Term(f"{query}_to_{key}", ((query, key),), (key,), dual_softmax=dual_softmax),
        Term(f"{key}_to_{query}", ((key, query),), (query,), dual_softmax=dual_softmax),
    )


_VS, _VC, _FC = _pair("v", "s"), _pair("v", "c"), _pair("f", "c")
# The two texts of other clips are negatives together; a clip's other text is no negative of its video.
_VSC = (
    Term("s_to_v", (("s", "v"),), ("v",)),
    Term("c_to_v", (("c", "v"),), ("v",)),
    Term("v_to_s", (("v", "s"),), ("s", "c"), own_excluded=True),
    Term("v_to_c", (("v", "c"),), ("s", "c"), own_excluded=True),
)

TERMS: dict[LossName, tuple[Term, ...]] = {
    "vs": _VS,
    "vs_fc": (*_VS, *_FC),
    "concatenated": (
        Term("vf_to_sc", (("v", "s"), ("f", "c")), ("s", "c")),
        Term("sc_to_vf", (("s", "v"), ("c", "f")), ("v", "f")),
    ),
    "vs_vc": (*_VS, *_VC),
    "vs_vc_fc": (*_VS, *_VC, *_FC),
    "vsc": _VSC,
    "vsc_fc": (*_VSC, *_FC),
    "vs_dsl": _pair("v", "s", dual_softmax=True),
}


def contrastive_loss(
    video_BD: Tensor | None,
    subtitle_BD: Tensor | None,
    frame_BD: Tensor | None,
    caption_BD: Tensor | None,
    logit_scale: Tensor,
    has_subtitle_B: Tensor,
    has_caption_B: Tensor,
    config: LossConfig,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss over the clips of all ranks, from this rank's features, and its detached cross-entropy terms.

    `logit_scale` is the factor itself, not its logarithm. Every rank has the same number of rows and gets the global
    value. The gradients, averaged over ranks, are those of one process with the whole batch. Features that the named
    loss does not use may be None.
    """
    terms = TERMS[config.name]
    given = {"v": video_BD, "s": subtitle_BD, "f": frame_BD, "c": caption_BD}
    local = _checked_features(given, terms, config.name, has_subtitle_B, has_caption_B)
    ranks = _Ranks(group)
    with torch.autocast(logit_scale.device.type, enabled=False):
        masks_N2 = ranks.gather(torch.stack([has_subtitle_B, has_caption_B], dim=1).to(torch.uint8)).bool()
        clips = _Clips(
            local=local,
            everywhere={kind: ranks.gather(feature_BD) for kind, feature_BD in local.items()},
            has_text={"s": masks_N2[:, 0], "c": masks_N2[:, 1]},
            logit_scale=_at_least_float32(logit_scale).reshape([]),
            first_row=len(has_subtitle_B) * ranks.rank,
        )
        parts = torch.stack([_term_loss(term, clips, ranks, config.block_rows) for term in terms])
        values = ranks.sum(parts.detach())
        factor = 1 / len(terms) if config.reduction == "mean" else 1.0
        # The value is global; the gradient is that of this rank's rows, times the ranks that it will be averaged over.
        scaled = parts.sum() * (factor * ranks.count)
        loss = scaled + (values.sum() * factor - scaled).detach()
    return loss, {term.name: value for term, value in zip(terms, values, strict=True)}


class _Ranks:
    """The collectives of the loss; one rank without a process group."""

    def __init__(self, group: ProcessGroup | None) -> None:
        alone = not (dist.is_available() and dist.is_initialized())
        self.group = group
        self.count = 1 if alone else dist.get_world_size(group)
        self.rank = 0 if alone else dist.get_rank(group)

    def gather(self, local: Tensor) -> Tensor:
        """[B, ...] of every rank, in rank order, to [N, ...], with gradient."""
        return local if self.count == 1 else _Gather.apply(local, self)

    def sum(self, value: Tensor) -> Tensor:
        """Over ranks, without gradient."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every rank's loss says about this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: _Ranks) -> Tensor:
        """[B, ...] to [N, ...]."""
        ctx.ranks = ranks
        gathered = local.new_empty(ranks.count * len(local), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous(), group=ranks.group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """[N, ...] to [B, ...]."""
        ranks: _Ranks = ctx.ranks
        local = gradient.new_empty(len(gradient) // ranks.count, *gradient.shape[1:])
        dist.reduce_scatter_tensor(local, gradient.contiguous(), group=ranks.group)
        return local, None


@dataclass(frozen=True)
class _Clips:
    """The global batch as this rank sees it, by kind."""

    local: dict[str, Tensor]
    everywhere: dict[str, Tensor]
    has_text: dict[str, Tensor]
    """bool [N] of s and c."""
    logit_scale: Tensor
    first_row: int
    """Where this rank's clips begin among all."""


@dataclass(frozen=True)
class _Candidates:
    """One kind of candidates, of all ranks."""

    features_ND: Tensor
    allowed_N: Tensor
    own: Literal["positive", "negative", "excluded"]
    """What the candidate of the query's own clip is."""
    prior_N: Tensor | None
    """Log of the sum over the queries of exp(logit), for the dual softmax."""


def _term_loss(term: Term, clips: _Clips, ranks: _Ranks, block_rows: int) -> Tensor:
    """This rank's part of a term: the sum over its rows, divided by the number of rows on all ranks."""
    allowed = clips.has_text | {positive: clips.has_text[_text_of(query, positive)] for query, positive in term.pairs}
    num_rows = torch.stack([allowed[positive].sum() for _, positive in term.pairs]).sum().clamp(min=1)
    total = clips.logit_scale.new_zeros([])
    for query, positive in term.pairs:
        candidates = []
        for kind in term.candidates:
            other: Literal["negative", "excluded"] = "excluded" if term.own_excluded else "negative"
            prior_N = _prior(query, kind, allowed[kind], clips, ranks, block_rows) if term.dual_softmax else None
            own = "positive" if kind == positive else other
            candidates.append(_Candidates(clips.everywhere[kind], allowed[kind], own, prior_N))
        for rows in _blocks(clips, query, block_rows):
            own_b = torch.arange(rows.start, rows.stop, device=total.device) + clips.first_row
            query_bD = _at_least_float32(clips.local[query][rows])
            losses_b = _recomputed(_block_losses, query_bD, clips.logit_scale, own_b, candidates)
            total = total + (losses_b * allowed[positive][own_b]).sum()
    return total / num_rows


def _prior(query: str, kind: str, allowed_N: Tensor, clips: _Clips, ranks: _Ranks, block_rows: int) -> Tensor:
    """For each candidate of `kind`, on all ranks: the log-sum-exp of its logits over the allowed queries: [N]."""
    queries = [_Candidates(clips.everywhere[query], allowed_N, "positive", None)]
    parts = []
    for rows in _blocks(clips, kind, block_rows):
        own_b = torch.arange(rows.start, rows.stop, device=allowed_N.device) + clips.first_row
        kind_bD = _at_least_float32(clips.local[kind][rows])
        parts.append(_recomputed(_block_lse, kind_bD, clips.logit_scale, own_b, queries))
    return ranks.gather(torch.cat(parts))


def _block_losses(query_bD: Tensor, logit_scale: Tensor, own_b: Tensor, candidates: list[_Candidates]) -> Tensor:
    """Cross-entropy of each query: [b]."""
    tiles = [_logits(query_bD * logit_scale, own_b, each) for each in candidates]
    positive_b = next(
        tile.gather(1, own_b.unsqueeze(1)).squeeze(1)
        for tile, each in zip(tiles, candidates, strict=True)
        if each.own == "positive"
    )
    return torch.stack([tile.logsumexp(1) for tile in tiles]).logsumexp(0) - positive_b


def _block_lse(query_bD: Tensor, logit_scale: Tensor, own_b: Tensor, candidates: list[_Candidates]) -> Tensor:
    """Log-sum-exp of each query's logits: [b]."""
    return torch.stack([_logits(query_bD * logit_scale, own_b, each).logsumexp(1) for each in candidates]).logsumexp(0)


def _logits(scaled_query_bD: Tensor, own_b: Tensor, candidates: _Candidates) -> Tensor:
    """One block of the logit matrix, [b, N], what is not allowed pushed to the lowest number.

    The positive itself always stays, so that a row that will be masked still has a finite loss.
    """
    logits_bN = scaled_query_bD @ _at_least_float32(candidates.features_ND).T
    if candidates.prior_N is not None:
        logits_bN = logits_bN * (logits_bN - candidates.prior_N).exp()
    own_b1 = own_b.unsqueeze(1)
    lowest = torch.finfo(logits_bN.dtype).min
    masked_bN = logits_bN.masked_fill(~candidates.allowed_N, lowest)
    if candidates.own == "positive":
        return masked_bN.scatter(1, own_b1, logits_bN.gather(1, own_b1))
    return masked_bN.scatter(1, own_b1, lowest) if candidates.own == "excluded" else masked_bN


def _recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, of which only the inputs are kept for the backward pass."""
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def _blocks(clips: _Clips, kind: str, block_rows: int) -> list[slice]:
    num_rows = len(clips.local[kind])
    return [slice(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]


def _text_of(query: str, positive: str) -> str:
    return query if query in ("s", "c") else positive


def _at_least_float32(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _checked_features(
    given: dict[str, Tensor | None], terms: tuple[Term, ...], name: str, has_subtitle_B: Tensor, has_caption_B: Tensor
) -> dict[str, Tensor]:
    """The features that `terms` use. InputError for one that is missing, or shapes that do not match."""
    used: dict[str, Tensor] = {}
    for kind in sorted({kind for term in terms for pair in term.pairs for kind in pair}):
        feature_BD = given[kind]
        if feature_BD is None:
            raise InputError(
                f"loss {name} needs features of the {NAMES[kind]}; give them to the model, or choose another"
            )
        used[kind] = feature_BD
    shapes = {NAMES[kind]: list(feature_BD.shape) for kind, feature_BD in used.items()}
    num_clips = len(has_subtitle_B)
    if len({tuple(shape) for shape in shapes.values()}) > 1 or any(
        len(s) != 2 or s[0] != num_clips for s in shapes.values()
    ):
        raise InputError(f"features must all be [B, D] with B = {num_clips} as the masks say, got {shapes}")
    if len(has_caption_B) != num_clips:
        raise InputError(f"has_subtitle has {num_clips} rows, but has_caption {len(has_caption_B)}")
    return used
