"""Cases of the engine on a batch that lies on the device: as the recipes run it, in other ways, and dense.

record = engine_case(case, device)
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case
from benchmarks.gpu.measure import peak_gib, timed
from benchmarks.gpu.recipe import Stage, clip_flops, random_batch, recipe
from pipeline.flops import peak_flops_of
from pipeline.gradient import Objective
from pipeline.model.clip_vip import CLIPViP, Features
from tests.pipeline.model import dense

STEPS, WARM, CURVE_STEPS = 12, 4, 200


def rates(clips: int, seconds: dict[str, float], flops: float, device: torch.device) -> dict[str, Any]:
    """Clips a second and the share of the peak, from the median step."""
    per_s = clips / seconds["step_s"]
    peak = peak_flops_of(device)
    return {"clips_per_s": per_s, "mfu": None if peak is None else per_s * flops / peak}


def engine_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Time of `Stage.step`."""
    config = recipe(case, device)
    stage = Stage(config, case.clips, device)
    losses = []
    seconds = timed(lambda: losses.append(stage.step()[0]), device, steps=STEPS, warm=WARM)
    record = {
        **seconds,
        **rates(case.clips, seconds, clip_flops(config, stage.model), device),
        "peak_gib": peak_gib(device),
        "losses": [losses[0], losses[-1]],
        "zero_stage": config.engine.zero_stage,
    }
    stage.close()
    return record


def losses_case(case: Case, device: torch.device) -> dict[str, Any]:
    """The losses of 200 steps over 8 batches by turns, at the recipe's rate without schedule: for the plot."""
    config = recipe(case, device)
    stage = Stage(config, case.clips, device)
    host = [random_batch(config, stage.model, case.clips, seed=seed).trimmed() for seed in range(8)]
    steps = CURVE_STEPS if device.type == "cuda" else 10
    losses = []
    for number in range(steps):
        stage.batch = host[number % len(host)].to(device)
        losses.append(stage.step(config.optim.lr)[0])
    stage.close()
    return {"losses": losses}


def dense_case(case: Case, device: torch.device) -> dict[str, Any]:
    """A transcription of the official mathematics, eager, in a bare loop with torch's fused AdamW."""
    config = recipe(case, device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = CLIPViP.from_config(config.model).to(device).train()
    objective = Objective(config.loss)
    batch = random_batch(config, model, case.clips).trimmed().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def video_features(pixels_BTCHW: Tensor) -> Tensor:
        return dense.video_features(model, (pixels_BTCHW / 255 - model.pixel_mean) / model.pixel_std).float()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            texts = model(subtitle=batch.subtitle_BL, caption=batch.caption_BL)
            video_BD, frame_BD = video_features(batch.video_BTCHW), video_features(batch.middle_BCHW.unsqueeze(1))
        features = Features(video_BD, texts.subtitle_BD, frame_BD, texts.caption_BD, texts.logit_scale)
        loss, _ = objective(features, batch.has_subtitle_B, batch.has_caption_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = timed(step, device, steps=STEPS // 2, warm=2)
    found = rates(case.clips, seconds, clip_flops(config, model), device)
    return {**seconds, **found, "peak_gib": peak_gib(device)}
