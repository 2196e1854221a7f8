"""Which checkpoint of a run is evaluated, and by what it was chosen: the report says so.

    path, chosen_by = select_checkpoint(Path("runs/didemo_b32"), "best")
    # runs/didemo_b32/checkpoints/step_00000650, "best didemo_val/t2v_r1 of the val split, at step 650"

`last` is the run after its fixed length. `best` follows the run's own `evaluation.best_metric`, on a validation split
unless the run was told to choose on the test split, which the sentence then says.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pipeline.config import read_yaml
from pipeline.errors import InputError

Which = Literal["last", "best"]


def select_checkpoint(source: Path, which: Which) -> tuple[Path, str]:
    """The checkpoint to load, and the sentence for the report ("" for what is no run folder)."""
    metrics = source / "metrics.jsonl"
    if not metrics.is_file():
        if which == "best":
            raise InputError(f"{source} is no run folder, so it has no best checkpoint; leave which=last")
        return source, ""
    if which == "last":
        return source, "the last step of the run"
    evaluation = read_yaml(source / "config.yaml").get("evaluation", {})
    metric = evaluation.get("best_metric")
    if metric is None:
        raise InputError(f"{source} was not told how to choose: it has no evaluation.best_metric; use which=last")
    step, value = _best_step(metrics, f"eval/{metric}")
    path = source / "checkpoints" / f"step_{step:08d}"
    if not path.is_dir():
        raise InputError(f"{path}, the best by {metric}, is gone; use which=last")
    splits = {one["name"]: one["split"] for one in evaluation["sets"]}
    split = splits[metric.partition("/")[0]]
    warning = "; chosen on the test split (best_on_test), so its test figure is too good" if split == "test" else ""
    return path, f"best {metric} ({value:.4f}) of the {split} split, at step {step}{warning}"


def _best_step(metrics: Path, key: str) -> tuple[int, float]:
    """The first step with the highest value, as the trainer judges. A line still being written does not count."""
    best: tuple[int, float] | None = None
    for number, line in enumerate(metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            raise InputError(f"{metrics}:{number} is damaged, so the best step is not known; use which=last") from None
        if key in row and (best is None or row[key] > best[1]):
            best = int(row["step"]), float(row[key])
    if best is None:
        raise InputError(f"{metrics} has no {key} yet; the run was not evaluated")
    return best
