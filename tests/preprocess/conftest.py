"""Source videos that carry their own answer: frame i is painted with the bits of i. Made with PyAV, read with PIL.

The pictures, videos and metadata share no code with what they test; only `finished_set` runs it.
"""

import io
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from preprocess.config import PreprocessConfig
from preprocess.run import run

BITS = 12
_COLUMNS, _ROWS = 4, 3


def paint(number: int, width: int, height: int) -> np.ndarray:
    """An RGB picture of 4 x 3 black and white blocks that spell `number` in binary."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], dtype=np.uint8).reshape(_ROWS, _COLUMNS)
    rows = np.arange(height) * _ROWS // height
    columns = np.arange(width) * _COLUMNS // width
    return np.repeat((bits[rows][:, columns] * 215 + 20)[..., None], 3, axis=2).astype(np.uint8)


def read_number(picture: np.ndarray) -> int:
    """The number that `paint` spelled, from a picture of any size."""
    height, width = picture.shape[:2]
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, _COLUMNS)
        y, x = int((row + 0.5) * height / _ROWS), int((column + 0.5) * width / _COLUMNS)
        number |= int(picture[y, x].mean() > 127) << bit
    return number


def write_painted(
    path: Path,
    *,
    num_frames: int = 75,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times_s: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    draw: Callable[[int, int, int], np.ndarray] = paint,
) -> Path:
    """A video whose frame i shows i at i / fps (or at `times_s[i]`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 12800) if codec != "mpeg4" else Fraction(1, fps)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pix_fmt
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            time_s = times_s[number] if times_s is not None else number / fps
            frame.pts, frame.time_base = round(time_s / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clip_frames(media: bytes) -> list[np.ndarray]:
    """The RGB frames of a delivered MJPEG mp4, each decoded by PIL as the plain JPEG that it is."""
    with av.open(io.BytesIO(media)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    return [np.asarray(Image.open(io.BytesIO(packet)).convert("RGB")) for packet in packets]


def write_hdvila(path: Path, videos: dict[str, list[tuple[str, float, float]]]) -> Path:
    """Metadata in HD-VILA's form: video id -> (clip id, start, end) in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        for video_id, clips in videos.items():
            items = [{"clip_id": clip_id, "span": [_stamp(start), _stamp(end)]} for clip_id, start, end in clips]
            row = {"video_id": video_id, "url": f"https://www.youtube.com/watch?v={video_id}", "clip": items}
            stream.write(json.dumps(row) + "\n")
    return path


def _stamp(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes // 60):02d}:{int(minutes % 60):02d}:{rest:06.3f}"


def write_sound(silent: Path, path: Path) -> Path:
    """`silent` with 3 s of AAC at 16 kHz beside its pictures."""
    rate = 16000
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", rate=rate, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        for start in range(0, 3 * rate, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            target.mux(audio.encode(frame))
        target.mux(audio.encode(None))
    return path


@pytest.fixture(scope="session")
def add_sound() -> Callable[[Path, Path], Path]:
    return write_sound


@pytest.fixture
def painted() -> Callable[..., Path]:
    return write_painted


@pytest.fixture
def paint_number() -> Callable[[int, int, int], np.ndarray]:
    return paint


@pytest.fixture
def read_frames() -> Callable[[bytes], list[np.ndarray]]:
    return clip_frames


@pytest.fixture
def read_numbers() -> Callable[[bytes], list[int]]:
    return lambda media: [read_number(frame) for frame in clip_frames(media)]


@pytest.fixture
def read_painted() -> Callable[[np.ndarray], int]:
    return read_number


@pytest.fixture(scope="session")
def hdvila() -> Callable[..., Path]:
    return write_hdvila


@pytest.fixture
def small_set(tmp_path: Path) -> dict[str, Any]:
    """Config values of a small set: 4 videos of 3 s with 3 clips each, subtitles for all but one."""
    return write_small_set(tmp_path)


def write_small_set(folder: Path) -> dict[str, Any]:
    videos: dict[str, list[tuple[str, float, float]]] = {}
    for number in range(4):
        video_id = f"-vid_{number}"
        write_painted(folder / "videos" / f"{video_id}.mp4", options={"g": "50", "bf": "2"})
        videos[video_id] = [(f"{video_id}.{k}.mp4", round(0.1 + k * 0.9, 3), round(1.0 + k * 0.9, 3)) for k in range(3)]
    write_hdvila(folder / "hdvila_part0.jsonl", videos)
    with open(folder / "subtitles.jsonl", "w") as stream:
        for clips in videos.values():
            for clip_id, start, _ in clips:
                if clip_id != "-vid_3.2.mp4":
                    stream.write(json.dumps({"clip_id": clip_id, "text": f"so this is {clip_id} at {start}"}) + "\n")
    return {
        "output": str(folder / "shards"),
        "workers": 1,
        "metadata": {"files": [str(folder / "hdvila_part*.jsonl")]},
        "videos": {"templates": [str(folder / "videos" / "{video_id}.{ext}")]},
        "texts": {"subtitles": [str(folder / "subtitles.jsonl")]},
        "clips": {"fps": 5, "size_px": 32},
        "shards": {"clips_per_shard": 5},
    }


@pytest.fixture(scope="session")
def make_small_set() -> Callable[[Path], dict[str, Any]]:
    return write_small_set


@pytest.fixture(scope="session")
def finished_set(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Config values of a small set that is written and merged. Copy its output before changing it."""
    values = write_small_set(tmp_path_factory.mktemp("finished"))
    run(PreprocessConfig.model_validate(values))
    return values
