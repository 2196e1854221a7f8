"""The contrastive losses of CLIP-ViP, local to the rank, with logits in blocks.

Each query must find its positive among candidates of the whole global batch.

    B clips of this rank, N clips of all ranks, D dimensions
    features [B, D] -> gathered with gradient [N, D] -> cross-entropy terms, block by block -> one loss

    loss, terms = contrastive_loss(*features, has_subtitle_B, has_caption_B, LossConfig(name="vsc_fc"))

A clip without a subtitle (or caption) is neither query, positive nor candidate wherever that text takes part; a mean
is over the queries that are left, on all ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pipeline.errors import InputError
from pipeline.losses.blocks import Candidates, Own, cross_entropies, log_sum_exps
from pipeline.losses.ranks import Ranks
from pipeline.losses.terms import NAMES, TERMS, LossConfig, Term


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
    ranks = Ranks(group)
    with torch.autocast(logit_scale.device.type, enabled=False):
        masks_N2 = ranks.gather(torch.stack([has_subtitle_B, has_caption_B], dim=1).to(torch.uint8)).bool()
        clips = _Clips(
            local=local,
            everywhere={kind: ranks.gather(feature_BD) for kind, feature_BD in local.items()},
            has_text={"s": masks_N2[:, 0], "c": masks_N2[:, 1]},
            logit_scale=_at_least_float32(logit_scale).reshape([]),
            own_B=torch.arange(len(has_subtitle_B), device=logit_scale.device) + len(has_subtitle_B) * ranks.rank,
        )
        parts = torch.stack([_term_loss(term, clips, ranks, config.block_rows) for term in terms])
        values = ranks.sum(parts.detach())
        factor = 1 / len(terms) if config.reduction == "mean" else 1.0
        # The value is global; the gradient is that of this rank's rows, times the ranks that it will be averaged over.
        scaled = parts.sum() * (factor * ranks.count)
        loss = scaled + (values.sum() * factor - scaled).detach()
    return loss, {term.name: value for term, value in zip(terms, values, strict=True)}


@dataclass(frozen=True)
class _Clips:
    """The global batch as this rank sees it, by kind."""

    local: dict[str, Tensor]
    everywhere: dict[str, Tensor]
    has_text: dict[str, Tensor]
    """bool [N] of s and c."""
    logit_scale: Tensor
    own_B: Tensor
    """The numbers of this rank's clips among all."""


def _term_loss(term: Term, clips: _Clips, ranks: Ranks, block_rows: int) -> Tensor:
    """This rank's part of a term: the sum over its rows, divided by the number of rows on all ranks."""
    allowed = clips.has_text | {positive: clips.has_text[_text_of(query, positive)] for query, positive in term.pairs}
    num_rows = torch.stack([allowed[positive].sum() for _, positive in term.pairs]).sum().clamp(min=1)
    total = clips.logit_scale.new_zeros([])
    for query, positive in term.pairs:
        candidates = []
        for kind in term.candidates:
            own: Own = "positive" if kind == positive else "excluded" if term.own_excluded else "negative"
            prior_N = _prior(query, kind, allowed[kind], clips, ranks, block_rows) if term.dual_softmax else None
            candidates.append(Candidates(clips.everywhere[kind], allowed[kind], own, prior_N))
        losses_B = cross_entropies(
            clips.local[query], clips.own_B, clips.logit_scale, candidates, block_rows=block_rows
        )
        total = total + (losses_B * allowed[positive][clips.own_B]).sum()
    return total / num_rows


def _prior(query: str, kind: str, allowed_N: Tensor, clips: _Clips, ranks: Ranks, block_rows: int) -> Tensor:
    """For each candidate of `kind`, on all ranks: the log-sum-exp of its logits over the allowed queries: [N]."""
    queries = Candidates(clips.everywhere[query], allowed_N, "positive")
    prior_B = log_sum_exps(clips.local[kind], clips.own_B, clips.logit_scale, queries, block_rows=block_rows)
    return ranks.gather(prior_B)


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
        used[kind] = _at_least_float32(feature_BD)
    shapes = {NAMES[kind]: list(feature_BD.shape) for kind, feature_BD in used.items()}
    num_clips = len(has_subtitle_B)
    if len({tuple(shape) for shape in shapes.values()}) > 1 or any(
        len(s) != 2 or s[0] != num_clips for s in shapes.values()
    ):
        raise InputError(f"features must all be [B, D] with B = {num_clips} as the masks say, got {shapes}")
    if len(has_caption_B) != num_clips:
        raise InputError(f"has_subtitle has {num_clips} rows, but has_caption {len(has_caption_B)}")
    return used
