"""Peak memory and time of the V-S loss at a large batch, in one process, beside the plain loss at the same size.

    python -m benchmarks.model_loss                     # 8,192 clips: both forms
    python -m benchmarks.model_loss 65536 512           # clips, dimensions: blocks only above 16,384 clips

Each form runs in a fresh process. Extra memory is the peak over forward and backward beyond what the process held
before, features included there; gradients of the features are part of the extra.
"""

import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses import LossConfig, contrastive_loss

LARGEST_PLAIN = 16_384


def main(argv: list[str]) -> int:
    """Print a line per form."""
    num_clips, num_dimensions = [*map(int, argv), 8192, 64][:2] if len(argv) < 2 else map(int, argv[:2])
    print(f"V-S, {num_clips} clips, d = {num_dimensions}, float32, {torch.get_num_threads()} threads")
    measured = {}
    for form in ("blocks", "plain") if num_clips <= LARGEST_PLAIN else ("blocks",):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.Process(target=_measure, args=(form, num_clips, num_dimensions, sender))
        worker.start()
        sender.close()  # so that a worker that dies ends the wait below
        extra_mb, wall_s, value = measured[form] = receiver.recv()
        worker.join()
        print(f"{form}: {extra_mb:.0f} MB beyond the features, {wall_s:.1f} s forward and backward, loss {value:.6f}")
    if "plain" in measured:
        memory, seconds = (measured["blocks"][i] / measured["plain"][i] for i in (0, 1))
        print(f"blocks / plain: memory {memory:.2f}, time {seconds:.2f}")
    return 0


def _measure(form: str, num_clips: int, num_dimensions: int, sender: Connection) -> None:
    draw = torch.Generator().manual_seed(0)
    video, subtitle = (
        F.normalize(torch.randn(num_clips, num_dimensions, generator=draw), dim=1).requires_grad_() for _ in range(2)
    )
    scale = torch.tensor(100.0, requires_grad=True)
    _loss(form, video[:8], subtitle[:8], scale).backward()  # loads what torch loads at the first backward
    video.grad = subtitle.grad = None
    before_kb = _resident_kb()
    start = time.perf_counter()
    loss = _loss(form, video, subtitle, scale)
    loss.backward()
    wall_s = time.perf_counter() - start
    extra_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    sender.send((extra_mb, wall_s, loss.item()))


def _loss(form: str, video: Tensor, subtitle: Tensor, scale: Tensor) -> Tensor:
    if form == "blocks":
        everyone = torch.ones(len(video), dtype=torch.bool)
        return contrastive_loss(video, subtitle, None, None, scale, everyone, everyone, LossConfig(name="vs"))[0]
    logits = scale * video @ subtitle.T
    own = torch.arange(len(video))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def _resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main(sys.argv[1:]))
