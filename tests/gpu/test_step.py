"""Steps on a GPU: compiled and captured against eager, every ZeRO stage, half precision, parts, shapes, masks.

Eager is the reference; the golden trajectory is the official implementation's.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline import acceleration
from pipeline import engine as engine_module
from pipeline.data.batch import Batch
from pipeline.engine import Engine, start_distributed
from pipeline.engine_config import EngineConfig
from pipeline.gradient import Objective, backward_batch
from pipeline.losses import LossConfig
from pipeline.model.clip_vip import CLIPViP
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups, set_learning_rate
from tests.gpu.conftest import DEVICE, REHEARSAL
from tests.pipeline.model import golden
from tests.pipeline.tiny import make_batch, make_model

FAST = {"compile": True, "capture": True}
EAGER = {"compile": False, "capture": False}
STEPS = 20


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    """In a rehearsal the compiler only traces: what it would write in C++ takes minutes."""
    chosen = "aot_eager" if REHEARSAL else acceleration.COMPILER_BACKEND
    with (
        mock.patch.object(acceleration, "COMPILER_BACKEND", chosen),
        mock.patch.object(engine_module, "COMPILER_BACKEND", chosen),
    ):
        yield


def make_engine(model: CLIPViP, optim: OptimConfig, **settings: Any) -> Engine:
    config = EngineConfig.model_validate(
        {"precision": "fp32", "tf32": False, "zero_stage": 0, "device": DEVICE.type} | settings
    )
    start_distributed(config)
    groups = parameter_groups(model.named_parameters(), optim)
    engine = Engine(
        model,
        make_optimizer(groups, optim),
        config,
        DEVICE,
        clip_norm=optim.clip_norm,
        rows_per_rank=1,
        passthrough={},
    )
    engine.train()
    return engine


def close(engine: Engine) -> None:
    engine.forward_timer.take()
    engine.deepspeed.destroy()


def batch_of(seed: int, num_clips: int = 8) -> Batch:
    return make_batch(num_clips, seed).trimmed().to(DEVICE)


def one_step(engine: Engine, batch: Batch, parts: int = 1, name: str = "vsc_fc") -> tuple[float, float]:
    """Loss and norm."""
    objective = Objective(LossConfig.model_validate({"name": name}))
    loss, _ = backward_batch(engine, objective, batch, micro_batches=parts, accumulation="exact")
    return engine.read(loss)


def train(optim: OptimConfig, parts: int = 1, steps: int = STEPS, **settings: Any) -> list[float]:
    """The losses of a few steps over four batches, one of them of another size."""
    engine, losses = make_engine(make_model(), optim, **settings), []
    for number in range(steps):
        value, _ = one_step(engine, batch_of(number % 4, 6 if number % 4 == 3 else 8), parts)
        losses.append(value)
        engine.step()
    close(engine)
    return losses


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-3)])
def test_fast_steps_are_the_eager_ones(precision: str, tolerance: float) -> None:
    optim = OptimConfig(lr=1e-4)
    expected = train(optim, precision=precision, **EAGER)
    assert train(optim, precision=precision, **FAST) == pytest.approx(expected, rel=tolerance)
    assert expected[-1] != pytest.approx(expected[0], rel=0.05), "nothing was learned"


@pytest.mark.parametrize("stage", [1, 2])
def test_captured_steps_under_zero_are_the_eager_ones_without(stage: int) -> None:
    optim = OptimConfig(lr=1e-4)
    expected = train(optim, **EAGER)
    assert train(optim, zero_stage=stage, capture=True, compile=False) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("stage", "parts"), [(0, 2), (0, 3), (1, 2)])
def test_exact_parts_of_captured_towers_are_one_pass(stage: int, parts: int) -> None:
    optim = OptimConfig(lr=1e-4)
    expected = train(optim, steps=6, **EAGER)
    assert train(optim, parts, steps=6, zero_stage=stage, capture=True, compile=False) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize(("stage", "settings"), [(0, FAST), (0, EAGER), (1, EAGER), (2, EAGER), (3, EAGER)], ids=str)
def test_the_golden_trajectory(stage: int, settings: dict[str, Any]) -> None:
    """float32 against the official float64."""
    recipe = golden.expected()["optimisation"]
    optim = OptimConfig(
        preset="official",
        lr=recipe["lr"],
        betas=recipe["betas"],
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
        warmup=recipe["warmup_ratio"],
        clip_norm=recipe["clip"],
    )
    engine = make_engine(golden.model(), optim, zero_stage=stage, **settings)
    inputs = {name: value.to(DEVICE) for name, value in golden.inputs().items()}
    present = torch.ones(len(inputs["video"]), dtype=torch.bool, device=DEVICE)
    objective = Objective(LossConfig(name="vsc_fc"))
    for row in golden.expected()["trajectory"]:
        loss, _ = objective(engine(**inputs), present, present)
        engine.backward(loss)
        value, norm = engine.read(loss)
        set_learning_rate(engine.param_groups, optim.lr_at(row["step"], recipe["steps"]))
        engine.step()
        assert value == pytest.approx(row["loss"], rel=2e-3, abs=2e-4), row["step"]
        assert norm == pytest.approx(row["grad_norm"], rel=5e-3, abs=1e-2), row["step"]
    close(engine)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.skipif(REHEARSAL, reason="fp16 needs a GPU")
def test_fp16_finds_its_scale_and_learns(stage: int) -> None:
    settings = {"capture": stage == 0, "compile": False}
    engine = make_engine(make_model(), OptimConfig(lr=1e-3), precision="fp16", zero_stage=stage, **settings)
    rows = []
    for number in range(STEPS):
        rows.append(one_step(engine, batch_of(number % 4)))
        engine.step()
    assert engine.loss_scale is not None and math.isfinite(rows[-1][1])
    assert rows[-1][0] < rows[0][0]
    close(engine)


def test_evaluation_between_steps_changes_nothing() -> None:
    """Other shapes, in evaluation mode, between forward passes that are captured."""
    optim, losses = OptimConfig(lr=1e-3), {}
    for evaluates in (False, True):
        engine, seen = make_engine(make_model(), optim, capture=True, compile=False), []
        for number in range(5):
            seen.append(one_step(engine, batch_of(number))[0])
            engine.step()
            if evaluates:
                engine.eval()
                with torch.no_grad():
                    features = engine(video=batch_of(9, 5).video_BTCHW)
                assert torch.isfinite(features.video_BD).all()
                engine.train()
        losses[evaluates] = seen
        close(engine)
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


def test_masked_rows_hold_anything() -> None:
    """Rows without a caption, and a bad one whose pixels are not zero, take no part."""
    values = {}
    for name, settings in (("eager", EAGER), ("captured", {"capture": True, "compile": False})):
        engine = make_engine(make_model(), OptimConfig(clip_norm=0), **settings)
        batch = batch_of(0)
        assert not batch.has_subtitle_B.all() and not batch.has_caption_B.all()
        values[name] = one_step(engine, batch)
        engine.drop_gradients()
        other = batch.video_BTCHW.clone()
        other[~batch.valid_B] = 255
        values[f"{name}, other pixels"] = one_step(engine, replace(batch, video_BTCHW=other))
        close(engine)
    expected = values.pop("eager")
    for name, found in values.items():
        assert found == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("name", ["vs", "concatenated", "vs_dsl"])
def test_any_loss_runs_on_captured_towers(name: str) -> None:
    found = []
    for settings in (EAGER, {"capture": True, "compile": False}):
        engine = make_engine(make_model(), OptimConfig(clip_norm=0), **settings)
        found.append(one_step(engine, batch_of(1), name=name))
        close(engine)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("preset", ["clean", "official"])
def test_both_forms_of_the_optimizer_are_those_of_the_cpu(preset: Any) -> None:
    optim = OptimConfig(preset=preset, lr=1e-2, weight_decay=0.2)
    torch.manual_seed(0)
    start, gradients = torch.randn(7, 5), torch.randn(4, 7, 5)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        weight = torch.nn.Parameter(start.to(device))
        optimizer = make_optimizer(parameter_groups([("weight", weight)], optim), optim)
        for gradient in gradients:
            weight.grad = gradient.to(device)
            optimizer.step()
        found.append(weight.detach().cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
