"""Configurations at random against a second, dense transcription of the official mathematics, in float64.

Other numbers of frames, proxies, temporal vectors and patches than the golden set has: nothing may be special there.
"""

from pathlib import Path

import pytest
import torch

from pipeline.losses import TERMS, LossConfig, LossName, contrastive_loss
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups, set_learning_rate
from tests.pipeline.model import golden, official
from tests.pipeline.model.official import Shape
from tests.pipeline.plain_losses import plain_loss

SHAPES = [
    Shape(patch_px=8, image_px=24, frames=5, temporal=12, proxies=1),
    Shape(patch_px=16, image_px=32, frames=32, temporal=12, proxies=8),
    Shape(patch_px=14, image_px=28, frames=5, temporal=5, proxies=8, vision_heads=2, clips=3),
    Shape(patch_px=4, image_px=12, frames=32, temporal=32, proxies=1, text_heads=4, text_layers=1, clips=3),
    Shape(patch_px=32, image_px=32, frames=12, temporal=12, proxies=4, projection=7, context=77, vocabulary=512),
    Shape(patch_px=12, image_px=36, frames=1, temporal=12, proxies=4, clips=9),
    Shape(patch_px=10, image_px=30, frames=8, temporal=3, proxies=2, vision_width=40, vision_heads=5, vision_layers=3),
]


def build(shape: Shape, seed: int, folder: Path) -> tuple[CLIPViP, official.State, dict[str, torch.Tensor]]:
    """Our model, loaded from a file of the released form; its weights; inputs."""
    draw = torch.Generator().manual_seed(seed)
    state = official.make_state(shape, draw)
    released = {f"clipmodel.{name}": value.float() for name, value in state.items()}
    released["clipmodel.text_model.embeddings.position_ids"] = torch.arange(shape.context)[None]
    torch.save(released, folder / "released.pt")
    values = {
        "name": "random",
        "architecture": shape.architecture(),
        "pretrained": str(folder / "released.pt"),
        "num_proxies": shape.proxies,
        "num_temporal": shape.temporal,
    }
    model = CLIPViP.from_config(ModelConfig.model_validate(values)).double()
    return model, state, official.make_inputs(shape, draw)


def everyone(shape: Shape) -> torch.Tensor:
    return torch.ones(shape.clips, dtype=torch.bool)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_features_losses_and_gradients_of_any_configuration(seed: int, tmp_path: Path) -> None:
    shape = SHAPES[seed]
    model, state, inputs = build(shape, seed, tmp_path)
    for value in state.values():
        value.requires_grad_()
    features, expected = model(**inputs), official.features(state, shape, inputs)
    for ours, theirs in zip(features[:4], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    name: LossName
    for name in TERMS:
        model.zero_grad()
        loss, _ = contrastive_loss(*features, everyone(shape), everyone(shape), LossConfig(name=name))
        plain = plain_loss(name, *expected, state["logit_scale"].exp(), everyone(shape), everyone(shape))
        torch.testing.assert_close(loss, plain, rtol=1e-9, atol=0)
        loss.backward(retain_graph=True)
        gradients = torch.autograd.grad(plain, list(state.values()), allow_unused=True, retain_graph=True)
        pairs = zip(state, gradients, strict=True)
        wanted = {key: value for key, value in pairs if value is not None and value.numel()}  # M = 1 adds no proxies
        total = torch.stack([value.norm() for value in wanted.values()]).norm()
        found = golden.gradients(model)
        assert found.keys() == wanted.keys(), name
        for key, gradient in wanted.items():
            assert (found[key] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-11 * total, (name, key)


@pytest.mark.heavy
@pytest.mark.parametrize(("seed", "steps", "warmup"), [(0, 30, 0.05), (1, 20, 0.17)])
def test_training_of_any_configuration(seed: int, steps: int, warmup: float, tmp_path: Path) -> None:
    """Warm-ups that do not divide the steps, too: the official code warms up over whole steps."""
    shape = SHAPES[seed]
    model, state, inputs = build(shape, seed, tmp_path)
    config = OptimConfig(preset="official", lr=1e-3, weight_decay=0.05, eps=1e-6, warmup=warmup, clip_norm=5.0)
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), config), config)
    for row in official.train("vsc_fc", state, shape, inputs, steps=steps, lr=1e-3, clip=5.0, warmup=warmup):
        loss, _ = contrastive_loss(*model(**inputs), everyone(shape), everyone(shape), LossConfig(name="vsc_fc"))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        lr = config.lr_at(int(row["step"]), steps)
        set_learning_rate(optimizer.param_groups, lr)
        optimizer.step()
        seen = {"loss": loss.item(), "lr": lr, "grad_norm": norm.item(), "logit_scale": model.logit_scale.item()}
        assert seen == pytest.approx({key: row[key] for key in seen}, rel=1e-6), row["step"]
    with torch.no_grad():
        expected = official.features(state, shape, inputs)
    for ours, theirs in zip(model(**inputs)[:4], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
