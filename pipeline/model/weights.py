"""Models in and out of files.

    save_model("export", model.state_dict(), model.config)    # export/model.safetensors + export/model.json
    model = load_model("export")                              # or a checkpoint or run folder, or an official .pt

An export depends on no other file: `model.json` is the ModelConfig with the open_clip architecture inlined.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.architecture import read_architecture
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.reading import CONFIG_FILE, WEIGHTS_FILE, identify_official, read_weights
from pipeline.tensor_writing import write_tensors

Model = TypeVar("Model", bound=CLIPViP)


def save_model(folder: str | Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write `model.safetensors`, then `model.json` (with the open_clip architecture inlined), into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    architecture = read_architecture(config).model_dump(mode="json")
    # image_size_px is in the architecture now, and the weights in the file are the whole start.
    update = {"architecture": architecture, "pretrained": None, "image_size_px": None}
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    write_tensors(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    content = config.model_copy(update=update).model_dump(mode="json")
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(path: str | Path) -> CLIPViP:
    """A model in evaluation mode from an exported, checkpoint, run or Hugging Face folder, or an official .pt file."""
    return load_model_as(CLIPViP, path)


def load_model_as(kind: type[Model], path: str | Path) -> Model:
    """`load_model` for a class of models that adds methods."""
    weights = read_weights(path)
    config = weights.config
    if weights.world == "official":
        config = identify_official(weights.state, path)
    if config is None:
        raise InputError(
            f"{path} does not tell its model's number of heads or activation; "
            "name the model: model.name and model.pretrained in a config, "
            "CLIPViP.from_config(ModelConfig(name=..., pretrained=PATH)) in Python, or pipeline.convert --name"
        )
    model = kind.unfilled(config)
    model.fill(weights.state, origin=str(path))
    return model.eval()
