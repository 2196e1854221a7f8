"""The smallest CLIP-ViP that is whole, a run over hand-written shards, and batches out of thin air."""

from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.data.batch import Batch
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig

FRAMES, TOKENS, SIZE_PX, VOCABULARY = 3, 8, 16, 64


def architecture(vocabulary: int = VOCABULARY, text_width: int = 16) -> dict[str, Any]:
    """An open_clip model JSON."""
    return {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIZE_PX, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": 2,
            "layers": 2,
        },
    }


def model_config(**changes: Any) -> ModelConfig:
    """The tiny model; random start."""
    values: dict[str, Any] = {"name": "tiny", "architecture": architecture(), "num_proxies": 3, "num_temporal": FRAMES}
    return ModelConfig.model_validate(values | changes)


def make_model(seed: int = 0, **changes: Any) -> CLIPViP:
    """The tiny model with the weights of `seed`; every process gets the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPViP.from_config(model_config(**changes))


def make_batch(num_clips: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> Batch:
    """Rank `rank`'s rows of a random global batch; a few clips lack a caption, one is bad."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (num_clips, FRAMES, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8, generator=generator)
    texts = torch.randint(1, VOCABULARY - 1, (2, num_clips, TOKENS), generator=generator)
    texts[:, :, -1] = VOCABULARY - 1
    valid = torch.ones(num_clips, dtype=torch.bool)
    valid[num_clips // 2] = False
    has_caption = valid & (torch.arange(num_clips) % 5 != 1)
    rows = slice(num_clips * rank // world_size, num_clips * (rank + 1) // world_size)
    return Batch(
        video_BTCHW=video[rows],
        middle_BCHW=video[rows, 1],
        subtitle_BL=texts[0, rows],
        caption_BL=texts[1, rows],
        valid_B=valid[rows],
        has_subtitle_B=valid[rows],
        has_caption_B=has_caption[rows],
        keys=tuple(f"clip{number}" for number in range(num_clips))[rows],
        epoch=0,
        index=0,
    )


def write_config(folder: Path, shards: Path, **changes: Any) -> Path:
    """A YAML file of a short run over `shards`; `changes` are merged in by top-level key."""
    content: dict[str, Any] = {
        "name": "run",
        "runs_dir": str(folder / "runs"),
        "steps": 12,
        "seed": 7,
        "data": {
            "sources": [{"shards": str(shards)}],
            "num_frames": FRAMES,
            "num_text_tokens": TOKENS,
            "num_workers": 0,
        },
        "batch": {"global_batch_size": 12},
        "model": {
            "name": "tiny",
            "architecture": architecture(vocabulary=49408, text_width=8),
            "num_proxies": 3,
            "num_temporal": FRAMES,
            "patch_dropout": 0.3,
        },
        "optim": {"lr": 1e-3, "warmup": 0.1},
        "engine": {"precision": "fp32", "zero_stage": 0, "device": "cpu"},
        "checkpoint": {"every_steps": 4},
        "log": {"every_steps": 1},
    }
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) and key in content else value
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
