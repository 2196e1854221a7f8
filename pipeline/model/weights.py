"""Models in and out of files.

save_model("export", model.state_dict(), model.config)    # export/model.safetensors + export/model.json
model = load_model("export")                              # or a checkpoint or run folder, or an official .pt
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"


def save_model(folder: str | Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write `model.safetensors` and `model.json` (with the open_clip architecture inlined) into `folder`."""
    raise NotImplementedError


def load_model(path: str | Path) -> CLIPViP:
    """A model from an exported folder, a checkpoint folder, a run folder (its `latest`), or an official .pt file."""
    raise NotImplementedError
