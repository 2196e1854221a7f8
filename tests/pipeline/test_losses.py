"""Every row of the table of losses: blocks, masks, ranks and memory against the plain form."""

import resource
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.losses import TERMS, LossConfig, LossName, contrastive, contrastive_loss
from tests.pipeline.plain_losses import plain_loss
from tests.ranks import run_ranks

NAMES = tuple(TERMS)
KINDS = ("video", "subtitle", "frame", "caption")
NUM_CLIPS, NUM_DIMENSIONS = 24, 16


def make_batch(masked: bool, num_clips: int = NUM_CLIPS) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Four unit features, the logit scale, and the two masks."""
    draw = torch.Generator().manual_seed(0)
    features = [
        F.normalize(torch.randn(num_clips, NUM_DIMENSIONS, dtype=torch.float64, generator=draw), dim=1) for _ in KINDS
    ]
    scale = torch.tensor(20.0, dtype=torch.float64)
    has_subtitle, has_caption = torch.ones(2, num_clips, dtype=torch.bool)
    if masked:
        has_subtitle[::5] = False
        has_caption[1::3] = False
        has_caption[0] = False  # clip 0 has neither
    return features, scale, has_subtitle, has_caption


def value_and_gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    pairs = zip(inputs, gradients, strict=True)
    return [loss.detach(), *(torch.zeros_like(value) if gradient is None else gradient for value, gradient in pairs)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block_side", [1, 7, 24, 100])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_equal_the_plain_loss_in_value_and_gradient(name: LossName, block_side: int, masked: bool) -> None:
    features, scale, has_s, has_c = make_batch(masked)
    inputs = [value.requires_grad_() for value in (*features, scale)]
    loss, _ = contrastive_loss(*inputs, has_s, has_c, LossConfig(name=name, block_side=block_side))
    expected = plain_loss(name, *inputs, has_s, has_c)
    for ours, plain in zip(value_and_gradients(loss, inputs), value_and_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_terms_add_up_and_mean_divides_by_their_number() -> None:
    features, scale, has_s, has_c = make_batch(masked=True)
    loss, terms = contrastive_loss(*features, scale, has_s, has_c, LossConfig(name="vsc_fc"))
    mean, _ = contrastive_loss(*features, scale, has_s, has_c, LossConfig(name="vsc_fc", reduction="mean"))
    assert list(terms) == ["s_to_v", "c_to_v", "v_to_s", "v_to_c", "f_to_c", "c_to_f"]
    torch.testing.assert_close(sum(terms.values()), loss)
    torch.testing.assert_close(mean * 6, loss)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_masked_has_no_influence(name: LossName) -> None:
    features, scale, has_s, has_c = make_batch(masked=True)
    inputs = [value.requires_grad_() for value in features]
    loss, _ = contrastive_loss(*inputs, scale, has_s, has_c, LossConfig(name=name))
    gradients = value_and_gradients(loss, inputs)[1:]
    _, subtitle, frame, caption = gradients
    assert not subtitle[~has_s].any()
    assert not caption[~has_c].any()
    assert not frame[~has_c].any()
    assert all(not gradient[~(has_s | has_c)].any() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_at_all_is_a_loss_of_zero_with_zero_gradient(name: LossName) -> None:
    features, scale, has_s, _ = make_batch(masked=False)
    inputs = [value.requires_grad_() for value in features]
    nothing = torch.zeros_like(has_s)
    loss, _ = contrastive_loss(*inputs, scale, nothing, nothing, LossConfig(name=name))
    assert all(not value.any() for value in value_and_gradients(loss, inputs))


@pytest.mark.parametrize("masked", [False, True])
def test_no_value_is_read_from_a_device(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data cannot be read; blocks are masked then, which changes nothing where all have texts."""
    features, scale, has_s, has_c = make_batch(masked)
    inputs = [value.requires_grad_() for value in (*features, scale)]
    expected, _ = contrastive_loss(*inputs, has_s, has_c, LossConfig(name="vsc_fc"))
    monkeypatch.setattr(contrastive, "_known_to_be_full", lambda _: [False, False])
    found, _ = contrastive_loss(*inputs, has_s, has_c, LossConfig(name="vsc_fc"))
    for ours, known in zip(value_and_gradients(found, inputs), value_and_gradients(expected, inputs), strict=True):
        assert ours.equal(known)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no tensors without data
    moved = [value.detach().to("meta").requires_grad_() for value in inputs]
    loss, _ = contrastive_loss(*moved, has_s.to("meta"), has_c.to("meta"), LossConfig(name="vsc_fc"))
    loss.backward()


def test_computes_in_float32_under_autocast() -> None:
    features, scale, has_s, has_c = make_batch(masked=False)
    half = [value.bfloat16() for value in features]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = contrastive_loss(*half, scale.float(), has_s, has_c, LossConfig(name="vs"))
    expected = plain_loss("vs", *(value.float() for value in half), scale.float(), has_s, has_c)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_what_is_hidden_cannot_drown_what_counts() -> None:
    """A clip without subtitle whose video equals another's subtitle: in float32, 400 below it, nothing may be lost."""
    direction = F.normalize(torch.ones(1, NUM_DIMENSIONS), dim=1)
    subtitle = direction.repeat(4, 1)
    video = torch.cat([direction, -direction.repeat(3, 1)])
    has_s, has_c = torch.tensor([False, True, True, True]), torch.zeros(4, dtype=torch.bool)
    inputs = [value.requires_grad_() for value in (video, subtitle, torch.tensor(200.0))]
    loss, _ = contrastive_loss(inputs[0], inputs[1], None, None, inputs[2], has_s, has_c, LossConfig(name="vs"))
    expected = plain_loss("vs", inputs[0], inputs[1], subtitle, subtitle, inputs[2], has_s, has_c)
    for ours, plain in zip(value_and_gradients(loss, inputs), value_and_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_clip_has_nothing_to_be_told_from(name: LossName) -> None:
    features, scale, _, _ = make_batch(masked=False, num_clips=1)
    inputs = [value.requires_grad_() for value in (*features, scale)]
    everyone = torch.ones(1, dtype=torch.bool)
    loss, _ = contrastive_loss(*inputs, everyone, everyone, LossConfig(name=name))
    expected = plain_loss(name, *inputs, everyone, everyone)
    for ours, plain in zip(value_and_gradients(loss, inputs), value_and_gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_missing_and_misshaped_and_misplaced_features_are_named() -> None:
    (v, s, _, c), scale, has_s, has_c = make_batch(masked=False)
    with pytest.raises(InputError, match="vsc_fc needs features of the middle frame"):
        contrastive_loss(v, s, None, c, scale, has_s, has_c, LossConfig(name="vsc_fc"))
    with pytest.raises(InputError, match=r"B = 24.*'subtitle': \[23, 16\]"):
        contrastive_loss(v, s[1:], None, None, scale, has_s, has_c, LossConfig(name="vs"))
    with pytest.raises(InputError, match=r"one device, got \{'subtitle': 'meta', 'video': 'cpu'"):
        contrastive_loss(v, s.to("meta"), None, None, scale, has_s, has_c, LossConfig(name="vs"))


@pytest.mark.heavy
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_one_process(num_ranks: int, tmp_path: Path) -> None:
    """Values on every rank, and gradients averaged over ranks, of all rows: masked clips and ragged blocks included."""
    run_ranks(save_results, num_ranks, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(num_ranks)]
    share = NUM_CLIPS // num_ranks
    features, scale, has_s, has_c = make_batch(masked=True)
    inputs = [value.requires_grad_() for value in (*features, scale)]
    for name in NAMES:
        value, *gradients = value_and_gradients(plain_loss(name, *inputs, has_s, has_c), inputs)
        for rank, result in enumerate(results):
            rows = slice(rank * share, (rank + 1) * share)
            torch.testing.assert_close(result[name][0], value, rtol=1e-10, atol=1e-12)
            # A parameter that made these rows alone: its gradient is averaged over the ranks.
            for ours, plain in zip(result[name][1:5], gradients[:4], strict=True):
                torch.testing.assert_close(ours / num_ranks, plain[rows], rtol=1e-10, atol=1e-12)
        scale_gradient = torch.stack([result[name][5] for result in results]).mean()
        torch.testing.assert_close(scale_gradient, gradients[4], rtol=1e-10, atol=1e-12)


@pytest.mark.heavy
def test_peak_memory_is_bounded_by_blocks_not_by_the_logit_matrix(tmp_path: Path) -> None:
    """8,192 clips, d = 64: one logit matrix alone takes 268 MB, and the plain loss four of them."""
    run_ranks(save_peak, 1, tmp_path)
    assert float((tmp_path / "peak_mb").read_text()) < 100  # the matrix products keep buffers of their own


def save_peak(rank: int, num_ranks: int, folder: Path) -> None:
    video, subtitle = (F.normalize(torch.randn(8192, 64), dim=1).requires_grad_() for _ in range(2))
    everyone = torch.ones(8192, dtype=torch.bool)
    config, scale = LossConfig(name="vs"), torch.tensor(100.0)
    contrastive_loss(video[:8], subtitle[:8], None, None, scale, everyone[:8], everyone[:8], config)[0].backward()
    video.grad = subtitle.grad = None
    with open("/proc/self/statm") as status:
        before_bytes = int(status.read().split()[1]) * resource.getpagesize()
    contrastive_loss(video, subtitle, None, None, scale, everyone, everyone, config)[0].backward()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / "peak_mb").write_text(str((peak_bytes - before_bytes) / 1e6))


def save_results(rank: int, num_ranks: int, folder: Path) -> None:
    features, scale, has_s, has_c = make_batch(masked=True)
    share = NUM_CLIPS // num_ranks
    rows = slice(rank * share, (rank + 1) * share)
    results = {}
    for name in NAMES:
        inputs = [value[rows].clone().requires_grad_() for value in features] + [scale.clone().requires_grad_()]
        loss, _ = contrastive_loss(*inputs, has_s[rows], has_c[rows], LossConfig(name=name, block_side=5))
        results[name] = value_and_gradients(loss, inputs)
    torch.save(results, folder / f"{rank}.pt")
