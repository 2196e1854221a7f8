"""Time, memory and the machine, on a GPU or in a rehearsal on a CPU."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_fresh(device: torch.device) -> None:
    """Forget the memory of the case before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Most memory of tensors since `start_fresh`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def timed(step: Callable[[], Any], device: torch.device, *, steps: int, warm: int) -> dict[str, float]:
    """Seconds a step: the first one, then median and quartiles of `steps` after `warm`.

    A step ends when the GPU has done it: what the next one could overlap with it does not count. A rehearsal makes two.
    """
    if device.type == "cpu":
        steps, warm = 2, 0
    began = time.perf_counter()
    step()
    synchronize(device)
    first_s = time.perf_counter() - began
    for _ in range(warm):
        step()
    synchronize(device)
    times_s = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        synchronize(device)
        times_s.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(times_s, n=4)
    return {"first_s": first_s, "step_s": median, "step_low_s": low, "step_high_s": high}


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "device": "CPU",
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["memory_gib"] = memory_gib(device)
    return facts


def memory_gib(device: torch.device) -> float:
    """Of the whole GPU; unlimited in a rehearsal."""
    return torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else float("inf")
