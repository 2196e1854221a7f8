"""One made-up video through the whole decode, before the first real one: a wrong ffmpeg fails the job, not its clips.

check_decode(config.clips, ffmpeg_version())
"""

import functools
import socket
import tempfile
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from pipeline.data.format import Reason
from pipeline.errors import InputError, MachineFault, RunError
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
    """Raise an `InputError` where this ffmpeg cannot do what `clips` asks of it: each video would fail; and a
    `MachineFault` where it is this machine that keeps it from the work: a full disk, a process killed from outside."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trial.mkv"
            _write(path)
            problems = _decode(path, clips)
    except (OSError, RunError) as error:
        raise MachineFault(f"the self test on {socket.gethostname()} failed: {error}; mend the machine") from None
    if any(failure.reason in (Reason.MEMORY_LIMIT, Reason.TIME_LIMIT) for failure in problems):
        raise MachineFault(
            f"the self test on {socket.gethostname()} failed ({problems[0].detail}); give the machine more memory, or "
            "look at what ends processes there"
        )
    if problems:
        raise InputError(
            f"{find_ffmpeg()} (version {version}) cannot cut clips with these options ({problems[0].detail}); set "
            f"$FFMPEG to ffmpeg 5.1 or later, such as {_bundled()}"
        )


def _decode(path: Path, clips: ClipsConfig) -> list[ClipError | Failure]:
    """Why the made-up video does not become a clip; empty where it does."""
    limits = LimitsConfig(formats=("matroska",))
    try:
        outcomes = cut_clips(path, "trial", probe_video(path, limits), [Clip("trial.mp4", 0.0, None)], clips, limits)
        return [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    except ClipError as error:
        return [error]


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
