"""A CLIP of toy size, for tests: everything that a real one has."""

from typing import Any

import torch

from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig


def architecture(patch_px: int = 8, image_px: int = 24, *, quick_gelu: bool = True) -> dict[str, Any]:
    return {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "layers": 2, "width": 32, "head_width": 8, "patch_size": patch_px, "image_size": image_px,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 512, "width": 24, "heads": 3, "layers": 2},
    }  # fmt: skip


def model(dtype: torch.dtype = torch.float64, *, seed: int = 0, **changes: Any) -> CLIPViP:
    """A random model whose temporal embedding is not zero."""
    values = {"name": "tiny", "architecture": architecture(), "num_temporal": 12} | changes
    torch.manual_seed(seed)
    built = CLIPViP.from_config(ModelConfig.model_validate(values))
    if built.visual.temporal_embedding is not None:
        torch.nn.init.normal_(built.visual.temporal_embedding, std=0.3)
    return built.to(dtype)


def texts(lengths: list[int], context_length: int = 77, end_id: int = 511) -> torch.Tensor:
    """Ids of texts of these lengths (BOS and EOS included), padded with 0."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.zeros(len(lengths), context_length, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(1, end_id, (length - 1,), generator=draw)
        ids[row, length - 1] = end_id
    return ids
