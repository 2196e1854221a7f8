"""Hugging Face `CLIPModel` folders: config.json and model.safetensors, CLIP-ViP's extra tensors beside them.

    config.json                 a plain CLIPModel config; `CLIPModel.from_pretrained(folder)` reads the folder
    model.safetensors           the CLIP tensors under Hugging Face's names
    preprocessor_config.json    the pixel statistics; where it is missing, they are OpenAI's
    clip_vip.safetensors        vision_model.embeddings.added_cls [M-1, W] and .temporal_embedding [1, T0, W]
    clip_vip.json               our ModelConfig

A folder without the last two is a plain CLIP: our mean-pooling baseline.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.architecture import PIXEL_MEAN, PIXEL_STD, Architecture, TextArchitecture, VisionArchitecture
from pipeline.model.config import ModelConfig, read_json, read_model_config
from pipeline.model.formats import HF_ADDED_PROXIES, HF_TEMPORAL_EMBEDDING, State, to_hugging_face
from pipeline.model.tensor_files import read_tensors
from pipeline.tensor_writing import write_tensors

EXTRA_TENSORS_FILE = "clip_vip.safetensors"
EXTRA_CONFIG_FILE = "clip_vip.json"
PIXELS_FILE = "preprocessor_config.json"

# transformers writes only what differs from these.
_VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
}  # fmt: skip
_TEXT_DEFAULTS = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


def read_folder(folder: Path) -> tuple[State, ModelConfig]:
    """The tensors of a CLIPModel folder under Hugging Face's names, extras included, and the config they fit."""
    hf_config = read_json(folder / "config.json")
    if hf_config.get("model_type") != "clip":
        raise InputError(
            f"{folder}/config.json is of model_type {hf_config.get('model_type')!r}; a CLIPModel is 'clip'"
        )
    try:
        architecture = _to_architecture(hf_config, folder)
    except (ValidationError, TypeError, ZeroDivisionError, AttributeError) as error:
        raise InputError(f"{folder}/config.json describes no CLIP: {' '.join(str(error).split())}") from None
    state = _read_tensors(folder)
    if (folder / EXTRA_TENSORS_FILE).exists():
        state |= read_tensors(folder / EXTRA_TENSORS_FILE)
        config = read_model_config(folder / EXTRA_CONFIG_FILE)
    else:
        config = ModelConfig(num_proxies=1, num_temporal=0, pooling="mean")
    update = {"name": str(folder), "architecture": architecture.model_dump(mode="json"), "image_size_px": None}
    return state, config.model_copy(update=update)


def write_folder(folder: Path, state: dict[str, Tensor], config: ModelConfig, architecture: Architecture) -> None:
    """Our state as a CLIPModel folder that transformers reads, the extras beside it."""
    tensors = to_hugging_face(state)
    extras = {name: tensors.pop(name) for name in (HF_ADDED_PROXIES, HF_TEMPORAL_EMBEDDING) if name in tensors}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    write_tensors(
        {name: value.contiguous() for name, value in extras.items()}, folder / EXTRA_TENSORS_FILE, {"format": "pt"}
    )
    _write_json(folder / "config.json", _from_architecture(architecture))
    _write_json(folder / PIXELS_FILE, _pixel_processing(architecture))
    _write_json(folder / EXTRA_CONFIG_FILE, config.model_dump(mode="json", exclude={"architecture", "pretrained"}))


def _to_architecture(hf_config: dict[str, Any], folder: Path) -> Architecture:
    pixels = read_json(folder / PIXELS_FILE) if (folder / PIXELS_FILE).exists() else {}
    vision = _VISION_DEFAULTS | (hf_config.get("vision_config") or {})
    text = _TEXT_DEFAULTS | (hf_config.get("text_config") or {})
    activations = {vision["hidden_act"], text["hidden_act"]}
    if len(activations) != 1 or not activations <= _ACTIVATIONS.keys():
        raise InputError(
            f"{folder}/config.json: hidden_act must be quick_gelu or gelu in both towers, got {activations}"
        )
    return Architecture(
        embed_dim=hf_config.get("projection_dim", 512),
        quick_gelu=_ACTIVATIONS[activations.pop()],
        vision_cfg=VisionArchitecture(
            layers=vision["num_hidden_layers"],
            width=vision["hidden_size"],
            patch_size=vision["patch_size"],
            image_size=vision["image_size"],
            head_width=vision["hidden_size"] // vision["num_attention_heads"],
            mlp_width=vision["intermediate_size"],
        ),
        text_cfg=TextArchitecture(
            context_length=text["max_position_embeddings"],
            vocab_size=text["vocab_size"],
            width=text["hidden_size"],
            heads=text["num_attention_heads"],
            layers=text["num_hidden_layers"],
            mlp_width=text["intermediate_size"],
        ),
        pixel_mean=pixels.get("image_mean", PIXEL_MEAN),
        pixel_std=pixels.get("image_std", PIXEL_STD),
    )


def _pixel_processing(architecture: Architecture) -> dict[str, Any]:
    """What a CLIPImageProcessor must do to see frames as we do: squashed to the square, without a crop."""
    side_px = architecture.vision_cfg.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side_px, "width": side_px},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": architecture.pixel_mean,
        "image_std": architecture.pixel_std,
    }


def _from_architecture(architecture: Architecture) -> dict[str, Any]:
    vision, text = architecture.vision_cfg, architecture.text_cfg
    if vision.ls_init_value is not None or text.ls_init_value is not None or text.pool_type != "argmax":
        raise InputError("a Hugging Face CLIPModel has no layer scale and no `eos` pooling; export --to safetensors")
    if text.hf_tokenizer_name is not None or text.tokenizer_kwargs:
        raise InputError("a Hugging Face CLIPModel folder of ours names no foreign tokenizer; export --to safetensors")
    activation = "quick_gelu" if architecture.quick_gelu else "gelu"
    end_id = text.vocab_size - 1
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture.embed_dim,
        "logit_scale_init_value": architecture.init_logit_scale,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": vision.inner_width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": activation,
            "projection_dim": architecture.embed_dim,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": text.inner_width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_act": activation,
            "projection_dim": architecture.embed_dim,
            "bos_token_id": end_id - 1,
            "eos_token_id": end_id,
        },
    }


def _read_tensors(folder: Path) -> State:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return read_tensors(folder / name)
    raise InputError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
