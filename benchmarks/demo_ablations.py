"""What the demo's model learns from: the same training with parts taken away, averaged over seeds.

    make shards && python benchmarks/demo_ablations.py [--seeds 2] [--jobs 2] [--folder runs/ablations]

`full` is configs/tiny/pretrain.yaml itself. `one frame` trains and evaluates on a single frame, `shuffled frames` is
the full model with the frames of every held-out video in random order, `mean pooling` has no proxies, `V-S alone` no
captions. A run that is complete is not trained again. Prints a Markdown table of means, and the seeds' own values.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pipeline.evaluation.protocol import RetrievalSetConfig
from pipeline.evaluation.retrieval import evaluate_retrieval
from pipeline.model.clip_vip import CLIPViP, Features
from pipeline.model.weights import load_model

RECIPE = Path("configs/tiny/pretrain.yaml")
VARIANTS: dict[str, list[str]] = {
    "full": [],
    "one frame": ["data.num_frames=1"],
    "mean pooling": ["model.pooling=mean", "model.num_proxies=1", "model.num_temporal=0"],
    "V-S alone": ["loss.name=vs"],
}
COLUMNS = ("t2v_r1", "t2v_r10", "v2t_r1", "pairs_motion", "pairs_direction")
FIRST_SEED = 42


def main() -> None:
    """Train what is missing, then evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    work = [(variant, seed) for seed in seeds for variant in VARIANTS]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda item: train(*item, options.folder), work))
    values: dict[str, list[dict[str, float]]] = {}
    for variant, seed in work:
        run = options.folder / run_name(variant, seed)
        values.setdefault(variant, []).append(evaluate(run, variant, shuffled=False))
        if variant == "full":
            values.setdefault("shuffled frames", []).append(evaluate(run, variant, shuffled=True))
    print_table(values)


def run_name(variant: str, seed: int) -> str:
    """Folder of one training."""
    return f"{variant.replace(' ', '_')}_{seed}"


def train(variant: str, seed: int, folder: Path) -> None:
    """One training, or the rest of one that was interrupted."""
    name = run_name(variant, seed)
    if (folder / name / "COMPLETE").exists():
        return
    settings = [f"name={name}", f"runs_dir={folder}", f"seed={seed}", "evaluation.every_steps=0", "evaluation.sets=[]"]
    command = [sys.executable, "-m", "pipeline.train", str(RECIPE), *settings, *VARIANTS[variant]]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(f"trained {name}", file=sys.stderr, flush=True)


def evaluate(run: Path, variant: str, *, shuffled: bool) -> dict[str, float]:
    """Metrics of a finished run on the demo's held-out set."""
    chosen: dict[str, Any] = yaml.safe_load(RECIPE.read_text())["evaluation"]["sets"][0]
    if variant == "one frame":
        chosen["num_frames"] = 1
    model = load_model(run).eval()
    encode = ShuffledFrames(model) if shuffled else model
    with torch.no_grad():
        return evaluate_retrieval(encode, model.tokenizer, model.image_size_px, RetrievalSetConfig(**chosen))


class ShuffledFrames:
    """A model that sees the frames of every video in a random order of their own."""

    def __init__(self, model: CLIPViP) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *, video: Tensor | None = None, caption: Tensor | None = None) -> Features:
        if video is not None:
            order_BT = torch.rand(video.shape[:2], generator=self.generator).argsort(dim=1)
            video = video[torch.arange(len(video))[:, None], order_BT]
        features: Features = self.model(video=video, caption=caption)
        return features


def print_table(values: dict[str, list[dict[str, float]]]) -> None:
    """Means over the seeds in percent, with every seed's value behind."""
    print(f"| training | {' | '.join(COLUMNS)} |\n|---{'|---:' * len(COLUMNS)}|")
    for variant, rows in values.items():
        cells = []
        for column in COLUMNS:
            seen = [100 * row[column] for row in rows]
            cells.append(f"{sum(seen) / len(seen):.1f} ({', '.join(f'{value:.1f}' for value in seen)})")
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
