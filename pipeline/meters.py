"""Meters: where the time of a step went, how fast clips pass, how much memory it took.

clock = StepClock(device)
clock.start(); ...; clock.mark("data"); ...; clock.mark("gradient"); ...; clock.stop()
everyone = gather_values(OwnTime(stream_wait_s, forward_timer.take()))
clock.summary(64, work, everyone)    # since the last summary; then starts anew
"""

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch


@dataclass(frozen=True)
class Work:
    """What a clip costs, and what all GPUs together could do."""

    tokens_per_clip: int
    flops_per_clip: float
    """Forward and backward, without recomputation."""
    peak_flops: float | None
    """Operations a second over all GPUs; None where the peak is not known."""


@dataclass(frozen=True)
class OwnTime:
    """Seconds that a rank spent by itself since the last summary. All others wait for the rank that takes longest."""

    data_s: float
    """Waiting for its own data workers."""
    forward_s: float
    """In forward passes; under ZeRO 3 these gather parameters, so that a part of it is waiting for others."""


@dataclass
class ForwardTimer:
    """`with timer: ...` adds up the time that forward passes take on `device`, without holding a GPU up."""

    device: torch.device
    _began: float = 0.0
    _total_s: float = 0.0
    _events: list[torch.cuda.Event] = field(default_factory=list)

    def __enter__(self) -> None:
        self._mark()
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._total_s += time.perf_counter() - self._began
        self._mark()

    def take(self) -> float:
        """Seconds since the last call. The GPU must have come to the end of the last pass."""
        if self.device.type == "cuda":
            starts, ends = self._events[::2], self._events[1::2]
            self._total_s = sum(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)) / 1e3
            self._events = []
        total_s, self._total_s = self._total_s, 0.0
        return total_s

    def _mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)


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

    def summary(self, clips_per_step: int, work: Work, everyone: Sequence[OwnTime]) -> dict[str, float]:
        """What to log, over the steps since the last call, given every rank's own time.

        Counts are over all ranks; durations are this rank's, but for the wait for data, which is that of the rank that
        waited longest. `slowest_ratio` is the own time of the slowest rank over the median of all ranks.
        """
        total_s = sum(self._steps_s)
        if not self._steps_s or total_s == 0.0:
            return {}
        clips_per_s = clips_per_step * len(self._steps_s) / total_s
        found = {
            "speed/clips_per_s": clips_per_s,
            "speed/tokens_per_s": clips_per_s * work.tokens_per_clip,
            "speed/step_median_s": statistics.median(self._steps_s),
            "speed/step_worst_s": max(self._steps_s),
            "speed/data_wait": max(own.data_s for own in everyone) / total_s,
            "memory/peak_gb": peak_memory_bytes(self.device) / 1e9,
        }
        if work.peak_flops is not None:
            found["speed/mfu"] = clips_per_s * work.flops_per_clip / work.peak_flops
        if len(everyone) > 1:
            own_s = [own.data_s + own.forward_s for own in everyone]
            found["speed/slowest_rank"] = own_s.index(max(own_s))
            found["speed/slowest_ratio"] = max(own_s) / max(statistics.median(own_s), 1e-9)
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
