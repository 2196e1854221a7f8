"""Two workers against one, and the memory of a worker over many 720p videos.

    python benchmarks/preprocess_workers.py [--videos 100] [--seconds 6]

Each video is a copy of one file with two clips. Prints clips/s for 1 and 2 workers, their ratio, and the resident
memory of the workers (with their ffmpeg) over the run: median of the first and of the last fifth, and the peak. The
clock covers the whole command, start of the processes and merge included.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from preprocess_decode import make_video

from preprocess.config import PreprocessConfig
from preprocess.run import run


class Watch(threading.Thread):
    """Samples the resident memory of this process's workers, each with its ffmpeg, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples_mb: list[float] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.5):
            workers: dict[int, float] = {}
            for process in psutil.Process().children(recursive=True):
                try:
                    worker = process.ppid() if "ffmpeg" in process.name() else process.pid
                    workers[worker] = workers.get(worker, 0.0) + process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue
            if workers:
                self.samples_mb.append(max(workers.values()))


def make_inputs(folder: Path, num_videos: int, seconds: int) -> None:
    (folder / "videos").mkdir()
    make_video(folder / "video.mp4", seconds)
    with open(folder / "hdvila_part0.jsonl", "w") as stream:
        for number in range(num_videos):
            os.link(folder / "video.mp4", folder / "videos" / f"v{number}.mp4")
            clips = [
                {"clip_id": f"v{number}.{k}.mp4", "span": [k * seconds / 2, (k + 1) * seconds / 2]} for k in (0, 1)
            ]
            stream.write(json.dumps({"video_id": f"v{number}", "clip": clips}) + "\n")


def measure(folder: Path, num_workers: int) -> tuple[float, list[float]]:
    """(clips per second, samples of memory)."""
    values = {
        "output": folder / f"out{num_workers}",
        "workers": num_workers,
        "metadata": {"files": [str(folder / "hdvila_part0.jsonl")]},
        "videos": {"templates": [str(folder / "videos" / "{video_id}.mp4")]},
        "shards": {"clips_per_shard": 10},
    }
    watch = Watch()
    watch.start()
    started = time.monotonic()
    stats = run(PreprocessConfig.model_validate(values))
    elapsed_s = time.monotonic() - started
    watch.stop.set()
    watch.join()
    assert stats["num_failed"] == 0
    return stats["num_delivered"] / elapsed_s, watch.samples_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=6)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        make_inputs(folder, options.videos, options.seconds)
        rates = {}
        for num_workers in (1, 2):
            rates[num_workers], samples = measure(folder, num_workers)
            fifth = max(1, len(samples) // 5)
            first, last = statistics.median(samples[:fifth]), statistics.median(samples[-fifth:])
            memory = f"{first:.0f} MB at first, {last:.0f} MB at last, peak {max(samples):.0f} MB"
            print(
                f"{num_workers} workers: {rates[num_workers]:.2f} clips/s; a worker with its ffmpeg: {memory}",
                flush=True,
            )
        print(f"2 workers are {rates[2] / rates[1]:.2f} x 1 worker by the clock")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
