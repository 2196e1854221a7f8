"""What ranks do in tests. Every function here runs on all ranks of a `RankPool`."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.dist import is_main, rank, world_size
from pipeline.engine import Engine, EngineConfig
from pipeline.gradient import Objective, backward_batch
from pipeline.losses import LossConfig
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups
from tests.pipeline.tiny import make_batch, make_model


def make_engine(
    stage: int, model: nn.Module, optim: OptimConfig, passthrough: dict[str, Any] | None = None, **settings: Any
) -> Engine:
    """An engine over `model`; the fp32 CPU one unless `settings` say otherwise."""
    config = EngineConfig.model_validate({"precision": "fp32", "device": "cpu", "zero_stage": stage} | settings)
    return Engine(
        model,
        make_optimizer(parameter_groups(model.named_parameters(), optim), optim),
        config,
        torch.device("cpu"),
        clip_norm=optim.clip_norm,
        rows_per_rank=1,
        passthrough=passthrough or {},
    )


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """The averaged gradient of every parameter, whole, whatever the stage. All ranks."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, parameter in engine.module.named_parameters():
        gradient = parameter.grad if engine.zero_stage == 0 else safe_get_full_grad(parameter)
        found[name] = torch.zeros(0) if gradient is None else gradient.detach().clone()
    return found


def gradient_case(stage: int, micro_batches: int, loss: str, num_clips: int, patch_dropout: float = 0.0) -> Any:
    """Loss, gradients and gradient norm of one global batch."""
    torch.manual_seed(5)
    model = make_model(patch_dropout=patch_dropout)
    engine = make_engine(stage, model, OptimConfig(clip_norm=0))
    engine.train()
    batch = make_batch(num_clips, rank=rank(), world_size=world_size())
    objective = Objective(LossConfig.model_validate({"name": loss}))
    value, _ = backward_batch(engine, objective, batch, micro_batches=micro_batches, accumulation="exact")
    gradients = whole_gradients(engine)
    norm = engine.gradient_norm()
    close(engine)
    return (value.item(), gradients, norm) if is_main() else None


def close(engine: Engine) -> None:
    """Let go of an engine's hooks and buffers, so that the next case starts clean."""
    with contextlib.suppress(AttributeError):
        engine.deepspeed.destroy()
