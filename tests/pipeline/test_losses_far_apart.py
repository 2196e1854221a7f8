"""Every loss in float32 at the largest scale with features far apart, under every pattern of masks.

Logits reach from -200 to 200, so that any exponential of a difference that should have been hidden overflows. The
reference is the plain form in float64 over the valid rows alone; hidden rows hold whatever a bad sample may leave.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses import TERMS, LossConfig, LossName, contrastive_loss
from tests.pipeline.plain_losses import plain_loss
from tests.ranks import run_ranks

NAMES = tuple(TERMS)
NUM_CLIPS, NUM_DIMENSIONS = 4, 3
SCALE = 200.0
BLOCK_SIDES = (1, 2, 3, 1024)


def far_apart(seed: int, num_clips: int = NUM_CLIPS, noise: float = 0.02) -> list[Tensor]:
    """Four kinds of unit features along the axes, in either direction: equal, opposite or orthogonal, but for noise."""
    draw = torch.Generator().manual_seed(seed)
    axes = torch.eye(NUM_DIMENSIONS)[torch.randint(NUM_DIMENSIONS, (4, num_clips), generator=draw)]
    signs = torch.randint(2, (4, num_clips, 1), generator=draw) * 2 - 1
    noisy = axes * signs + noise * torch.randn(axes.shape, generator=draw)
    return list(F.normalize(noisy, dim=-1))


def all_masks(num_clips: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (has_subtitle, has_caption)."""
    for flags in itertools.product((False, True), repeat=2 * num_clips):
        yield torch.tensor(flags[:num_clips]), torch.tensor(flags[num_clips:])


def ours(name: LossName, features: list[Tensor], has_s: Tensor, has_c: Tensor, block_side: int) -> list[Tensor]:
    """Loss, and gradients of the features and of the scale."""
    inputs = [feature.clone().requires_grad_() for feature in (*features, torch.tensor(SCALE))]
    loss, terms = contrastive_loss(*inputs, has_s, has_c, LossConfig(name=name, block_side=block_side))
    assert all(value.isfinite() for value in terms.values())
    return [loss.detach(), *_gradients(loss, inputs)]


def reference(name: LossName, features: list[Tensor], has_s: Tensor, has_c: Tensor) -> list[Tensor]:
    """The same in float64."""
    inputs = [feature.double().requires_grad_() for feature in (*features, torch.tensor(SCALE))]
    loss = plain_loss(name, *inputs, has_s, has_c)
    return [loss.detach(), *_gradients(loss, inputs)]


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(inputs, gradients, strict=True)
    ]


def check(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Value and gradients; a dual softmax at scale 200 multiplies the rounding of a logit by 200 times 200."""
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        bound = tolerance * (1 + other.norm().item())
        assert (one.double() - other).norm().item() <= bound, (one, other)


def test_a_hidden_query_far_above_a_prior_is_not_seen() -> None:
    """The only clip with a subtitle has nothing to be told from: loss 0, gradient 0."""
    video, subtitle = torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    inputs = [value.requires_grad_() for value in (video, subtitle, torch.tensor(100.0))]
    has_s, has_c = torch.tensor([True, False]), torch.tensor([False, False])
    loss, _ = contrastive_loss(inputs[0], inputs[1], None, None, inputs[2], has_s, has_c, LossConfig(name="vs_dsl"))
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_every_pattern_of_masks_equals_the_plain_loss_over_valid_rows(name: LossName) -> None:
    for number, (has_s, has_c) in enumerate(all_masks(3)):
        features = far_apart(number, num_clips=3)
        expected = reference(name, features, has_s, has_c)
        check(ours(name, features, has_s, has_c, BLOCK_SIDES[number % 4]), expected, 2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_opposite_and_equal_features(name: LossName) -> None:
    """Without noise: ties at 200, and differences of 400."""
    for number, (has_s, has_c) in enumerate(all_masks(2)):
        features = far_apart(number + 1000, num_clips=2, noise=0.0)
        expected = reference(name, features, has_s, has_c)
        check(ours(name, features, has_s, has_c, BLOCK_SIDES[number % 4]), expected, 2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_features_in_bf16_under_autocast(name: LossName) -> None:
    """The loss computes in float32; only what flows back into the features is rounded to bf16."""
    for number, (has_s, has_c) in enumerate(list(all_masks(3))[::7]):
        features = [feature.bfloat16() for feature in far_apart(number, num_clips=3)]
        expected = reference(name, features, has_s, has_c)
        with torch.autocast("cpu", torch.bfloat16):
            found = ours(name, features, has_s, has_c, BLOCK_SIDES[number % 4])
        check(found, expected, 1e-2)
        check([found[0], found[-1]], [expected[0], expected[-1]], 2e-4)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 3e38, 0.0])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_hidden_row_holds_does_not_matter(name: LossName, garbage: float) -> None:
    """Padding and bad rows: value and gradients are, bit for bit, those with ordinary features in these rows."""
    has_s, has_c = torch.tensor([True, False, False, True]), torch.tensor([True, False, True, False])
    features = far_apart(5)
    expected = ours(name, features, has_s, has_c, 3)
    hidden = {0: ~(has_s | has_c), 1: ~has_s, 2: ~has_c, 3: ~has_c}
    for kind, rows in hidden.items():
        features[kind] = features[kind].masked_fill(rows.unsqueeze(1), garbage)
    found = ours(name, features, has_s, has_c, 3)
    for one, other in zip(found, expected, strict=True):
        assert one.equal(other)


RANKS_CASES = [(number, *masks) for number, masks in enumerate(list(all_masks(NUM_CLIPS))[::37])]


@pytest.mark.heavy
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_the_plain_loss_over_valid_rows(num_ranks: int, tmp_path: Path) -> None:
    run_ranks(save_results, num_ranks, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(num_ranks)]
    for name in NAMES:
        for number, has_s, has_c in RANKS_CASES:
            expected = reference(name, far_apart(number), has_s, has_c)
            parts = [result[name, number] for result in results]
            for part in parts:
                check(part[:1], expected[:1], 2e-4)
            joined = [torch.cat([part[kind] for part in parts]) / num_ranks for kind in range(1, 5)]
            scale = torch.stack([part[5] for part in parts]).mean()
            check([*joined, scale], expected[1:], 2e-4)


def save_results(rank: int, num_ranks: int, folder: Path) -> None:
    share = NUM_CLIPS // num_ranks
    rows = slice(rank * share, (rank + 1) * share)
    results = {}
    for name in NAMES:
        for number, has_s, has_c in RANKS_CASES:
            features = [feature[rows] for feature in far_apart(number)]
            results[name, number] = ours(name, features, has_s[rows], has_c[rows], BLOCK_SIDES[number % 4])
    torch.save(results, folder / f"{rank}.pt")
