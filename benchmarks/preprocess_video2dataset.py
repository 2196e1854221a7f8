"""One video through video2dataset's own steps (cut, resize, frame rate), run by the Python it is installed in.

    PYTHON_OF_VIDEO2DATASET benchmarks/preprocess_video2dataset.py VIDEO SPANS.json low|exact

Its three subsamplers are called one after the other, as its download worker does. The worker itself is left out: in
1.3.0 it fails on an attribute that its resolution subsampler does not have. `preprocess_decode.py` starts this; prints
the CPU-seconds without imports, and the number of clips.
"""

import json
import resource
import sys
from pathlib import Path

from video2dataset.subsamplers.clipping_subsampler import ClippingSubsampler
from video2dataset.subsamplers.frame_subsampler import FrameSubsampler
from video2dataset.subsamplers.resolution_subsampler import ResolutionSubsampler

SIZE, FPS = 224, 3


def cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    video, spans, precision = sys.argv[1:]
    before = cpu_s()
    streams = {"video": [Path(video).read_bytes()]}
    metadata = {"key": "v", "clips": json.loads(Path(spans).read_text())}
    clipping = ClippingSubsampler(5, {"video": "mp4"}, precision=precision)
    streams, clips, error = clipping(streams, metadata)
    for step in (ResolutionSubsampler("scale,crop", video_size=SIZE), FrameSubsampler(FPS)):
        if error is None:
            streams, clips, error = step(streams, clips)
    if error is not None:
        sys.exit(f"error: {error}")
    print(json.dumps({"cpu_s": cpu_s() - before, "num_clips": len(streams["video"])}))


if __name__ == "__main__":
    main()
