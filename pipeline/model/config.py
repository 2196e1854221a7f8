"""`ModelConfig`: which open_clip ViT, and what CLIP-ViP adds to it.

config = ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai")
config = read_model_config(Path("export/model.json"))
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.config import Section
from pipeline.errors import InputError

Tower = Literal["visual", "text"]


class ModelConfig(Section):
    """CLIP-ViP from any open_clip ViT."""

    name: str = "ViT-B-32-quickgelu"
    """An open_clip model name, or the path of an open_clip model JSON file."""

    architecture: dict[str, Any] | None = None
    """The open_clip model JSON itself instead of `name`; `model.config` and exported models carry it, so that they
    depend on no other file."""

    pretrained: str | None = None
    """An open_clip tag (`openai`), or a path: official .pt, open_clip checkpoint, Hugging Face CLIPModel folder, or a
    model of ours. null: random start."""

    image_size_px: int | None = Field(default=None, gt=0)
    """Side of the frames; null: the model's own. Position embeddings are interpolated when it differs."""

    num_proxies: int = Field(default=4, ge=1)
    """M: the class token and M - 1 added proxies."""

    num_temporal: int = Field(default=12, ge=0)
    """T0: vectors of the temporal embedding, interpolated to the number of frames; 0 with `pooling: mean` only."""

    proxy_init: Literal["official", "class_token"] = "official"
    """How added proxies start: normal noise of std 1, or copies of the class token with a little noise."""

    pooling: Literal["proxy", "mean"] = "proxy"
    """`proxy`: frames together, output of proxy 0. `mean`: the baseline, each frame alone, mean of their features."""

    attention: Literal["proxy_guided", "full"] = "proxy_guided"
    """`full`: the baseline, every token attends to every token of the clip."""

    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each frame's patches left out in training."""

    checkpoint_activations: bool = False
    """Keep only each block's input and recompute the rest in the backward pass: less memory, a third more time."""

    freeze: list[Tower] = []
    """Towers that do not train; they also stay in evaluation mode."""

    @model_validator(mode="after")
    def _settings_take_effect(self) -> Self:
        if self.pooling == "mean":
            if self.num_proxies != 1 or self.num_temporal != 0:
                raise ValueError(
                    f"pooling: mean sees frames one by one, without added proxies and temporal embedding; "
                    f"set num_proxies: 1 and num_temporal: 0 (got {self.num_proxies} and {self.num_temporal})"
                )
            if self.attention != "proxy_guided":
                raise ValueError("attention: full has no effect with pooling: mean; leave it at proxy_guided")
        elif self.num_temporal == 0:
            raise ValueError("num_temporal: 0 needs pooling: mean; pooling: proxy has at least 1 temporal vector")
        if self.num_proxies == 1 and self.proxy_init != "official":
            raise ValueError("proxy_init has no effect with num_proxies: 1; leave it at official")
        return self


def read_model_config(path: Path) -> ModelConfig:
    """The ModelConfig that lies beside weights. InputError names the file and its first mistakes."""
    try:
        return ModelConfig.model_validate(read_json(path))
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InputError(f"{path} is no model config: {'; '.join(mistakes[:3])}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content
