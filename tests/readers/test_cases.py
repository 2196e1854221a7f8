"""Files from the field: frame i is grey of level 20 + 5 i (or the picture says what it is), the corners are red, green,
blue and white from top left. Every way to the pixels shows them so: shards, encode, foreign tars, training."""

import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pipeline.data.format import Reason
from pipeline.data.frames import DamagedMedia, open_clip_bytes, read_video
from pipeline.data.inspect import TextTable
from pipeline.data.manifest_file import read_manifest
from pipeline.data.mp4 import jpeg_packets
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import InputError
from preprocess import audit, index
from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, ClipError, Media
from tests.readers.painting import ffmpeg

CASES = Path(__file__).parents[1] / "data" / "cases"
LIMITS = LimitsConfig(time_s=60)


def corners(picture: np.ndarray) -> list[str]:
    """The names of the colours at the corners, from top left."""
    height, width = picture.shape[:2]
    names = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
    spots = [picture[y, x] for y in (height // 16, -height // 16) for x in (width // 16, -width // 16)]
    return [
        next(name for name, bits in names.items() if tuple(int(part > 120) for part in spot) == bits) for spot in spots
    ]


UPRIGHT = ["red", "green", "blue", "white"]


def level(picture: np.ndarray) -> float:
    """Of the grey in the middle."""
    height, width = picture.shape[:2]
    return float(picture[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4].mean())


def delivered(path: Path, fps: float = 10.0) -> np.ndarray:
    """What `preprocess.run` makes of the whole video."""
    config = ClipsConfig(fps=fps, size_px=96, quality=2)
    (media,) = cut_clips(path, "v", probe_video(path, LIMITS), [Clip("v.1", 0.0, None)], config, LIMITS)
    assert isinstance(media, Media), media
    return open_clip_bytes(media.data, "mp4").read(range(media.num_frames))


def trained(tars: Path, folder: Path, num_frames: int) -> dict[str, np.ndarray]:
    """Index, audit, and one epoch as training reads it: key -> frames."""
    assert index.main([str(tars), str(folder)]) == 0
    assert audit.main([str(folder)]) == 0
    config = DataConfig.model_validate(
        {"sources": [{"shards": str(folder)}], "num_frames": num_frames, "jitter": False, "num_workers": 0}
    )
    num_samples = sum(shard["num_samples"] for shard in read_manifest(str(folder)))
    stream = Stream(config, global_batch_size=num_samples, image_size_px=96, tokenize=TextTable(70), seed=0)
    batch = next(iter(stream))
    assert batch.valid_B.all(), batch.bad
    return {key: video.permute(0, 2, 3, 1).numpy() for key, video in zip(batch.keys, batch.video_BTCHW, strict=True)}


@pytest.mark.parametrize("name", ["upright", "rot90", "rot180"])
def test_rotated_phone_video(name: str) -> None:
    path = CASES / "02_rotated_phone_video" / f"{name}.mp4"
    for frames in (delivered(path), read_video(path, num_frames=40)):
        assert len(frames) == 40
        for number, frame in enumerate(frames):
            assert corners(frame) == UPRIGHT
            assert abs(level(frame) - 20 - 5 * number) <= 3


def test_rotated_videos_of_a_tar_are_trained_upright(tmp_path: Path) -> None:
    for frames in trained(CASES / "02_rotated_phone_video" / "tar", tmp_path / "set", 8).values():
        assert all(corners(frame) == UPRIGHT for frame in frames)


@pytest.mark.parametrize("name", ["hflip", "vflip"])
def test_mirrored_display_matrix(name: str) -> None:
    path = CASES / "03_mirrored_display_matrix" / f"{name}.mp4"
    assert not probe_video(path, LIMITS).can_be_thinned, "NUT has no place for the matrix"
    ran, read = delivered(path), read_video(path, num_frames=40)
    assert corners(ran[0]) == corners(read[0])
    assert [level(frame) for frame in ran] == pytest.approx([level(frame) for frame in read], abs=3)


def test_a_clip_cut_by_copying_shows_what_its_edit_list_shows(tmp_path: Path) -> None:
    """34 packets, of which 12 are hidden."""
    path = CASES / "04_stream_copied_clip_in_tar" / "cut.mp4"
    (frames,) = trained(path.parent / "tar", tmp_path / "set", 22).values()
    assert [round((level(frame) - level(frames[0])) / 5) for frame in frames] == list(range(22))
    for others in (delivered(path), read_video(path, num_frames=22)):
        assert [level(frame) for frame in others] == pytest.approx([level(frame) for frame in frames], abs=3)


def test_images_of_every_kind_are_trained(tmp_path: Path) -> None:
    """All show four corners and a grey middle, but for a ramp in 16 bits and one that is cut short."""
    source = CASES / "11_images_exif_16bit" / "t" / "00000.tar"
    (tmp_path / "tars").mkdir()
    with tarfile.open(source) as tar, tarfile.open(tmp_path / "tars" / "00000.tar", "w") as whole:
        for member in tar:
            if not member.name.startswith("06cut"):
                whole.addfile(member, tar.extractfile(member))
    seen = {key: frames[0] for key, frames in trained(tmp_path / "tars", tmp_path / "set", 1).items()}
    assert len(seen) == 6
    ramp = seen.pop("02grey16")
    assert ramp.min() <= 3 and 249 <= ramp.max() <= 255 and len(np.unique(ramp[..., 0])) > 60
    for key, picture in seen.items():
        assert corners(picture) == UPRIGHT, key
        assert abs(level(picture) - 120) <= 3, key


def test_a_cover_is_no_video() -> None:
    song, film = (CASES / "12_cover_art_streams" / f"{name}.mp4" for name in ("song", "flagged"))
    assert delivered(film).shape[0] == len(read_video(film, num_frames=40)) == 40
    with pytest.raises(ClipError) as caught:
        probe_video(song, LIMITS)
    assert caught.value.reason == Reason.NO_VIDEO_STREAM
    with pytest.raises(InputError, match=r"song\.mp4: no video stream, only a cover picture"):
        read_video(song, num_frames=2)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_a_cover_that_nobody_flagged_is_no_video_either(suffix: str, codec: str, tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.mkv", tmp_path / f"song.{suffix}"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=90x90", "-frames:v", "1", "-c:v", codec, cover)
    sound = ["-f", "lavfi", "-i", "sine=duration=2"]
    ffmpeg("-i", cover, *sound, "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "aac", "-disposition:v", "0", song)
    with pytest.raises(ClipError) as caught:
        probe_video(song, LIMITS)
    assert caught.value.reason == Reason.NO_VIDEO_STREAM
    with pytest.raises(DamagedMedia, match="no video stream"):
        open_clip_bytes(song.read_bytes(), "mp4")


def test_a_picture_alone_in_a_file_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=90x90", "-frames:v", "1", "-c:v", "mjpeg", path)
    assert len(delivered(path)) == open_clip_bytes(path.read_bytes(), "mp4").num_frames == 1


def test_untagged_hd_is_bt709(tmp_path: Path) -> None:
    path = CASES / "13_untagged_hd_colours" / "hd.mp4"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(path, "hd.mp4")
        text = tarfile.TarInfo("hd.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"x"))
    (trained_frames,) = trained(tmp_path, tmp_path.with_name(f"{tmp_path.name}_set"), 4).values()
    ran = delivered(path, fps=2.0)
    small = [np.asarray(PIL.Image.fromarray(frame).resize((96, 96))) for frame in read_video(path, num_frames=4)]
    for ours, read, train in zip(ran, small, trained_frames, strict=True):
        for spot in (
            np.s_[4:12, 4:12],
            np.s_[4:12, -12:-4],
            np.s_[-12:-4, 4:12],
            np.s_[-12:-4, -12:-4],
            np.s_[44:52, 44:52],
        ):
            means = [picture[spot].mean(axis=(0, 1)) for picture in (ours, read, train)]
            assert np.abs(means[0] - means[1]).max() <= 8 and np.abs(means[0] - means[2]).max() <= 8


def test_a_clip_of_our_own_is_one_file_wherever_it_lies(tmp_path: Path) -> None:
    """By its path, through the reader of files, it has bitwise the pixels of the shard reader."""
    path = CASES / "02_rotated_phone_video" / "upright.mp4"
    config = ClipsConfig(fps=3, size_px=96)
    (media,) = cut_clips(path, "v", probe_video(path, LIMITS), [Clip("v.1", 0.0, None)], config, LIMITS)
    assert isinstance(media, Media) and jpeg_packets(media.data) is not None
    (tmp_path / "clip.mp4").write_bytes(media.data)
    shard = open_clip_bytes(media.data, "mp4").read(range(media.num_frames))
    assert np.array_equal(read_video(tmp_path / "clip.mp4", num_frames=media.num_frames), shard)
