"""One file of tensors, never unpickled: what is none is an error that names it.

state = read_tensors(Path("pretrain_clipvip_base_32.pt"))
"""

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import InputError
from pipeline.model.formats import State


def read_tensors(path: Path) -> State:
    """The tensors of one file; .pt files are read with weights_only, so no code in them runs."""
    if _is_torchscript(path):
        raise InputError(
            f"{path} is a TorchScript archive, as OpenAI published its weights: code, not tensors; "
            "set pretrained: openai, or save the state dict that open_clip makes of it"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    # What is no archive at all is read as a bare pickle, whose reader meets foreign bytes with any of these.
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, LookupError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot read weights from {path}: {reason}; a .pt file must hold tensors only") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} is not a state dict: it must map names to tensors")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _torch_load(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)
