"""The contrastive losses of CLIP-ViP, local to the rank, with logits in blocks.

Each query must find its positive among candidates of the whole global batch.

    B clips of this rank, N clips of all ranks, D dimensions

    texts [B, D] -> gathered with gradient [N, D]
    videos [B, D] x texts [N, D] -> log-sum-exps of the negatives, of the rows and of the columns
    positives and negatives [B] -> cross-entropy terms -> one loss

    loss, terms = contrastive_loss(*features, has_subtitle_B, has_caption_B, LossConfig(name="vsc_fc"))

Of every logit matrix a rank computes the rows of its own videos, once, whatever the number of terms that read it. Where
one block is enough, all matrices and terms go together (`whole`).
A clip without a subtitle (or caption) is neither query, positive nor candidate wherever that text takes part; a mean
is over the queries that are left, on all ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.losses.blocks import LogitMatrix, negatives
from pipeline.losses.ranks import Ranks
from pipeline.losses.terms import NAMES, TERMS, TEXTS, LossConfig, Term, kinds_of, matrices_of
from pipeline.losses.whole import fits, term_parts

Pairs = dict[tuple[str, str], Tensor]
"""(kind of the query, kind of the candidate) to [B], a number for each clip of this rank."""


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
    local = _hidden_rows_cleared(local, has_subtitle_B, has_caption_B)
    ranks = Ranks(group)
    with torch.autocast(logit_scale.device.type, enabled=False):
        masks_N2 = ranks.gather(torch.stack([has_subtitle_B, has_caption_B], dim=1).to(torch.uint8)).bool()
        texts = {kind: ranks.gather(local[kind]) for kind in TEXTS if kind in local}
        scale = _at_least_float32(logit_scale).reshape([])
        if fits(terms, len(has_subtitle_B), len(masks_N2), config.block_side):
            here_B2 = torch.stack([has_subtitle_B, has_caption_B], dim=1)
            parts = term_parts(terms, local, texts, masks_N2, here_B2, scale, ranks)
        else:
            parts = _parts_by_block(terms, local, texts, masks_N2, scale, ranks, config.block_side)
        values = ranks.sum(parts.detach())
        factor = 1 / len(terms) if config.reduction == "mean" else 1.0
        # The value is global; the gradient is that of this rank's rows, times the ranks that it will be averaged over.
        scaled = parts.sum() * (factor * ranks.count)
        loss = scaled + (values.sum() * factor - scaled).detach()
    return loss, {term.name: value for term, value in zip(terms, values, strict=True)}


def _parts_by_block(
    terms: tuple[Term, ...],
    local: dict[str, Tensor],
    texts: dict[str, Tensor],
    masks_N2: Tensor,
    logit_scale: Tensor,
    ranks: Ranks,
    block_side: int,
) -> Tensor:
    """This rank's part of every term, with logits in blocks: bounded memory at any size of the batch."""
    clips = _Clips(
        local=local,
        texts=texts,
        has_text={"s": masks_N2[:, 0], "c": masks_N2[:, 1]},
        all_have_text=dict(zip(TEXTS, _known_to_be_full(masks_N2), strict=True)),
        logit_scale=logit_scale,
        ranks=ranks,
        block_side=block_side,
    )
    positives, against = _logits(terms, clips)
    return torch.stack([_term_loss(term, positives, against, clips) for term in terms])


@dataclass(frozen=True)
class _Clips:
    """The global batch as this rank sees it, by kind."""

    local: dict[str, Tensor]
    """[B, D] of every kind."""
    texts: dict[str, Tensor]
    """[N, D] of s and c."""
    has_text: dict[str, Tensor]
    """bool [N] of s and c."""
    all_have_text: dict[str, bool]
    """Whether it is known that no clip of any rank lacks it; then blocks are not masked."""
    logit_scale: Tensor
    ranks: Ranks
    block_side: int

    def has_text_here(self, kind: str) -> Tensor:
        """bool [B] of s or c."""
        num_clips = len(self.has_text[kind]) // self.ranks.count
        return self.has_text[kind][num_clips * self.ranks.rank :][:num_clips]

    def matrix(self, text: str, text_of_visual: str) -> LogitMatrix:
        """Videos or frames of this rank that have one text, against a text of all ranks."""
        return LogitMatrix(
            first_own=len(self.has_text_here(text)) * self.ranks.rank,
            hidden_rows_B=None if self.all_have_text[text_of_visual] else ~self.has_text_here(text_of_visual),
            hidden_columns_N=None if self.all_have_text[text] else ~self.has_text[text],
            block_side=self.block_side,
        )


def _logits(terms: tuple[Term, ...], clips: _Clips) -> tuple[Pairs, Pairs]:
    """The logit of every clip with itself, and the log-sum-exp of its logits with all other clips."""
    positives: Pairs = {}
    against: Pairs = {}
    for (visual, text), text_of_visual in matrices_of(terms).items():
        scaled_BD = clips.local[visual] * clips.logit_scale
        own_B = (scaled_BD * clips.local[text]).sum(1)
        of_visual_B, of_text_B = _negatives(scaled_BD, text, text_of_visual, clips)
        own_of_visual_B = own_of_text_B = own_B
        if any(term.dual_softmax for term in terms):
            # A candidate's prior: the log-sum-exp of its logits over all queries, its own clip's included.
            visual_prior_B, text_prior_B = torch.logaddexp(of_visual_B, own_B), torch.logaddexp(of_text_B, own_B)
            priors = (visual_prior_B, clips.ranks.gather(text_prior_B))
            of_visual_B, of_text_B = _negatives(scaled_BD, text, text_of_visual, clips, priors)
            own_of_visual_B = own_B * (own_B - text_prior_B).exp()
            own_of_text_B = own_B * (own_B - visual_prior_B).exp()
        positives |= {(visual, text): own_of_visual_B, (text, visual): own_of_text_B}
        against |= {(visual, text): of_visual_B, (text, visual): of_text_B}
    return positives, against


def _negatives(
    visual_BD: Tensor, text: str, text_of_visual: str, clips: _Clips, priors: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps over all other clips of all ranks, for this rank's videos or frames and for its texts: [B] each."""
    of_visual_B, of_text_N = negatives(visual_BD, clips.texts[text], clips.matrix(text, text_of_visual), priors)
    return of_visual_B, clips.ranks.join_log_sum_exps(of_text_N)


def _term_loss(term: Term, positives: Pairs, against: Pairs, clips: _Clips) -> Tensor:
    """This rank's part of a term: the sum over its rows, divided by the number of rows on all ranks."""
    text_of = term.text_of
    num_rows = torch.stack([clips.has_text[text_of[query]].sum() for query, _ in term.pairs]).sum().clamp(min=1)
    total = clips.logit_scale.new_zeros([])
    for query, positive in term.pairs:
        parts = [against[query, kind] for kind in term.candidates]
        for kind in term.candidates:
            if kind != positive and not term.own_excluded:  # a negative of the query's own clip
                lowest = torch.finfo(parts[0].dtype).min
                parts.append(positives[query, kind].masked_fill(~clips.has_text_here(text_of[kind]), lowest))
        margin_B = torch.stack(parts).logsumexp(0) - positives[query, positive]
        losses_B = F.softplus(margin_B, threshold=50)  # beyond it, exp(-50) is what is neglected
        total = total + (losses_B * clips.has_text_here(text_of[query])).sum()
    return total / num_rows


def _known_to_be_full(masks_N2: Tensor) -> list[bool]:
    """Per column whether all are true. Not asked of a GPU: to answer, it would have to finish what it is at."""
    return masks_N2.all(dim=0).tolist() if masks_N2.device.type == "cpu" else [False, False]


def _at_least_float32(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _hidden_rows_cleared(local: dict[str, Tensor], has_subtitle_B: Tensor, has_caption_B: Tensor) -> dict[str, Tensor]:
    """Zeros in rows that take no part: padding and bad rows may hold anything, and 0 * NaN is NaN."""
    takes_part = {"v": has_subtitle_B | has_caption_B, "s": has_subtitle_B, "f": has_caption_B, "c": has_caption_B}
    return {kind: torch.where(takes_part[kind].unsqueeze(1), rows_BD, 0.0) for kind, rows_BD in local.items()}


def _checked_features(
    given: dict[str, Tensor | None], terms: tuple[Term, ...], name: str, has_subtitle_B: Tensor, has_caption_B: Tensor
) -> dict[str, Tensor]:
    """The features that `terms` use. InputError for one that is missing, for shapes or devices that differ."""
    used: dict[str, Tensor] = {}
    for kind in kinds_of(terms):
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
    devices = {NAMES[kind]: str(feature_BD.device) for kind, feature_BD in used.items()}
    devices |= {"has_subtitle": str(has_subtitle_B.device), "has_caption": str(has_caption_B.device)}
    if len(set(devices.values())) > 1:
        raise InputError(f"features and masks must be on one device, got {devices}")
    return used
