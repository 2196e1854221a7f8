"""Where a new model's CLIP weights come from: a tag of open_clip, a file, or open_clip's own random start.

    state, architecture = start_state(ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai"))

The state lacks the added proxies and the temporal embedding unless its source has them.
"""

import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.model.architecture import Architecture, openclip_name, read_architecture
from pipeline.model.config import ModelConfig
from pipeline.model.formats import State, to_ours
from pipeline.model.library import import_open_clip
from pipeline.model.reading import read_weights
from pipeline.model.tags import fetch_weights, tag_facts

WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""By these a name that is not there yet is known to be a file of weights."""


def start_state(config: ModelConfig) -> tuple[State, Architecture]:
    """CLIP's tensors under our names, and the architecture with the pixel statistics that belong to them."""
    architecture = read_architecture(config)
    if config.pretrained is None:
        return _random_state(architecture), architecture
    path = weights_path(config)
    if path is not None:
        return _state_from_path(path, config.name, architecture), architecture
    return _state_from_tag(config.name, config.pretrained, architecture)


def weights_path(config: ModelConfig) -> Path | None:
    """`pretrained` as a path, there or not; None for a tag of open_clip, or without any."""
    if config.pretrained is None:
        return None
    path = Path(config.pretrained).expanduser()
    is_path = path.exists() or os.sep in config.pretrained or path.suffix in WEIGHTS_SUFFIXES
    return path if is_path else None


def _random_state(architecture: Architecture) -> State:
    import_open_clip()
    from open_clip.model import CLIP

    return to_ours(CLIP(**architecture.for_openclip()).state_dict())


def _state_from_path(path: Path, name: str, architecture: Architecture) -> State:
    weights = read_weights(path)
    _check_activation(name, architecture, weights.quick_gelu, str(path))
    return weights.state


def _state_from_tag(name: str, tag: str, architecture: Architecture) -> tuple[State, Architecture]:
    facts = tag_facts(name, tag)
    _check_activation(name, architecture, bool(facts.get("quick_gelu")), f"tag {tag}")
    path = fetch_weights(name, tag)
    model = import_open_clip().create_model(openclip_name(name), pretrained=str(path))
    statistics = {"pixel_mean": tuple(facts["mean"]), "pixel_std": tuple(facts["std"])}
    return to_ours(model.state_dict()), architecture.model_copy(update=statistics)


def _check_activation(name: str, architecture: Architecture, quick_gelu: bool | None, origin: str) -> None:
    """OpenAI's and the official weights were trained with quick-GELU: in a GELU model they work, but badly."""
    if quick_gelu is None or quick_gelu == architecture.quick_gelu:
        return
    theirs, ours = ("quick-GELU", "GELU") if quick_gelu else ("GELU", "quick-GELU")
    if name.endswith(".json"):
        remedy = f'set "quick_gelu": {str(quick_gelu).lower()} in {name}'
    else:
        plain = openclip_name(name).removesuffix("-quickgelu")
        remedy = f"use name: {plain}-quickgelu" if quick_gelu else f"use name: {plain}"
    raise InputError(f"{origin} was trained with {theirs}, but {name} is a {ours} model; {remedy}")
