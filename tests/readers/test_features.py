"""The same file has the same features by its path (`encode`) and in a tar (training and evaluation)."""

import tarfile
from pathlib import Path

import pytest
import torch

from pipeline import encode
from pipeline.data.clips import ClipReader
from pipeline.model.config import ModelConfig
from preprocess import index
from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, Media
from tests.readers.painting import write
from tests.readers.sources import SOURCES

ARCHITECTURE = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 64},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}
NAMES = ("turn-rot90", "edit-both", "variable-mkv", "sd-bt709-full", "mp4-mjpeg")
NUM_FRAMES = 4


@pytest.fixture(scope="module")
def model() -> encode.CLIPViP:
    torch.manual_seed(0)
    return encode.CLIPViP.from_config(ModelConfig(name="toy", architecture=ARCHITECTURE, num_temporal=NUM_FRAMES))


def features_of_tar(model: encode.CLIPViP, paths: list[Path], folder: Path) -> torch.Tensor:
    """Of the files as members of a foreign tar, read as evaluation reads them."""
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "0.tar", "w") as tar:
        for number, path in enumerate(paths):
            tar.add(path, f"{number:03d}{path.suffix}")
    assert index.main([str(folder / "tars"), str(folder / "set"), "--caption-from", ""]) == 0
    reader = ClipReader(folder / "set", num_frames=NUM_FRAMES, image_size_px=64)
    ((_, video_BTCHW, ok_B),) = reader.batches(0, len(paths), len(paths))
    assert ok_B.all()
    return model.encode_frames(video_BTCHW)


def test_a_file_and_a_member_of_a_tar_have_the_same_features(model: encode.CLIPViP, tmp_path: Path) -> None:
    paths = [write(SOURCES[name], tmp_path, name) for name in NAMES]
    torch.testing.assert_close(model.encode_videos(paths), features_of_tar(model, paths, tmp_path), rtol=0, atol=1e-6)


def test_what_our_own_clips_add(model: encode.CLIPViP, tmp_path: Path) -> None:
    """A clip of ours is one file wherever it lies; against its source it differs by what two scalings and a JPEG do."""
    source = write(SOURCES["turn-rot90"], tmp_path, "source")
    limits = LimitsConfig(time_s=60)
    config = ClipsConfig(fps=10, size_px=64)
    (media,) = cut_clips(source, "v", probe_video(source, limits), [Clip("v.1", 0.0, None)], config, limits)
    assert isinstance(media, Media)
    (tmp_path / "clip.mp4").write_bytes(media.data)
    ours = model.encode_videos([tmp_path / "clip.mp4"])
    torch.testing.assert_close(ours, features_of_tar(model, [tmp_path / "clip.mp4"], tmp_path), rtol=0, atol=0)
    added = (ours - model.encode_videos([source])).abs().max()
    assert 0 < added < 0.05
