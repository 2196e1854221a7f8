"""Floating-point operations and activation memory of CLIP-ViP, from shapes alone.

    work = ClipWork.of(model_config, num_frames=12, num_text_tokens=70, loss_name="vsc_fc")
    work.training_flops          # forward and backward of one clip, without recomputation
    GPUS["h100"].bf16_flops      # the peak that MFU is measured against

A multiplication and an addition are two operations. The backward pass costs twice the forward pass. Text is counted at
its full length, though trimmed batches cost less: MFU is then a little over the truth for short texts, never under it
for long ones.
"""

from dataclasses import dataclass
from typing import Self

import torch

from pipeline.losses.terms import TERMS, TEXTS, LossName, kinds_of
from pipeline.model.architecture import Architecture, read_architecture
from pipeline.model.config import ModelConfig


@dataclass(frozen=True)
class Gpu:
    """What a planner needs to know of a GPU."""

    bf16_flops: float
    """Dense peak, operations a second."""
    memory_gb: float


GPUS = {
    "a100": Gpu(312e12, 80),
    "a100-40": Gpu(312e12, 40),
    "a10": Gpu(125e12, 24),
    "l40s": Gpu(362e12, 48),
    "h100": Gpu(989e12, 80),
    "h200": Gpu(989e12, 141),
    "b200": Gpu(2250e12, 180),
}


@dataclass(frozen=True)
class Tokens:
    """One sequence through one tower."""

    tokens: int
    attended: int
    """Pairs of query and key."""
    width: int
    layers: int
    inner_width: int
    """Of the MLP."""

    @property
    def flops(self) -> float:
        """Forward, of all layers: projections, MLP, attention."""
        matrices = 4 * self.tokens * self.width * (2 * self.width + self.inner_width)
        return self.layers * (matrices + 4 * self.attended * self.width)

    def activation_bytes(self, bytes_per_value: int) -> float:
        """What the backward pass needs of the forward pass, without recomputation.

        Per token and layer: the residual stream twice (fp32), two LayerNorm outputs, q, k, v, what attention returns,
        and the MLP's hidden values before and after the activation (quick-GELU keeps its sigmoid too).
        """
        values = (2 + 3 + 1) * self.width + 3 * self.inner_width
        return self.layers * self.tokens * (2 * 4 * self.width + values * bytes_per_value)


@dataclass(frozen=True)
class ClipWork:
    """What one clip costs."""

    vision_tokens: int
    text_tokens: int
    forward_flops: float
    stem_flops: float
    sequences: tuple[Tokens, ...]

    @property
    def training_flops(self) -> float:
        """Forward and backward."""
        return 3 * self.forward_flops

    def activation_bytes(self, bytes_per_value: int) -> float:
        """Held between forward and backward."""
        return sum(sequence.activation_bytes(bytes_per_value) for sequence in self.sequences)

    @classmethod
    def of(cls, config: ModelConfig, *, num_frames: int, num_text_tokens: int, loss_name: LossName) -> Self:
        """The sequences that `loss_name` needs of one clip."""
        architecture = read_architecture(config)
        vision, text = architecture.vision_cfg, architecture.text_cfg
        patches = round((vision.image_size // vision.patch_size) ** 2 * (1 - config.patch_dropout))
        kinds = kinds_of(TERMS[loss_name])
        clips = [num_frames, 1] if "f" in kinds else [num_frames]
        watched = [_video(config, architecture, patches, frames) for frames in clips]
        num_texts = sum(kind in TEXTS for kind in kinds)
        read = Tokens(num_text_tokens, num_text_tokens**2, text.width, text.layers, text.inner_width)
        sequences = (*watched, *[read] * num_texts)
        stem = 2 * 3 * vision.patch_size**2 * vision.width * (vision.image_size // vision.patch_size) ** 2 * sum(clips)
        heads = 2 * architecture.embed_dim * (vision.width * len(clips) + text.width * num_texts)
        return cls(
            vision_tokens=sum(sequence.tokens for sequence in watched),
            text_tokens=num_text_tokens * num_texts,
            forward_flops=sum(sequence.flops for sequence in sequences) + stem + heads,
            stem_flops=stem,
            sequences=sequences,
        )


def _video(config: ModelConfig, architecture: Architecture, patches: int, frames: int) -> Tokens:
    vision = architecture.vision_cfg
    tokens = config.num_proxies + frames * patches
    if config.pooling == "mean":
        tokens, attended = frames * (1 + patches), frames * (1 + patches) ** 2
    elif config.attention == "full":
        attended = tokens**2
    else:
        attended = frames * patches * (patches + config.num_proxies) + config.num_proxies * tokens
    return Tokens(tokens, attended, vision.width, vision.layers, vision.inner_width)


def peak_flops_of(device: torch.device) -> float | None:
    """The bf16 peak of a GPU that we know; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    label = gpu_label(torch.cuda.get_device_name(device))
    return GPUS[label].bf16_flops if label in GPUS else None


def gpu_label(name: str) -> str:
    """The name in GPUS of what a driver calls "NVIDIA H200" or "NVIDIA A100-SXM4-80GB"; else `name` in lower case.

    >>> gpu_label("NVIDIA H200"), gpu_label("NVIDIA L40S"), gpu_label("NVIDIA A100-SXM4-40GB"), gpu_label("MI300X")
    ('h200', 'l40s', 'a100-40', 'mi300x')
    """
    lower = name.lower()
    if lower in GPUS:
        return lower
    known = [label for label in sorted(GPUS, key=len, reverse=True) if all(part in lower for part in label.split("-"))]
    return known[0] if known else lower
