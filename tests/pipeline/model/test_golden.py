"""The model and the losses against the official implementation's numbers."""

import pytest
import torch

from pipeline.losses import LossConfig, LossName, contrastive_loss
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups, set_learning_rate
from tests.pipeline.model import golden

FEATURES = ("video", "subtitle", "frame", "caption")
ALL = torch.ones(6, dtype=torch.bool)
# The golden files hold float32 for tensors and float64 for losses and norms.
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.mark.parametrize("dtype", LOSS_TOLERANCE)
def test_features_equal_the_official_ones(dtype: torch.dtype) -> None:
    features = golden.model(dtype)(**golden.inputs(dtype))
    for name, feature_BD in zip(FEATURES, features[:4], strict=True):
        official_BD = golden.outputs()[f"{name}_features"].to(dtype)
        assert torch.linalg.norm(feature_BD - official_BD) <= 1e-6 * torch.linalg.norm(official_BD)


@pytest.mark.parametrize("dtype", LOSS_TOLERANCE)
@pytest.mark.parametrize("name", golden.LOSSES)
def test_loss_and_gradient_norms_equal_the_official_ones(name: LossName, dtype: torch.dtype) -> None:
    model = golden.model(dtype)
    loss, _ = contrastive_loss(*model(**golden.inputs(dtype)), ALL, ALL, LossConfig(name=name))
    loss.backward()
    official = golden.expected()["losses"][golden.LOSSES[name]]
    assert abs(loss.item() - official) <= LOSS_TOLERANCE[dtype] * official

    norms = golden.expected()["grad_norms"][golden.LOSSES[name]]
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    ours = golden.gradients(model)
    assert ours.keys() == norms.keys()
    wrong = {
        key: (ours[key].norm().item(), norm)
        for key, norm in norms.items()
        if abs(ours[key].norm().item() - norm) > 1e-4 * norm + 1e-6 * total
    }
    assert not wrong


@pytest.mark.parametrize("dtype", LOSS_TOLERANCE)
def test_gradients_of_the_final_loss_equal_the_official_ones_entry_by_entry(dtype: torch.dtype) -> None:
    model = golden.model(dtype)
    loss, _ = contrastive_loss(*model(**golden.inputs(dtype)), ALL, ALL, LossConfig(name="vsc_fc"))
    loss.backward()
    ours = golden.gradients(model)
    norms = golden.expected()["grad_norms"][golden.LOSSES["vsc_fc"]]
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    official = {key.removeprefix("grad."): value for key, value in golden.outputs().items() if key.startswith("grad.")}
    assert official
    for key, gradient in official.items():
        error = torch.linalg.norm(ours[key].double() - gradient.double()).item()
        assert error <= 1e-4 * norms[key] + 1e-6 * total, key


@pytest.mark.heavy
def test_twenty_steps_follow_the_official_trajectory_in_float64() -> None:
    """One batch, the official preset: optimizer form, decay groups, clipping, clamp and schedule."""
    recipe = golden.expected()["optimisation"]
    config = OptimConfig(
        preset="official",
        lr=recipe["lr"],
        betas=tuple(recipe["betas"]),
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
        warmup=recipe["warmup_ratio"],
        clip_norm=recipe["clip"],
    )
    model = golden.model(torch.float64)
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), config), config)
    inputs = golden.inputs(torch.float64)
    for row in golden.expected()["trajectory"]:
        loss, _ = contrastive_loss(*model(**inputs), ALL, ALL, LossConfig(name="vsc_fc"))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        lr = config.lr_at(row["step"], recipe["steps"])
        set_learning_rate(optimizer.param_groups, lr)
        optimizer.step()
        seen = {"loss": loss.item(), "lr": lr, "grad_norm": norm.item(), "logit_scale": model.logit_scale.item()}
        assert seen == pytest.approx({key: row[key] for key in seen}, rel=1e-3), row["step"]
    trained_BD = model(video=inputs["video"]).video_BD
    official_BD = golden.outputs()["video_features_after_training"].double()
    assert torch.linalg.norm(trained_BD - official_BD) <= 1e-3 * torch.linalg.norm(official_BD)
