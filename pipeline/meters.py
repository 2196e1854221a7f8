"""Meters: where the time of a step went, how fast clips pass, how much memory it took.

clock = StepClock()
clock.start(); ...; clock.mark("data"); ...; clock.mark("forward"); ...; clock.stop()
clock.summary(64, work)              # since the last summary; then starts anew
"""

import resource
import statistics
import sys
import time
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Work:
    """What a clip costs, and what all GPUs together could do."""

    tokens_per_clip: int
    flops_per_clip: float
    """Forward and backward, without recomputation."""
    peak_flops: float | None
    """Operations a second over all GPUs; None where the peak is not known."""


@dataclass
class StepClock:
    """Durations of the steps since the last summary, and of the named parts of a step."""

    device: torch.device
    _last: float = 0.0
    _began: float = 0.0
    _steps_s: list[float] = field(default_factory=list)
    _parts_s: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """A step begins."""
        self._began = self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        """What happened since the last mark belongs to `part`."""
        now = time.perf_counter()
        self._parts_s[part] = self._parts_s.get(part, 0.0) + now - self._last
        self._last = now

    def stop(self) -> None:
        """A step ends. Evaluation and saving between steps are not part of any."""
        self._steps_s.append(time.perf_counter() - self._began)

    def summary(self, clips_per_step: int, work: Work) -> dict[str, float]:
        """What to log, over the steps since the last call. Times are this rank's, counts are over all ranks."""
        total_s = sum(self._steps_s)
        if not self._steps_s or total_s == 0.0:
            return {}
        clips_per_s = clips_per_step * len(self._steps_s) / total_s
        found = {
            "speed/clips_per_s": clips_per_s,
            "speed/tokens_per_s": clips_per_s * work.tokens_per_clip,
            "speed/step_median_s": statistics.median(self._steps_s),
            "speed/step_worst_s": max(self._steps_s),
            "speed/data_wait": self._parts_s.get("data", 0.0) / total_s,
            "memory/peak_gb": peak_memory_bytes(self.device) / 1e9,
        }
        if work.peak_flops is not None:
            found["speed/mfu"] = clips_per_s * work.flops_per_clip / work.peak_flops
        found |= {f"time/{part}_s": spent / len(self._steps_s) for part, spent in self._parts_s.items()}
        self._steps_s, self._parts_s = [], {}
        return found


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def console_line(step: int, total_steps: int, values: dict[str, float]) -> str:
    """One line for people.

    >>> console_line(20, 900, {"train/loss": 12.5, "train/lr": 1e-3, "speed/clips_per_s": 260.0})
    'step 20/900  loss 12.5000  lr 1.00e-03  260 clips/s'
    """
    words = [f"step {step}/{total_steps}"]
    shown = {
        "train/loss": "loss {:.4f}",
        "train/lr": "lr {:.2e}",
        "train/logit_scale": "scale {:.2f}",
        "train/grad_norm": "norm {:.3g}",
        "speed/clips_per_s": "{:.0f} clips/s",
        "speed/data_wait": "wait {:.0%}",
        "speed/mfu": "mfu {:.1%}",
    }
    words += [template.format(values[key]) for key, template in shown.items() if key in values]
    return "  ".join(words)
