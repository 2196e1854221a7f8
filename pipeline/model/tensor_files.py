"""One file of tensors, never unpickled: what is none is an error that says what it is and what to do.

state = read_tensors(Path("pretrain_clipvip_base_32.pt"))

What a file is, its first bytes say, not its name.
"""

import errno
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import InputError, RunError
from pipeline.model.formats import State

_DISK_ERRORS = (errno.EIO, errno.ESTALE)
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAX_HEADER_BYTES = 100_000_000
"""Of safetensors: the length of the header in 8 bytes, then the header, a JSON object. The library's own limit."""

_FOREIGN = (
    (re.compile(rb"^version https://git-lfs"), "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (
        re.compile(rb"^\s*<(!doctype|html|\?xml)", re.IGNORECASE),
        "a web page, so its download failed; download it again",
    ),
    (re.compile(rb"^.{4}ftyp|^\x1aE\xdf\xa3|^RIFF", re.DOTALL), "a video or sound file; give a weights file"),
    (re.compile(rb"^\x1f\x8b|^BZh|^\xfd7zXZ|^\x28\xb5\x2f\xfd"), "compressed; decompress it first"),
    (re.compile(rb"^[\x09\x0a\x0d\x20-\x7e]+$"), "text; give a weights file"),
)
"""First bytes of what is taken for weights by mistake, and what it is."""


def read_tensors(path: Path) -> State:
    """The tensors of one file: safetensors, or .pt with weights_only, so that no code in it runs.

    InputError for everything else; an error of the disk is no fault of the file and goes on as OSError.
    """
    is_safetensors = _looks_like_safetensors(path)
    try:
        content = load_file(path) if is_safetensors else _torch_load(path)
    except Exception as error:  # what reads foreign bytes meets them with any error
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise _unreadable(path, error) from None
    return _state_dict(content, path)


def _looks_like_safetensors(path: Path) -> bool:
    """False for a file that torch reads; InputError for what is neither."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        raise InputError(f"cannot read weights from {path}: {error.strerror}; check the path") from None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER_BYTES:
        return True
    if start.startswith((_ZIP, _PICKLE)):
        _refuse_torchscript(path)
        return False
    kind = "empty; copy or download it again" if not start else "neither safetensors nor a PyTorch file; check the path"
    kind = next((name for pattern, name in _FOREIGN if pattern.search(start)), kind)
    raise InputError(f"cannot read weights from {path}: it is {kind}")


def _torch_load(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on pickle protocols: the error says what matters
        with path.open("rb") as file:  # of a path, torch believes the suffix
            return torch.load(file, map_location="cpu", weights_only=True)


def _refuse_torchscript(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return  # no archive, or a broken one: torch tells which
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript archive, as OpenAI published its weights: code, not tensors; "
            "set pretrained: openai, or save the state dict that open_clip makes of it"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise InputError(f"cannot read weights from {path}: it is a zip archive without weights; unpack it first")


def _unreadable(path: Path, error: Exception) -> InputError | RunError:
    """What a reader's error means to the owner of the file."""
    said = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in said:
        return RunError(f"not enough memory to read the weights in {path}; use a machine with more")
    name = re.search(r"(?:GLOBAL|global) ([\w.]+)", said) if isinstance(error, pickle.UnpicklingError) else None
    if name is not None:
        return InputError(
            f"cannot read weights from {path}: it holds Python objects besides tensors ({name[1]}), which are never "
            "unpickled; save its state dict alone: torch.save(model.state_dict(), FILE)"
        )
    return InputError(
        f"cannot read weights from {path} ({path.stat().st_size:,} bytes): it is cut off, damaged or no file of "
        "tensors; copy or download it again"
    )


def _state_dict(content: object, path: Path) -> State:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = f"a dict of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else "an object"
        raise InputError(
            f"{path} is not a state dict, which maps names to tensors, but {found} (of type {type(content).__name__}); "
            "save its state dict alone: torch.save(model.state_dict(), FILE)"
        )
    prefix = "module." if content and all(str(name).startswith("module.") for name in content) else ""
    return {str(name).removeprefix(prefix): value for name, value in content.items()}
