"""Text from a captioning decoder: beam search and nucleus sampling over one function, `step`.

    step(tokens_NL, image_N) -> logits_NV      the next-token logits of N texts, text n about image image_N[n]

    texts = beam_search(step, num_images, rules, num_beams=6)        # list of token lists, without start and end
    texts = nucleus(step, rules, top_p=0.9, temperature=1.0, seeds=[...])

Sampling draws from one generator per image, so that a caption does not depend on the batch that its clip is in.

N texts, L tokens so far, V vocabulary, B images, K beams.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rules:
    """Where a text starts and ends."""

    start_token: int
    end_token: int
    max_tokens: int
    """Longest text, without start and end."""
    min_tokens: int = 1
    """The end is forbidden before this many tokens."""


@torch.no_grad()
def beam_search(step: Step, num_images: int, rules: Rules, num_beams: int, device: torch.device) -> list[list[int]]:
    """The text with the best mean log-probability per token (end included) that the beams meet, per image."""
    texts_BKL = torch.full((num_images, num_beams, 1), rules.start_token, device=device)
    # All beams of an image start equal: only the first one may grow at the first step.
    scores_BK = torch.full((num_images, num_beams), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0
    image_N = torch.arange(num_images, device=device).repeat_interleave(num_beams)
    best: list[tuple[float, list[int]]] = [(-torch.inf, []) for _ in range(num_images)]
    for length in range(rules.max_tokens + 1):
        logits_NV = step(texts_BKL.flatten(0, 1), image_N).float()
        log_probs_BKV = _masked(logits_NV, length, rules).log_softmax(-1).view(num_images, num_beams, -1)
        total_BKV = scores_BK[..., None] + log_probs_BKV
        _keep_finished(total_BKV[..., rules.end_token], texts_BKL, best)
        total_BKV[..., rules.end_token] = -torch.inf
        scores_BK, flat_BK = total_BKV.flatten(1).topk(num_beams)
        beam_BK, token_BK = flat_BK // total_BKV.shape[-1], flat_BK % total_BKV.shape[-1]
        parents_BKL = texts_BKL.gather(1, beam_BK[..., None].expand(-1, -1, texts_BKL.shape[-1]))
        texts_BKL = torch.cat([parents_BKL, token_BK[..., None]], dim=-1)
        # A beam only gets worse by growing; its mean can at best reach that of a text of full length.
        bound_B = scores_BK.max(1).values / (rules.max_tokens + 1)
        if all(score >= bound for (score, _), bound in zip(best, bound_B.tolist(), strict=True)):
            break
    return [text for _, text in best]


def _keep_finished(finished_BK: Tensor, texts_BKL: Tensor, best: list[tuple[float, list[int]]]) -> None:
    mean_BK = finished_BK / texts_BKL.shape[-1]
    for image, (score, beam) in enumerate(zip(*(values.tolist() for values in mean_BK.max(1)), strict=True)):
        if score > best[image][0]:
            best[image] = (score, texts_BKL[image, beam, 1:].tolist())


@torch.no_grad()
def nucleus(
    step: Step, rules: Rules, *, top_p: float, temperature: float, seeds: Sequence[int], device: torch.device
) -> list[list[int]]:
    """One sampled text per image; at each step from the most probable tokens that together hold `top_p`."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    texts_BL = torch.full((len(seeds), 1), rules.start_token, device=device)
    image_B = torch.arange(len(seeds), device=device)
    ended_B = torch.zeros(len(seeds), dtype=torch.bool)
    for length in range(rules.max_tokens + 1):
        logits_BV = _masked(step(texts_BL, image_B).float(), length, rules)
        probs_BV = _nucleus_probs(logits_BV / temperature, top_p).cpu()
        draws = [torch.multinomial(probs, 1, generator=gen) for probs, gen in zip(probs_BV, generators, strict=True)]
        token_B = torch.where(ended_B, rules.end_token, torch.cat(draws))
        texts_BL = torch.cat([texts_BL, token_B.to(device)[:, None]], dim=-1)
        ended_B |= token_B == rules.end_token
        if ended_B.all():
            break
    return [_until(text[1:], rules.end_token) for text in texts_BL.tolist()]


def _masked(logits_NV: Tensor, length: int, rules: Rules) -> Tensor:
    """No start inside a text, no end before the shortest text, nothing but the end after the longest."""
    logits_NV = logits_NV.clone()
    end_N = logits_NV[:, rules.end_token].clone()
    logits_NV[:, rules.start_token] = -torch.inf
    if length < rules.min_tokens:
        logits_NV[:, rules.end_token] = -torch.inf
    if length >= rules.max_tokens:
        logits_NV[:] = -torch.inf
        logits_NV[:, rules.end_token] = end_N
    return logits_NV


def _nucleus_probs(logits_BV: Tensor, top_p: float) -> Tensor:
    probs_BV = logits_BV.softmax(-1)
    ordered_BV, places_BV = probs_BV.sort(descending=True, dim=-1, stable=True)
    ordered_BV = torch.where(ordered_BV.cumsum(-1) - ordered_BV < top_p, ordered_BV, 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, places_BV, ordered_BV)


def _until(text: list[int], end_token: int) -> list[int]:
    return text[: text.index(end_token)] if end_token in text else text
