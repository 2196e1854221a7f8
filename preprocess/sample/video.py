"""One raw video of the corpus: H.264 with B-frames and one long group of pictures, as downloaded videos have.

write_video(video, config, path)    writes beside `path` and renames
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from preprocess.sample.draw import Canvas, draw_frame
from preprocess.sample.plan import Clip, Defect, SampleConfig, Video
from preprocess.sample.scenes import Pose, pose_at

X264 = {
    "preset": "superfast",
    "crf": "26",
    "g": "250",
    "keyint_min": "250",
    "sc_threshold": "0",
    "bf": "3",
    "threads": "1",
}


def write_video(video: Video, config: SampleConfig, path: Path) -> None:
    """Draw and encode all clips of `video`, in order, with a still moment of the next scene in every gap."""
    staged = path.with_suffix(".partial")
    with av.open(str(staged), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=config.fps, options=X264)
        stream.width, stream.height = config.width_px, config.height_px
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, config.fps)
        frame_index = 0
        for clip in video.clips:
            if clip.defect is Defect.BEYOND_END:
                continue
            for image in _draw_clip(clip, config, frame_index):
                frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
                frame.pts = frame_index
                container.mux(stream.encode(frame))
                frame_index += 1
        container.mux(stream.encode(None))
    if video.defect is Defect.BROKEN_VIDEO:
        content = staged.read_bytes()
        staged.write_bytes(content[: len(content) // 2])
    staged.replace(path)


def _draw_clip(clip: Clip, config: SampleConfig, first_frame: int) -> list[Image.Image]:
    """The frames from `first_frame` to the end of the clip's span; before its start, its first moment stands still."""
    canvas = Canvas(clip.scene, config.width_px, config.height_px)
    images: list[Image.Image] = []
    last_pose: Pose | None = None
    end_frame = -(-clip.end_ms * config.fps // 1000)
    for index in range(first_frame, end_frame):
        time_ms = index * 1000 / config.fps
        t = min(1.0, max(0.0, (time_ms - clip.start_ms) / (clip.end_ms - clip.start_ms)))
        pose = pose_at(clip.scene, t)
        images.append(images[-1] if pose == last_pose else draw_frame(canvas, pose))
        last_pose = pose
    return images
