"""What is written may be read by whom the umask lets read it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.convert import write
from pipeline.model.weights import save_model
from pipeline.tensor_writing import write_tensors
from tests.pipeline.tiny import make_model


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_weights_carry_the_umask(tmp_path: Path, umask: int) -> None:
    model = make_model()
    save_model(tmp_path / "export", model.state_dict(), model.config)
    write(model, tmp_path / "hugging_face", "huggingface")
    write(model, tmp_path / "official.pt", "official")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {path.name: oct(rights(path)) for path in files} == {path.name: oct(0o666 & ~umask) for path in files}


def test_a_file_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    path.chmod(0o640)
    write_tensors({"a": torch.ones(3)}, path)
    assert rights(path) == 0o640
    assert torch.equal(load_file(path)["a"], torch.ones(3))
