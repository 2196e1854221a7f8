"""The gradient of one global batch, in one pass or in parts that fit into memory.

    loss, terms = backward_batch(engine, objective, batch, micro_batches=4, accumulation="exact")

A contrastive loss needs the features of all clips at once, so micro-batches cannot simply be summed up. `exact`:

    1. features of every part, without a graph; the random state before each part is kept
    2. loss of all features over all ranks; its gradient with respect to this rank's features
    3. every part again, with a graph and its random state: backward of <features, gradient of step 2>

The result is the gradient of the whole batch, for one more forward pass and the memory of one part.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.engine import Engine
from pipeline.losses import TERMS, LossConfig, contrastive_loss
from pipeline.losses.terms import kinds_of

Inputs = dict[str, Tensor]
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """What the loss needs from a batch, and the loss itself."""

    config: LossConfig

    def inputs(self, batch: Batch) -> Inputs:
        """The model's inputs; what the loss does not use is not encoded."""
        given = {
            "v": ("video", batch.video_BTCHW),
            "s": ("subtitle", batch.subtitle_BL),
            "f": ("middle", batch.middle_BCHW),
            "c": ("caption", batch.caption_BL),
        }
        return dict(given[kind] for kind in kinds_of(TERMS[self.config.name]))

    def __call__(self, features: Any, has_subtitle_B: Tensor, has_caption_B: Tensor) -> tuple[Tensor, Terms]:
        """The loss over the clips of all ranks, and its terms."""
        video_BD, subtitle_BD, frame_BD, caption_BD, logit_scale = features
        return contrastive_loss(
            video_BD,
            subtitle_BD,
            frame_BD,
            caption_BD,
            logit_scale,
            has_subtitle_B=has_subtitle_B,
            has_caption_B=has_caption_B,
            config=self.config,
        )


def backward_batch(
    engine: Engine,
    objective: Objective,
    batch: Batch,
    *,
    micro_batches: int,
    accumulation: Literal["exact", "plain"],
) -> tuple[Tensor, Terms]:
    """Put the averaged gradient of `batch` into the engine; returns the detached loss and its terms. All ranks."""
    inputs = objective.inputs(batch)
    if micro_batches == 1:
        loss, terms = objective(engine(**inputs), batch.has_subtitle_B, batch.has_caption_B)
        engine.backward(loss)
        return loss.detach(), terms
    parts = row_slices(len(batch), micro_batches)
    if accumulation == "exact":
        return _backward_exact(engine, objective, batch, inputs, parts)
    return _backward_plain(engine, objective, batch, inputs, parts)


def row_slices(num_rows: int, parts: int) -> list[slice]:
    """`parts` runs of rows of nearly equal length that cover all rows; fewer when there are not enough rows."""
    parts = min(parts, num_rows)
    edges = [num_rows * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _backward_exact(
    engine: Engine, objective: Objective, batch: Batch, inputs: Inputs, parts: list[slice]
) -> tuple[Tensor, Terms]:
    random_states: list[list[Tensor]] = []
    encoded = []
    with torch.no_grad():
        for rows in parts:
            random_states.append(_random_state(engine.device))
            encoded.append(engine(**_rows(inputs, rows)))
    leaves = [_leaf(pieces) for pieces in zip(*encoded, strict=True)]
    loss, terms = objective(type(encoded[0])(*leaves), batch.has_subtitle_B, batch.has_caption_B)
    wanted = [leaf for leaf in leaves if leaf is not None]
    gradients = iter(torch.autograd.grad(loss, wanted))
    gradient_of = [None if leaf is None else next(gradients) for leaf in leaves]

    def surrogates() -> Iterator[Tensor]:
        for rows, state in zip(parts, random_states, strict=True):
            _set_random_state(state, engine.device)
            features = engine(**_rows(inputs, rows))
            products = []
            for feature, gradient in zip(features, gradient_of, strict=True):
                if gradient is not None:
                    # The logit scale has no rows: every part takes its share of the one gradient.
                    share = gradient[rows] if feature.ndim == 2 else gradient / len(parts)
                    products.append((feature * share).sum())
            yield torch.stack(products).sum()

    engine.backward_all(surrogates(), len(parts))
    return loss.detach(), terms


def _backward_plain(
    engine: Engine, objective: Objective, batch: Batch, inputs: Inputs, parts: list[slice]
) -> tuple[Tensor, Terms]:
    losses: list[Tensor] = []
    all_terms: list[Terms] = []

    def scaled() -> Iterator[Tensor]:
        for rows in parts:
            features = engine(**_rows(inputs, rows))
            loss, terms = objective(features, batch.has_subtitle_B[rows], batch.has_caption_B[rows])
            losses.append(loss.detach())
            all_terms.append(terms)
            yield loss / len(parts)

    engine.backward_all(scaled(), len(parts))
    mean_terms = {name: torch.stack([terms[name] for terms in all_terms]).mean() for name in all_terms[0]}
    return torch.stack(losses).mean(), mean_terms


def without_finite_features(engine: Engine, objective: Objective, batch: Batch, micro_batches: int) -> list[str]:
    """The keys of this rank's clips with a feature that is no number: what to look at after a NaN. All ranks."""
    inputs, found = objective.inputs(batch), []
    for rows in row_slices(len(batch), micro_batches):
        with torch.no_grad():
            features = engine(**_rows(inputs, rows))
        finite = [feature.isfinite().all(dim=1) for feature in features if feature is not None and feature.ndim == 2]
        is_fine = torch.stack(finite).all(dim=0).tolist()
        found += [key for key, fine in zip(batch.keys[rows], is_fine, strict=True) if key and not fine]
    return found


def _leaf(pieces: tuple[Tensor | None, ...]) -> Tensor | None:
    """One feature of all parts as the start of a new graph; None where the model was not asked for it."""
    first = pieces[0]
    if first is None:
        return None
    whole = torch.cat([piece for piece in pieces if piece is not None]) if first.ndim == 2 else first.clone()
    return whole.detach().requires_grad_()


def _rows(inputs: Inputs, rows: slice) -> Inputs:
    return {name: tensor[rows] for name, tensor in inputs.items()}


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
