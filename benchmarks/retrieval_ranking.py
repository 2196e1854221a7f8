"""Exact ranks in blocks, both directions, against the whole similarity matrix in numpy: time and peak memory, each in
its own process.

    python benchmarks/retrieval_ranking.py                                  20,000 x 20,000, both ways of ranking
    python benchmarks/retrieval_ranking.py --texts 1000000 --videos 100000 --only blocks [--device cuda]

Features are simulated: unit vectors of 512 numbers, each text near its video. `of_product` is the speed beside a bare
float32 product of blocks of the same size, measured in the same process just before: 1 would mean free counting. Memory
is the process's peak resident set, interpreter and libraries included; on a GPU also what torch allocated there.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.evaluation.directions import rank_at_once
from pipeline.evaluation.metrics import recall_metrics
from pipeline.evaluation.ranking import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE

DIM = 512
NOISE = 4.0
CHUNK = 20_000


def simulate(num_texts: int, num_videos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts [N, 512], videos [M, 512] float32, and the video of each text [N]."""
    generator = torch.Generator().manual_seed(0)
    videos = normalize(torch.randn(num_videos, DIM, generator=generator), dim=-1)
    owner = torch.arange(num_texts) % num_videos
    texts = torch.empty(num_texts, DIM)
    for numbers in torch.split(torch.arange(num_texts), CHUNK):
        noise = torch.randn(len(numbers), DIM, generator=generator) * NOISE / DIM**0.5
        texts[numbers] = normalize(videos[owner[numbers]] + noise, dim=-1)
    return texts, videos, owner


def in_blocks(texts: Tensor, videos: Tensor, owner: Tensor, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks text to video, and video to text."""
    t2v, v2t = rank_at_once(texts.to(device), videos.to(device), owner.to(device))
    return t2v.by_rule("average"), v2t.by_rule("average")


def whole_matrix(texts: Tensor, videos: Tensor, owner: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The form that everybody writes: all scores at once, float32."""
    scores, owners = texts.numpy() @ videos.numpy().T, owner.numpy()
    positive = scores[np.arange(len(scores)), owners]
    best = np.full(len(videos), -np.inf, dtype=np.float32)
    np.maximum.at(best, owners, positive)
    return 1.0 + (scores > positive[:, None]).sum(1), 1.0 + (scores > best[None, :]).sum(0)


def product_gflops(texts: Tensor, videos: Tensor, device: str) -> float:
    """Speed of bare float32 products of blocks, half a second of them."""
    width = CPU_BLOCK_SIZE if device == "cpu" else GPU_BLOCK_SIZE
    queries, gallery = texts[: width // 4].to(device), videos[:width].to(device)
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < 0.5:
        scores = queries @ gallery.T
        done += 2 * scores.numel() * DIM
        if device != "cpu":
            torch.cuda.synchronize()
    return done / seconds / 1e9


def measure(kind: str, num_texts: int, num_videos: int, device: str, share: int) -> dict[str, float]:
    """Rank in this process and say how long it took and how much memory it needed."""
    texts, videos, owner = simulate(num_texts, num_videos)
    texts, owner = texts[: len(texts) // share], owner[: len(texts) // share]
    product = product_gflops(texts, videos, device)
    started, cpu_started = time.perf_counter(), time.process_time()
    ranks = in_blocks(texts, videos, owner, device) if kind == "blocks" else whole_matrix(texts, videos, owner)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    gflops = 2 * len(texts) * num_videos * DIM / seconds / 1e9
    facts = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "gflops": gflops,
        "of_product": gflops / product,
    }
    for direction, found in zip(("t2v", "v2t"), ranks, strict=True):
        metrics = recall_metrics(found, direction)
        facts |= {name: metrics[name] for name in (f"{direction}_r1", f"{direction}_mnr")}
    if device != "cpu":
        facts["gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000, help="number of texts")
    parser.add_argument("--videos", type=int, default=20_000, help="number of videos")
    parser.add_argument("--only", choices=["blocks", "matrix"], help="one way of ranking")
    parser.add_argument("--device", default="cpu", help="where blocks are ranked")
    parser.add_argument("--share", type=int, default=1, help="rank one of so many equal parts of the texts")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.only, options.texts, options.videos, options.device, options.share)))
        return
    part = f", a {options.share}th of the texts ranked" if options.share > 1 else ""
    print(f"{options.texts:,} texts x {options.videos:,} videos, d = {DIM}, {torch.get_num_threads()} threads{part}")
    for kind in [options.only] if options.only else ["blocks", "matrix"]:
        words = ["--texts", str(options.texts), "--videos", str(options.videos), "--device", options.device]
        words += ["--share", str(options.share)]
        command = [sys.executable, __file__, "--inside", "--only", kind, *words]
        facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{kind:7}", ", ".join(f"{name} {value:.4g}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
