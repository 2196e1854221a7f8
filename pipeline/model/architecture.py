"""The open_clip architecture behind a `ModelConfig`: a plain ViT beside a plain text transformer.

    architecture = read_architecture(ModelConfig(name="ViT-B-32-quickgelu"))
    architecture.vision_cfg.patch_size    # 32

Field names are open_clip's own, so that its JSON files are read as they are. ResNets, timm and Hugging Face towers and
other pooling heads have no class token to build video proxies from: they are refused by name.
"""

import difflib
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.config import Section
from pipeline.errors import InputError
from pipeline.model.config import ModelConfig, read_json
from pipeline.model.library import import_open_clip

# OpenAI's pixel statistics; a pre-trained tag of open_clip may bring its own.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionArchitecture(Section):
    """open_clip's `vision_cfg`."""

    layers: int = Field(gt=0)
    width: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    image_size: int = Field(default=224, gt=0)
    head_width: int = Field(default=64, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    mlp_width: int | None = Field(default=None, gt=0)
    """Ours: inner size of the MLP, where no ratio gives it; null: int(width * mlp_ratio)."""
    ls_init_value: float | None = None

    @property
    def inner_width(self) -> int:
        """Inner size of the MLP."""
        return _inner_width(self)


class TextArchitecture(Section):
    """open_clip's `text_cfg`."""

    context_length: int = Field(default=77, gt=0)
    vocab_size: int = Field(default=49408, gt=0)
    width: int = Field(default=512, gt=0)
    heads: int = Field(default=8, gt=0)
    layers: int = Field(default=12, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    mlp_width: int | None = Field(default=None, gt=0)
    """As in `vision_cfg`."""
    ls_init_value: float | None = None
    pool_type: Literal["argmax", "eos"] = "argmax"
    eos_id: int = 2
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] = {}

    @property
    def inner_width(self) -> int:
        """Inner size of the MLP."""
        return _inner_width(self)


class Architecture(Section):
    """An open_clip model JSON, and the pixel statistics of its weights."""

    embed_dim: int = Field(gt=0)
    quick_gelu: bool = False
    init_logit_scale: float = math.log(1 / 0.07)
    vision_cfg: VisionArchitecture
    text_cfg: TextArchitecture
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD

    def for_openclip(self) -> dict[str, Any]:
        """Arguments of open_clip's CLIP. Its MLPs have int(width * mlp_ratio): half a unit more keeps that exact."""
        towers = {}
        for key, tower in (("vision_cfg", self.vision_cfg), ("text_cfg", self.text_cfg)):
            ratio = tower.mlp_ratio if tower.mlp_width is None else (tower.mlp_width + 0.5) / tower.width
            towers[key] = tower.model_dump(exclude={"mlp_width"}) | {"mlp_ratio": ratio}
        rest = ("embed_dim", "quick_gelu", "init_logit_scale")
        return {name: getattr(self, name) for name in rest} | towers


def read_architecture(config: ModelConfig) -> Architecture:
    """The architecture of `config`, with `image_size_px` applied. InputError for unknown names and foreign towers."""
    content = config.architecture if config.architecture is not None else _read_by_name(config.name)
    architecture = _validated(content, config.name)
    vision = architecture.vision_cfg
    if config.image_size_px is not None:
        vision = vision.model_copy(update={"image_size": config.image_size_px})
    if vision.image_size % vision.patch_size:
        raise InputError(
            f"model {config.name}: {vision.image_size}-px frames do not divide into {vision.patch_size}-px patches; "
            f"set image_size_px to a multiple of {vision.patch_size}"
        )
    return architecture.model_copy(update={"vision_cfg": vision})


def _inner_width(tower: VisionArchitecture | TextArchitecture) -> int:
    return int(tower.width * tower.mlp_ratio) if tower.mlp_width is None else tower.mlp_width


def openclip_name(name: str) -> str:
    """open_clip's spelling of a model name: ViT-B/32 is ViT-B-32."""
    return name.replace("/", "-")


def _read_by_name(name: str) -> dict[str, Any]:
    if name.endswith(".json"):
        return read_json(Path(name))
    open_clip = import_open_clip()
    known = open_clip.get_model_config(openclip_name(name))
    if known is None:
        near = difflib.get_close_matches(openclip_name(name), open_clip.list_models(), n=1, cutoff=0.0)
        raise InputError(f"unknown model {name!r}; the nearest open_clip name is {near[0]!r}")
    return dict(known)


def _validated(content: dict[str, Any], name: str) -> Architecture:
    try:
        architecture = Architecture.model_validate(content)
    except ValidationError as error:
        mistakes = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            foreign = item["type"] == "extra_forbidden"
            mistakes.append(f"{key} is not a setting of a plain ViT" if foreign else f"{key}: {item['msg']}")
        raise InputError(
            f"model {name} is no plain ViT with a plain text tower: {'; '.join(mistakes[:3])}; "
            "choose another, like ViT-B-32-quickgelu"
        ) from None
    vision, text = architecture.vision_cfg, architecture.text_cfg
    if vision.width % vision.head_width:
        raise InputError(f"model {name}: vision width {vision.width} is no multiple of head_width {vision.head_width}")
    if text.width % text.heads:
        raise InputError(f"model {name}: text width {text.width} is no multiple of {text.heads} heads")
    return architecture
