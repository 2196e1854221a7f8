"""Forward and backward of the video tower on a CPU, beside a dense eager transcription of the same mathematics.

    python -m benchmarks.model_step                                   # ViT-B-32-quickgelu, 12 frames, 1 clip
    python -m benchmarks.model_step ViT-B-16-quickgelu 12 1 3         # model, frames, clips, repeats

Time: the two forms alternate in one process, medians. Memory: each form alone in a fresh process, the peak of forward
and backward beyond what the weights and the input hold; parameter gradients are part of it in both.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from tests.pipeline.model import dense

FORMS = ("ours", "dense")


def main(argv: list[str]) -> int:
    """Print both forms and their ratios."""
    name, *numbers = [*argv, *["ViT-B-32-quickgelu", "12", "1", "3"][len(argv) :]]
    num_frames, num_clips, repeats = map(int, numbers)
    print(f"{name}, T = {num_frames}, {num_clips} clips, float32, {torch.get_num_threads()} threads, {repeats} repeats")
    memory_mb = {form: _in_fresh_process(form, name, num_frames, num_clips) for form in FORMS}
    model, video = _build(name, num_frames, num_clips)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats):
        for form in FORMS:
            model.zero_grad()
            start = time.perf_counter()
            _features(form, model, video).sum().backward()
            seconds[form].append(time.perf_counter() - start)
    medians = {form: statistics.median(seconds[form]) for form in FORMS}
    for form in FORMS:
        print(f"{form}: {medians[form]:.2f} s, {memory_mb[form]:.0f} MB")
    time_ratio, memory_ratio = (each["ours"] / each["dense"] for each in (medians, memory_mb))
    print(f"ours / dense: time {time_ratio:.2f}, memory {memory_ratio:.2f}")
    return 0


def _build(name: str, num_frames: int, num_clips: int) -> tuple[CLIPViP, Tensor]:
    torch.manual_seed(0)
    model = CLIPViP.from_config(ModelConfig(name=name, num_temporal=num_frames))
    return model, torch.randn(num_clips, num_frames, 3, model.image_size_px, model.image_size_px)


def _features(form: str, model: CLIPViP, video: Tensor) -> Tensor:
    if form == "dense":
        return dense.video_features(model, video)
    features_BD = model(video=video).video_BD
    assert features_BD is not None
    return features_BD


def _in_fresh_process(form: str, name: str, num_frames: int, num_clips: int) -> float:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.Process(target=_measure, args=(form, name, num_frames, num_clips, sender))
    worker.start()
    sender.close()  # so that a worker that dies ends the wait below
    extra_mb: float = receiver.recv()
    worker.join()
    return extra_mb


def _measure(form: str, name: str, num_frames: int, num_clips: int, sender: Connection) -> None:
    model, video = _build(name, num_frames, num_clips)
    model.visual.requires_grad_(True)
    torch.zeros(1, requires_grad=True).sum().backward()  # loads what torch loads at the first backward
    before_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    # Building the model peaked higher than it rests: give the peak counter back its meaning.
    Path("/proc/self/clear_refs").write_text("5")
    _features(form, model, video).sum().backward()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_bytes = int(status["VmHWM"].split()[0]) * 1024
    sender.send((peak_bytes - before_bytes) / 1e6)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main(sys.argv[1:]))
