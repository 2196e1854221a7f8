"""How long a step takes and how much memory it needs on a GPU, from steps that were measured.

    table = read_speeds()
    speed = table.step(Wanted(gpu="h200", model="ViT-B-32-quickgelu", mode="eager", zero_stage=1), clips=64)
    speed.seconds, speed.basis, speed.is_measured

A step has two parts. The host issues kernels, in a time h that does not depend on the clips; the GPU computes, in a
time b for each clip. Eager, one waits for the other: n clips take about the longer of the two, (h^4 + (b n)^4)^(1/4),
whose exponent is fitted and softens the turn. Captured in graphs, the host has a short constant part: h + b n. Both are
linear in h^p and b^p, so that two measured numbers of clips give the curve.

What has no curve of its own takes the nearest one, changed by what is known: operations (models, frames, losses), the
measured time of the host (ZeRO stages), datasheet peaks (GPUs). Then the result is called assumed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator

from pipeline.config import Section
from pipeline.errors import InputError
from pipeline.flops import GPUS, ClipWork, Gpu, gpu_label
from pipeline.model.config import ModelConfig
from pipeline.planning.bench import points_of

SPEEDS_FILE = Path(__file__).with_name("measured_speeds.yaml")
EXPONENTS = {"fast": 1.0, "compiled": 4.0, "eager": 4.0}
"""p of every mode; see above."""
TF32_SLOWDOWN, FP32_SLOWDOWN = 2.0, 6.0
"""Of the GPU's part against bf16 (assumed): half the peak and twice the bytes; without tensor cores a matrix product
takes 15 times as long, at a third of the time."""


class Point(Section):
    """A measured training step, as `benchmarks.gpu` writes it."""

    gpu: str
    """A name that `pipeline.flops.GPUS` knows, in lower case, or the name that the driver gives."""
    date: Any
    torch: str
    model: str
    """An open_clip name."""
    clips_per_gpu: int = Field(gt=0)
    precision: str
    zero_stage: int | None
    """None: a plain torch loop without an engine."""
    mode: str
    clips_per_s: float = Field(gt=0)
    """Of one GPU."""
    step_ms: float | None = None
    peak_gib: float | None = None
    source: str

    @field_validator("gpu")
    @classmethod
    def _label(cls, name: str) -> str:
        return gpu_label(name)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.clips_per_gpu / self.clips_per_s


class Speeds(Section):
    """The file of measured steps."""

    measured_with: dict[str, Any]
    """num_frames, num_text_tokens and loss of every point."""
    stem_share: dict[str, float] = {}
    """By mode: share of the GPU's time that the patch embedding takes."""
    host_ms: dict[int, float] = {}
    """By ZeRO stage: time of the host for a step."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Wanted:
    """What a step is asked for."""

    gpu: str
    card: Gpu
    model: ModelConfig
    work: ClipWork
    precision: str
    tf32: bool
    zero_stage: int | None
    mode: str

    @property
    def name(self) -> str | None:
        """Of the model, by which it may have been measured; None where its architecture is given in full."""
        return self.model.name if self.model.architecture is None else None


@dataclass(frozen=True)
class Speed:
    """Of one step on one GPU, without communication."""

    seconds: float
    is_measured: bool
    """Whether points of this GPU, model, stage, precision and mode say so; else something is assumed."""
    basis: str
    """Where the figure comes from, in words."""


@dataclass(frozen=True)
class _Curve:
    """((host_s)^p + (clip_s n)^p)^(1/p)."""

    host_s: float
    clip_s: float
    exponent: float

    def __call__(self, clips: float) -> float:
        p = self.exponent
        return float((self.host_s**p + (self.clip_s * clips) ** p) ** (1 / p))

    def times(self, host: float = 1.0, clip: float = 1.0) -> "_Curve":
        """With its two times multiplied."""
        return _Curve(self.host_s * host, self.clip_s * clip, self.exponent)


def read_speeds(path: Path | None = None) -> Speeds:
    """The measured steps that come with the code, and those of `path` in front of them."""
    speeds = _read(SPEEDS_FILE)
    if path is None:
        return speeds
    return speeds.model_copy(update={"points": (*_read(path, speeds).points, *speeds.points)})


def estimate(wanted: Wanted, clips: float, speeds: Speeds) -> Speed:
    """A step of `clips` clips on one GPU. InputError where no point of this mode was measured on any GPU."""
    points = points_for(wanted, speeds)
    base = _best_group(points, wanted)
    if not base:
        known = _listed(sorted({point.mode for point in speeds.points}))
        raise InputError(f"no step in mode {wanted.mode} was measured; known are {known}; --mfu plans without")
    curve, assumed = _borrowed(base, wanted, speeds)
    own = [p for p in points if (p.gpu, p.model, p.zero_stage) == (wanted.gpu, wanted.name, wanted.zero_stage)]
    if own and own[0] not in base:
        # One number of clips was measured: it says how far the borrowed curve is off, and nothing else.
        scale = math.exp(sum(math.log(p.seconds / curve(p.clips_per_gpu)) for p in own) / len(own))
        curve = curve.times(host=scale, clip=scale)
        assumed = [] if clips == own[0].clips_per_gpu else [f"for {clips:g} clips"]
    curve, changed = _changed(curve, base[0], wanted, speeds)
    used = own or base
    counts = sorted({point.clips_per_gpu for point in used})
    if not assumed and not counts[0] / 2 <= clips <= counts[-1] * 2:
        assumed = [f"for {clips:g} clips"]
    return Speed(curve(clips), not assumed + changed, _basis(used, counts, assumed + changed))


def points_for(wanted: Wanted, speeds: Speeds) -> list[Point]:
    """The points of this mode, of this precision where there are any; prototypes only where the trainer has none."""
    points = [p for p in speeds.points if p.mode == wanted.mode and (p.gpu in GPUS or p.gpu == wanted.gpu)]
    same = [point for point in points if point.precision == wanted.precision] or points
    return [point for point in same if point.source != "prototype"] or same


def reference_work(model: str, speeds: Speeds) -> ClipWork:
    """What a clip costs model `model` as the points were measured."""
    shape = speeds.measured_with
    return ClipWork.of(
        ModelConfig(name=model),
        num_frames=shape["num_frames"],
        num_text_tokens=shape["num_text_tokens"],
        loss_name=shape["loss"],
    )


def _borrowed(base: list[Point], wanted: Wanted, speeds: Speeds) -> tuple[_Curve, list[str]]:
    """The curve of `base` for the wanted model and stage on the wanted GPU, and what is assumed about that."""
    first = base[0]
    curve, assumed = _fit(base, EXPONENTS[wanted.mode]), []
    if first.gpu != wanted.gpu:
        curve = curve.times(clip=GPUS[first.gpu].bf16_flops / wanted.card.bf16_flops)
        assumed.append(f"{wanted.gpu} from {first.gpu} by the ratio of datasheet peaks")
    if first.model != wanted.name:
        work = wanted.work if wanted.name is None else reference_work(wanted.name, speeds)
        curve = curve.times(*_work_ratio(work, reference_work(first.model, speeds), wanted.mode, speeds))
        assumed.append(f"from {first.model} by operations")
    if first.zero_stage != wanted.zero_stage:
        curve = curve.times(host=_host_ratio(first.zero_stage, wanted.zero_stage, speeds))
        assumed.append(f"{_stage_name(wanted.zero_stage)} from {_stage_name(first.zero_stage)}")
    return curve, assumed


def _changed(curve: _Curve, first: Point, wanted: Wanted, speeds: Speeds) -> tuple[_Curve, list[str]]:
    """The curve for other frames, texts and losses than were measured, and for another precision."""
    assumed = []
    if wanted.name is not None:
        host, clip = _work_ratio(wanted.work, reference_work(wanted.name, speeds), wanted.mode, speeds)
        if (host, clip) != (1.0, 1.0):
            curve = curve.times(host, clip)
            assumed.append("other frames, texts or loss by operations")
    if wanted.precision == "fp32":
        curve = curve.times(clip=TF32_SLOWDOWN if wanted.tf32 else FP32_SLOWDOWN)
        assumed.append(f"{'tf32' if wanted.tf32 else 'fp32'} from bf16")
    elif wanted.precision != first.precision:
        assumed.append(f"{wanted.precision} as {first.precision}")
    return curve, assumed


def _best_group(points: list[Point], wanted: Wanted) -> list[Point]:
    """The points of one GPU, model and stage nearest to what is wanted; those with several numbers of clips first."""
    groups: dict[tuple[str, str, int | None], list[Point]] = {}
    for point in points:
        groups.setdefault((point.gpu, point.model, point.zero_stage), []).append(point)

    def distance(key: tuple[str, str, int | None]) -> tuple[bool, ...]:
        gpu, model, stage = key
        single = len({point.clips_per_gpu for point in groups[key]}) == 1
        return single, gpu != wanted.gpu, model != wanted.name, stage != wanted.zero_stage

    return groups[min(groups, key=distance)] if groups else []


def _fit(points: list[Point], p: float) -> _Curve:
    """Least squares of the relative error of t^p = h^p + b^p n^p; of one number of clips, all time is the GPU's."""
    clips, times = (np.array([getattr(point, name) for point in points]) for name in ("clips_per_gpu", "seconds"))
    if len(set(clips)) == 1:
        return _Curve(0.0, float(np.mean(times / clips)), p)
    rows = np.stack([times**-p, (clips / times) ** p], axis=1)
    host, clip = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)[0]
    if host < 0:
        return _Curve(0.0, float(np.mean((times / clips) ** p) ** (1 / p)), p)
    if clip < 0:
        return _Curve(float(np.mean(times)), 0.0, p)
    return _Curve(float(host ** (1 / p)), float(clip ** (1 / p)), p)


def _work_ratio(work: ClipWork, base: ClipWork, mode: str, speeds: Speeds) -> tuple[float, float]:
    """The host's time for a step and the GPU's for a clip, over those of `base`."""
    share = speeds.stem_share.get(mode)
    layers = sum(s.layers for s in work.sequences) / sum(s.layers for s in base.sequences)
    if share is None:
        return layers, work.forward_flops / base.forward_flops
    blocks = (work.forward_flops - work.stem_flops) / (base.forward_flops - base.stem_flops)
    return layers, (1 - share) * blocks + share * work.stem_flops / base.stem_flops


def _host_ratio(base: int | None, wanted: int | None, speeds: Speeds) -> float:
    """Of the host's time under two ZeRO stages; a plain loop counts as ZeRO 0, what was not measured as ZeRO 1."""
    known = speeds.host_ms
    one, other = (known.get(stage or 0, known.get(1)) for stage in (wanted, base))
    return one / other if one and other else 1.0


def _read(path: Path, defaults: Speeds | None = None) -> Speeds:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "cases" in content:
            content = {"points": points_of(content)}
        shared = {} if defaults is None else {"measured_with": defaults.measured_with}
        return Speeds.model_validate(shared | content)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a file with `points`") from None
    except (yaml.YAMLError, ValidationError, LookupError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no file of measured steps: {' '.join(str(error).split())}") from None


def _basis(points: Iterable[Point], counts: list[int], assumed: list[str]) -> str:
    first = next(iter(points))
    by = "a prototype" if first.source == "prototype" else f"torch {first.torch}"
    what = f"{first.gpu}, {first.model}, {_stage_name(first.zero_stage)}, {first.mode}, {first.date} with {by}"
    where = f"at {_listed(counts)} clips ({what})"
    return f"assumed ({'; '.join(assumed)}), measured {where}" if assumed else f"measured {where}"


def _stage_name(stage: int | None) -> str:
    return "a plain loop" if stage is None else f"ZeRO {stage}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
