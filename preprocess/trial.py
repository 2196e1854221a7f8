"""One made-up video through the whole decode, before the first real one: a wrong ffmpeg fails the job, not its clips.

check_decode(config.clips, ffmpeg_version())
"""

import functools
import tempfile
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from pipeline.errors import InputError
from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.probe import probe_video
from preprocess.records import Clip, ClipError, Failure

_NUM_FRAMES = 8
_FPS = 4
_SIDE_PX = 64


@functools.cache
def check_decode(clips: ClipsConfig, version: str) -> None:
    """Raise an `InputError` where this ffmpeg cannot do what `clips` asks of it: each video would fail."""
    limits = LimitsConfig(formats=("matroska",))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.mkv"
        _write(path)
        try:
            whole = [Clip("trial.mp4", 0.0, None)]
            problems = [
                outcome.detail
                for outcome in cut_clips(path, "trial", probe_video(path, limits), whole, clips, limits)
                if isinstance(outcome, Failure)
            ]
        except ClipError as error:
            problems = [error.detail]
    if problems:
        raise InputError(
            f"{find_ffmpeg()} (version {version}) cannot cut clips with these options ({problems[0]}); set $FFMPEG to "
            f"ffmpeg 5.1 or later, such as {_bundled()}"
        )


def _write(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = _SIDE_PX, _SIDE_PX, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(_NUM_FRAMES):
            picture = np.full((_SIDE_PX, _SIDE_PX, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _bundled() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return "that of the wheel imageio-ffmpeg"
