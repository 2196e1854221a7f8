"""Cases of the whole trainer: `pipeline.train` on real Motion JPEG shards, workers, decoding and copies included.

record = train_case(case, device, shards, scratch)
"""

import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Case
from benchmarks.gpu.measure import peak_gib
from benchmarks.gpu.recipe import recipe_words
from pipeline.errors import RunError

WINDOW_STEPS, WINDOWS = 20, 4


def train_case(case: Case, device: torch.device, shards: Path, scratch: Path) -> dict[str, Any]:
    """Rates of the log windows after the first, which holds start and compilation."""
    from pipeline.train import main

    window = WINDOW_STEPS if device.type == "cuda" else 2
    files, words = recipe_words(
        case,
        device,
        f"name={case.name}",
        f"runs_dir={scratch / 'runs'}",
        "epochs=null",
        f"steps={window * WINDOWS}",
        f"data.sources=[{{shards: {shards}}}]",
        f"data.index_folder={scratch / 'index'}",
        "checkpoint.every_steps=0",
        "checkpoint.every_minutes=0",
        f"log.every_steps={window}",
        "log.wandb='off'",
    )
    if device.type == "cuda":
        words.append(f"data.num_workers={max(1, min(12, (os.cpu_count() or 2) - 3))}")
    if main([*files, *words]) != 0:
        raise RunError(f"{case.name}: the training run failed")
    lines = (scratch / "runs" / case.name / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "speed/clips_per_s" in row]
    steady = rows[1:]
    found = {
        "step_s": statistics.median(row["speed/step_median_s"] for row in steady),
        "clips_per_s": statistics.median(row["speed/clips_per_s"] for row in steady),
        "data_wait": statistics.median(row["speed/data_wait"] for row in steady),
        "first_s": rows[0]["speed/step_worst_s"],
        "peak_gib": peak_gib(device),
        "losses": [rows[0]["train/loss"], rows[-1]["train/loss"]],
    }
    shares = [row["speed/mfu"] for row in steady if "speed/mfu" in row]
    return found | {"mfu": statistics.median(shares) if shares else None}
