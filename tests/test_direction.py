"""The order of frames: what the model can learn from it, and that only the temporal embedding carries it."""

import pytest
import torch
from torch import Tensor

from pipeline.losses import LossConfig, contrastive_loss
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig

NUM_PAIRS = 16
NUM_FRAMES = 4
ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def make_model() -> CLIPViP:
    torch.manual_seed(0)
    return CLIPViP.from_config(ModelConfig(architecture=ARCHITECTURE, num_temporal=NUM_FRAMES))


def reversed_pairs() -> tuple[Tensor, Tensor]:
    """Videos [2 * NUM_PAIRS, T, 3, 16, 16], each followed by its time reversal, and a text for each: `i forwards`,
    `i backwards`."""
    generator = torch.Generator().manual_seed(1)
    forwards = torch.rand(NUM_PAIRS, NUM_FRAMES, 3, 16, 16, generator=generator)
    videos = torch.stack([forwards, forwards.flip(1)], dim=1).flatten(0, 1)
    texts = torch.zeros(2 * NUM_PAIRS, 8, dtype=torch.int64)
    for row in range(2 * NUM_PAIRS):
        texts[row, :4] = torch.tensor([61, 1 + row // 2, 40 + row % 2, 63])
    return videos, texts


@pytest.mark.heavy
def test_overfits_time_reversed_pairs() -> None:
    model, (videos, texts) = make_model(), reversed_pairs()
    everywhere = torch.ones(len(videos), dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(400):
        features = model(video=videos, subtitle=texts)
        loss, _ = contrastive_loss(*features, everywhere, everywhere, LossConfig(name="vs"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            break
    model.eval()
    with torch.no_grad():
        features = model(video=videos, subtitle=texts)
    scores = features.video_BD @ features.subtitle_BD.T
    own, other = scores.diagonal(), scores[torch.arange(len(scores)), torch.arange(len(scores)) ^ 1]
    assert (own > other).all()
    assert (scores.argmax(dim=1) == torch.arange(len(scores))).all()


def test_without_temporal_embedding_the_order_of_frames_does_not_matter() -> None:
    model, (videos, _) = make_model().double().eval(), reversed_pairs()
    shuffled = videos[:, torch.tensor([2, 0, 3, 1])]
    with torch.no_grad():
        same = model(video=videos.double()).video_BD - model(video=shuffled.double()).video_BD
        model.visual.temporal_embedding.normal_(std=0.5)
        moved = model(video=videos.double()).video_BD - model(video=shuffled.double()).video_BD
    assert same.abs().max() < 1e-12
    assert moved.abs().max() > 1e-3
