"""The golden set of the official implementation: its model, inputs and expected numbers."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.formats import to_hugging_face

FOLDER = Path(__file__).parents[2] / "data" / "golden"
CHECKPOINT = FOLDER / "official_checkpoint.pt"

LOSSES = {
    "vs": "NCELearnableTempLoss",
    "vs_fc": "VidImgDivideNCELearnableTempLoss",
    "concatenated": "VidImgNCELearnableTempLoss",
    "vs_vc": "NCELearnableTempLoss_vs_vc",
    "vs_vc_fc": "NCELearnableTempLoss_vs_vc_fc",
    "vsc": "NCELearnableTempLoss_vsc",
    "vsc_fc": "NCELearnableTempLoss_vsc_fc",
    "vs_dsl": "NCELearnableTempDSLLoss",
}


@lru_cache
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
    return content


def architecture() -> dict[str, Any]:
    """The golden configuration as an open_clip model JSON."""
    facts = expected()["config"]
    return {
        "embed_dim": facts["proj"],
        "quick_gelu": True,
        "vision_cfg": {
            "layers": facts["vl"],
            "width": facts["vw"],
            "head_width": facts["vw"] // facts["vh"],
            "patch_size": facts["patch"],
            "image_size": facts["img"],
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": facts["vocab"],
            "width": facts["tw"],
            "heads": facts["th"],
            "layers": facts["tl"],
        },
    }


def config(**changes: Any) -> ModelConfig:
    facts = expected()["config"]
    values = {
        "name": "golden",
        "architecture": architecture(),
        "pretrained": str(CHECKPOINT),
        "num_proxies": facts["add_cls"] + 1,
        "num_temporal": facts["temporal"],
    }
    return ModelConfig.model_validate(values | changes)


def model(dtype: torch.dtype = torch.float32, **changes: Any) -> CLIPViP:
    return CLIPViP.from_config(config(**changes)).to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Keyword arguments of the model's forward."""
    tensors = load_file(FOLDER / "inputs.safetensors")
    return {
        "video": tensors["video_BTCHW"].to(dtype),
        "subtitle": tensors["subtitle_ids_BL"],
        "middle": tensors["frame_B1CHW"][:, 0].to(dtype),
        "caption": tensors["caption_ids_BL"],
    }


def outputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "outputs.safetensors")


def gradients(module: CLIPViP) -> dict[str, Tensor]:
    """Under the official names, without prefix."""
    return to_hugging_face({name: value.grad for name, value in module.named_parameters() if value.grad is not None})
