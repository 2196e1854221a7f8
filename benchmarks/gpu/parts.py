"""Parts of the work by themselves: the contrastive loss at a large batch, encoding for retrieval, the reference.

record = loss_case(case, device)
"""

from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import gpu_reference
from benchmarks.gpu.cases import Case
from benchmarks.gpu.engine import rates
from benchmarks.gpu.measure import peak_gib, timed
from benchmarks.gpu.recipe import clip_flops, random_batch, recipe
from pipeline.losses import LossConfig, contrastive_loss
from pipeline.model.clip_vip import CLIPViP

DIMENSIONS = 512


def loss_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Forward and backward of the final loss from features of `clips` clips; memory beyond the features."""
    draw = torch.Generator(device).manual_seed(0)
    features = [
        F.normalize(torch.randn(case.clips, DIMENSIONS, device=device, generator=draw), dim=1).requires_grad_()
        for _ in range(4)
    ]
    scale = torch.tensor(100.0, device=device, requires_grad=True)
    everyone = torch.ones(case.clips, dtype=torch.bool, device=device)
    before = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0

    def step() -> None:
        loss, _ = contrastive_loss(*features, scale, everyone, everyone, LossConfig(name="vsc_fc"))
        loss.backward()
        for tensor in (*features, scale):
            tensor.grad = None

    seconds = timed(step, device, steps=4, warm=1)
    peak = peak_gib(device)
    return {**seconds, "beyond_features_gib": None if peak is None else peak - before}


def encode_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Clips a second through the video tower alone, bf16, as evaluation encodes."""
    config = recipe(case, device)
    torch.manual_seed(0)
    model = CLIPViP.from_config(config.model).to(device).eval()
    video = random_batch(config, model, case.clips).video_BTCHW.to(device)

    def step() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            model(video=video)

    seconds = timed(step, device, steps=8, warm=2)
    return {**seconds, "clips_per_s": case.clips / seconds["step_s"], "peak_gib": peak_gib(device)}


def reference_case(case: Case, device: torch.device) -> dict[str, Any]:
    """`benchmarks.gpu_reference` at this size."""
    found = gpu_reference.measure(case.base, case.clips, device)
    config = recipe(case, device)
    with torch.device("meta"):
        model = CLIPViP(config.model)
    return {**found, **rates(case.clips, found, clip_flops(config, model), device)}
