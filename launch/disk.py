"""Free disk against what a job will write: checkpoints of a run, shards of a set.

facts, lacking = run_disk(run_folder, config)
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.train_config import TrainConfig

BYTES_PER_PARAMETER = 20
"""Of a checkpoint: fp32 weights twice (the engine's, and the safetensors file), the fp32 master copy of ZeRO 1 to 3,
two moments."""


def nearest_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there; InputError where nothing can be written into it."""
    place = path
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written to; change runs_dir or output, or the rights of the folder")
    return place


def compare_disk(what: str, path: Path, wanted_bytes: float) -> tuple[list[str], list[str]]:
    """(facts, lacking): whether what will be written to `path` fits into the disk that it lies on."""
    place = nearest_folder(path)
    free_bytes = shutil.disk_usage(place).free
    if wanted_bytes > free_bytes:
        return [], [f"disk: {what} take about {size(wanted_bytes)}, but {place} has {size(free_bytes)} free; make room"]
    return [f"disk: {size(free_bytes)} free in {place}, {what} take about {size(wanted_bytes)}"], []


def run_disk(
    run_folder: Path, config: "TrainConfig", num_parameters: int, num_steps: int
) -> tuple[list[str], list[str]]:
    """Checkpoints that a run will keep beside those it has, by the size of its own, else by its parameters."""
    policy = config.checkpoint
    saved = checkpoint_sizes(run_folder)
    each = max(saved) if saved else BYTES_PER_PARAMETER * num_parameters
    # One more is written before the oldest goes.
    count = policy.keep_last + 1 + (num_steps // policy.keep_every_steps if policy.keep_every_steps else 0)
    to_come = max(1, count - len(saved))
    return compare_disk(f"{to_come} checkpoints of {size(each)}", run_folder, to_come * each)


def checkpoint_sizes(run_folder: Path) -> list[int]:
    """Bytes of the complete checkpoints of a run."""
    return [
        sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
        for path in run_folder.glob("checkpoints/step_*/COMPLETE.json")
    ]


def size(num_bytes: float) -> str:
    """Bytes with a decimal prefix.

    >>> size(39.56e12), size(72e9), size(5e5)
    ('39.6 TB', '72.0 GB', '0.5 MB')
    """
    for unit, prefix in ((1e12, "T"), (1e9, "G")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {prefix}B"
    return f"{num_bytes / 1e6:,.1f} MB"
