"""What is no file of weights: said in one line, with what it is and what to do, and never unpickled."""

import errno
import gzip
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.model import tensor_files
from pipeline.model.reading import read_weights
from pipeline.model.tensor_files import read_tensors
from pipeline.model.weights import load_model

SUFFIXES = (".pt", ".bin", ".safetensors", ".mp4")
TENSORS = {"visual.conv1.weight": torch.arange(4000.0)}
DAMAGED = "is cut off, damaged or no file of tensors; copy or download it again"


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def refusal(path: Path) -> str:
    """The one line that `path` is refused with: it names the file, and quotes no reader."""
    with pytest.raises(InputError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert not any(raw in message for raw in ("Errno", "weights_only", "miniz", "deserializing", "pickle protocol"))
    return message


def written(folder: Path, form: str) -> bytes:
    """The bytes of a good file."""
    if form == "safetensors":
        save_file(TENSORS, folder / "good")
    else:
        torch.save(TENSORS, folder / "good", _use_new_zipfile_serialization=form == "zip")
    return (folder / "good").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; copy or download it again"),
        (b"hello, world\n", "it is text; give a weights file"),
        (b"sets:\n  x: 1\n" * 50, "it is text; give a weights file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "a Git LFS pointer; fetch the file"),
        (b"\n<!DOCTYPE html><html lang='en'>404", "a web page, so its download failed"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" * 9, "a video or sound file; give a weights"),
        (b"\x1aE\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x23B\x86\x81", "a video or sound file; give a weights"),
        (gzip.compress(b"weights", mtime=0), "compressed; decompress it first"),
        (bytes(range(256)), "neither safetensors nor a PyTorch file; check the path"),
        (b"\x80\x02.", DAMAGED),
        (b"PK\x03\x04broken", DAMAGED),
        (pickle.dumps([1, 2]), DAMAGED),
        (b"\xff" * 7 + b"\x7f" + b'{"a":', "neither safetensors nor a PyTorch file; check the path"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b"{" * 64, DAMAGED),
    ],
)
def test_what_is_no_weights_file_is_said_to_be_none(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    assert message in refusal(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_that_was_cut_off_anywhere_is_said_to_be(tmp_path: Path, form: str) -> None:
    whole = written(tmp_path, form)
    for number, size in enumerate([9, 20, 64, 100, 700, len(whole) // 2, len(whole) - 1]):
        path = tmp_path / f"cut{number}.pt"
        path.write_bytes(whole[:size])
        assert f"({size:,} bytes): it {DAMAGED}" in refusal(path) or "neither safetensors nor" in refusal(path)


def test_a_header_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    for length in range(20):
        save_file(TENSORS, tmp_path / "weights", metadata={"note": "x" * 8 * length})
        assert read_tensors(tmp_path / "weights").keys() == TENSORS.keys()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_the_first_bytes_tell_the_form_not_the_name(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(written(tmp_path, form))
    assert torch.equal(read_tensors(path)["visual.conv1.weight"], TENSORS["visual.conv1.weight"])


def test_a_pt_file_never_runs_code(tmp_path: Path) -> None:
    torch.save({"clipmodel.x": Harmful(tmp_path / "ran")}, tmp_path / "evil.pt")
    assert "Python objects besides tensors (posix.mkdir), which are never unpickled" in refusal(tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Harmful(tmp_path / "ran"), protocol=2))
    refusal(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.nn.Linear(1, 1), "Python objects besides tensors"),
        ({"model": TENSORS, "step": 3}, "but a dict of model, step"),
        ([TENSORS], "but an object (of type list)"),
        ({}, "it holds no tensor at all"),
    ],
)
def test_other_objects_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "object.pt")
    assert message in refusal(tmp_path / "object.pt")


def test_folders_archives_and_absent_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    assert "holds no model: expected model.safetensors" in refusal(tmp_path / "folder.pt")
    with pytest.raises(InputError, match=r"folder\.pt: Is a directory; check the path"):
        read_tensors(tmp_path / "folder.pt")
    assert "no weights at" in refusal(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("ViT-B-32/constants.pkl", b"")
        archive.writestr("ViT-B-32/code/__torch__.py", b"")
    assert "is a TorchScript archive" in refusal(tmp_path / "ViT-B-32.pt")
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("a.txt", "x")
    assert "a zip archive without weights; unpack it first" in refusal(tmp_path / "photos.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "clip_vip.pt"])
def test_an_error_of_the_disk_is_no_fault_of_the_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", name)

    (tmp_path / name).write_bytes(written(tmp_path, "safetensors" if name.endswith("tensors") else "zip"))
    monkeypatch.setattr(tensor_files, "load_file", fail)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_model(tmp_path / name)


@pytest.mark.heavy
def test_the_command_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(pickle.dumps([1], protocol=4))
    words = [sys.executable, "-m", "pipeline.convert", str(tmp_path / "text.mp4"), str(tmp_path / "out")]
    done = subprocess.run([*words, "--to", "safetensors"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read weights from") and done.stderr.count("\n") == 1
