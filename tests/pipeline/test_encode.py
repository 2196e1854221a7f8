"""Files and texts to vectors: the Python way in and the command, interrupted and damaged."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import pipeline
from pipeline import encode
from pipeline.errors import InputError
from pipeline.feature_table import FeatureTable
from pipeline.model.config import ModelConfig
from pipeline.model.weights import save_model

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}


def write_video(path: Path, num_frames: int, brightness: int) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height = 64, 48
        for number in range(num_frames):
            pixels = np.full((48, 64, 3), brightness + 2 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, three videos of different lengths, and a file that is none."""
    root = tmp_path_factory.mktemp("encode")
    torch.manual_seed(0)
    config = ModelConfig(name="toy", architecture=ARCHITECTURE, num_temporal=4)
    model = encode.CLIPViP.from_config(config)
    save_model(root / "model", model.state_dict(), config)
    for number, num_frames in enumerate((2, 9, 40)):
        write_video(root / f"{number}.mp4", num_frames, 60 * number)
    (root / "broken.mp4").write_bytes(b"not a video")
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> encode.CLIPViP:
    return pipeline.CLIPViP.load(folder / "model", device="cpu")


def videos(folder: Path) -> list[str]:
    return [str(folder / f"{number}.mp4") for number in range(3)]


def test_videos_of_any_length_and_texts_become_unit_vectors(folder: Path, model: encode.CLIPViP) -> None:
    features = model.encode_videos(videos(folder), batch_size=2)
    texts = model.encode_texts(["a dog runs left", "", "word " * 200])
    for vectors in (features, texts):
        assert vectors.shape == (3, 16)
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    alone = torch.cat([model.encode_videos([path]) for path in videos(folder)])
    torch.testing.assert_close(features, alone, rtol=0, atol=1e-6)
    assert model.encode_videos([]).shape == (0, 16)


def test_mistakes_are_named(folder: Path, model: encode.CLIPViP) -> None:
    with pytest.raises(InputError, match=r"broken\.mp4"):
        model.encode_videos([folder / "broken.mp4"])
    with pytest.raises(InputError, match="write \\[path\\]"):
        model.encode_videos(str(folder / "0.mp4"))
    with pytest.raises(InputError, match="num_frames must be at least 1, got 0"):
        model.encode_videos([folder / "0.mp4"], num_frames=0)
    with pytest.raises(InputError, match="write \\[text\\]"):
        model.encode_texts("a dog")


def run(folder: Path, out: Path, *paths: str) -> int:
    return encode.main([*paths, "--model", str(folder / "model"), "--out", str(out), "--batch-size", "2"])


def test_the_command_skips_what_it_cannot_read_and_ends_with_1(
    folder: Path, model: encode.CLIPViP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = videos(folder)
    out = tmp_path / "features.parquet"
    assert run(folder, out, third, str(folder / "broken.mp4"), first, second) == 1
    assert "broken.mp4" in capsys.readouterr().err
    rows = pq.read_table(out)
    assert rows["path"].to_pylist() == [third, first, second]
    expected = model.encode_videos([third, first, second])
    torch.testing.assert_close(torch.tensor(rows["feature"].to_pylist()), expected, rtol=0, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["features.parquet"]


def test_an_interrupted_command_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "features.parquet"
    encoded: list[int] = []
    whole = encode.CLIPViP.encode_frames

    def interrupted(self: encode.CLIPViP, video: torch.Tensor) -> torch.Tensor:
        if encoded:
            raise KeyboardInterrupt
        encoded.append(len(video))
        return whole(self, video)

    monkeypatch.setattr(encode.CLIPViP, "encode_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, *videos(folder))
    assert not out.exists()
    encoded.clear()

    def counted(self: encode.CLIPViP, video: torch.Tensor) -> torch.Tensor:
        encoded.append(len(video))
        return whole(self, video)

    monkeypatch.setattr(encode.CLIPViP, "encode_frames", counted)
    assert run(folder, out, *videos(folder)) == 0
    assert encoded == [1]
    assert pq.read_table(out)["path"].to_pylist() == videos(folder)
    assert run(folder, out, *videos(folder)) == 0
    assert encoded == [1]


def test_rows_of_another_model_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    table = FeatureTable.open(out, {"model": "a"})
    table.add(["x.mp4"], np.zeros((1, 4), np.float32))
    table.close(["x.mp4"])
    with pytest.raises(InputError, match="choose another --out"):
        FeatureTable.open(out, {"model": "b"})
    (tmp_path / "other.parquet").write_text(json.dumps({}))
    with pytest.raises(InputError, match="is not a table of features"):
        FeatureTable.open(tmp_path / "other.parquet", {})


def test_rows_are_unique_after_a_crash_between_joining_and_cleaning(tmp_path: Path) -> None:
    out, facts = tmp_path / "features.parquet", {"model": "a"}
    table = FeatureTable.open(out, facts)
    table.add(["x.mp4", "y.mp4"], np.ones((2, 4), np.float32))
    part = tmp_path / "features.parquet.parts" / "00000000.parquet"
    kept: Any = part.read_bytes()
    table.close([])
    part.parent.mkdir()
    part.write_bytes(kept)
    assert FeatureTable.open(out, facts).close(["y.mp4", "x.mp4"]) == 2
    assert pq.read_table(out)["path"].to_pylist() == ["y.mp4", "x.mp4"]
