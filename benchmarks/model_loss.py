"""Peak memory and time of a contrastive loss at a large batch, in one process, beside its plain form at the same size.

    python -m benchmarks.model_loss                     # V-S, 8,192 clips, d = 64: both forms
    python -m benchmarks.model_loss vsc_fc 8192 512     # loss, clips, dimensions
    python -m benchmarks.model_loss vs 65536 512        # blocks only above 16,384 clips

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

from pipeline.losses import TERMS, LossConfig, LossName, contrastive_loss
from pipeline.losses.terms import kinds_of

LARGEST_PLAIN = 16_384


def main(argv: list[str]) -> int:
    """Print a line per form."""
    name, *numbers = [*argv, *["vs", "8192", "64"][len(argv) :]]
    num_clips, num_dimensions = map(int, numbers)
    threads = torch.get_num_threads()
    print(f"{name}, {num_clips} clips, d = {num_dimensions}, float32, {threads} threads, first and second pass")
    measured = {}
    for form in ("blocks", "plain") if num_clips <= LARGEST_PLAIN else ("blocks",):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.Process(target=_measure, args=(form, name, num_clips, num_dimensions, sender))
        worker.start()
        sender.close()  # so that a worker that dies ends the wait below
        extra_mb, seconds, value = receiver.recv()
        measured[form] = (extra_mb, min(seconds))
        worker.join()
        walls = " and ".join(f"{wall_s:.2f}" for wall_s in seconds)
        print(f"{form}: {extra_mb:.0f} MB beyond the features, {walls} s forward and backward, loss {value:.6f}")
    if "plain" in measured:
        memory, time_s = (measured["blocks"][i] / measured["plain"][i] for i in (0, 1))
        print(f"blocks / plain: memory {memory:.2f}, time {time_s:.2f}")
    return 0


def _measure(form: str, name: LossName, num_clips: int, num_dimensions: int, sender: Connection) -> None:
    draw = torch.Generator().manual_seed(0)
    features = {
        kind: F.normalize(torch.randn(num_clips, num_dimensions, generator=draw), dim=1).requires_grad_()
        for kind in kinds_of(TERMS[name])
    }
    scale = torch.tensor(100.0, requires_grad=True)
    # Loads what torch loads at the first backward.
    _loss(form, name, {kind: value[:8] for kind, value in features.items()}, scale).backward()
    before_kb = _resident_kb()
    seconds = []
    for _ in range(2 if num_clips <= LARGEST_PLAIN else 1):
        for value in features.values():
            value.grad = None
        start = time.perf_counter()
        loss = _loss(form, name, features, scale)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    extra_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    sender.send((extra_mb, seconds, loss.item()))


def _loss(form: str, name: LossName, features: dict[str, Tensor], scale: Tensor) -> Tensor:
    if form == "plain":
        return PLAIN[name](scale, **features)
    everyone = torch.ones(len(features["v"]), dtype=torch.bool)
    given = [features.get(kind) for kind in "vsfc"]
    return contrastive_loss(*given, scale, everyone, everyone, LossConfig(name=name))[0]


def _plain_vs(scale: Tensor, v: Tensor, s: Tensor) -> Tensor:
    logits, own = scale * v @ s.T, torch.arange(len(v))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def _plain_vsc_fc(scale: Tensor, v: Tensor, s: Tensor, f: Tensor, c: Tensor) -> Tensor:
    own, itself = torch.arange(len(v)), torch.eye(len(v), dtype=torch.bool)
    to_s, to_c = scale * v @ s.T, scale * v @ c.T
    total = F.cross_entropy(to_s.T, own) + F.cross_entropy(to_c.T, own)
    total = total + F.cross_entropy(torch.cat([to_s, to_c.masked_fill(itself, -torch.inf)], dim=1), own)
    total = total + F.cross_entropy(torch.cat([to_c, to_s.masked_fill(itself, -torch.inf)], dim=1), own)
    return total + _plain_vs(scale, f, c)


PLAIN = {"vs": _plain_vs, "vsc_fc": _plain_vsc_fc}


def _resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main(sys.argv[1:]))
