"""Activation memory of a step on a GPU: shapes say how it grows, measured peaks say how much of it there is.

    peak = resident bytes + constant + factor * bytes by shapes * clips

`resident bytes` follow from the ZeRO stage. The factor stands for what shapes do not tell (texts shorter than the
limit, temporaries, the kernels' own buffers), the constant for memory pools of captured graphs. Both are fitted to the
measured peaks of a model and mode; a model with one measured number of clips borrows the constant, one with none both.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.planning.memory import resident_bytes
from pipeline.planning.speeds import Point, Speeds, Wanted, points_for, reference_work


@dataclass(frozen=True)
class Kept:
    """How measured peaks relate to shapes."""

    factor: float = 1.0
    constant_bytes: float = 0.0
    is_measured: bool = False
    """Of this model; else of the mean of others."""


def kept_memory(wanted: Wanted, speeds: Speeds) -> Kept:
    """The fit for a model and mode, from points of any GPU."""
    points = [point for point in points_for(wanted, speeds) if point.peak_gib is not None]
    by_model: dict[str, list[Point]] = {}
    for point in points:
        by_model.setdefault(point.model, []).append(point)
    lines = {name: _line(of_model, speeds) for name, of_model in by_model.items() if _counts(of_model) > 1}
    constant = float(np.mean([line.constant_bytes for line in lines.values()])) if lines else 0.0
    for name, of_model in by_model.items():
        lines.setdefault(name, _slope(of_model, speeds, constant))
    if wanted.name in lines:
        return lines[wanted.name]
    if not lines:
        return Kept()
    return Kept(float(np.mean([line.factor for line in lines.values()])), constant)


def _line(points: list[Point], speeds: Speeds) -> Kept:
    """Least squares of the relative error; both not below 0."""
    shapes, beside, seen = _terms(points, speeds)
    rows = np.stack([1 / seen, shapes / seen], axis=1)
    constant, factor = np.linalg.lstsq(rows, 1 - beside / seen, rcond=None)[0]
    return _slope(points, speeds, 0.0) if constant < 0 else Kept(float(factor), float(constant), True)


def _slope(points: list[Point], speeds: Speeds, constant: float) -> Kept:
    shapes, beside, seen = _terms(points, speeds)
    x, y = shapes / seen, 1 - (beside + constant) / seen
    return Kept(float((x * y).sum() / (x * x).sum()), constant, True)


def _terms(points: list[Point], speeds: Speeds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes by shapes, bytes beside activations, and bytes seen, of every point."""
    model = points[0].model
    per_clip = reference_work(model, speeds).activation_bytes(2)
    shapes = np.array([point.clips_per_gpu * per_clip for point in points])
    beside = np.array([resident_bytes(point.zero_stage or 0, 1, _num_parameters(model), 2) for point in points])
    seen = np.array([(point.peak_gib or 0) * 2**30 for point in points])
    return shapes, beside, seen


def _counts(points: list[Point]) -> int:
    return len({point.clips_per_gpu for point in points})


@lru_cache
def _num_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CLIPViP(ModelConfig(name=name)).parameters())
