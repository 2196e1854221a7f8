"""Batches on their way to the GPU while the step before is still running.

    loaded = pinned(loaded, Upload(device))        # in a thread, one batch ahead

Pixels of a batch of 128 clips take 5 ms over PCIe; copied at the beginning of a step, the GPU would wait for them. Here
they go through page-locked memory on a stream of their own, and the batch is handed out when they have arrived. Texts
and masks are small and stay on the host, where they are trimmed.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.data.loader import Failed, Loaded

PIXELS = ("video_BTHWC", "middle_BHWC")


class Upload:
    """Called with one item after the other, by one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def __call__(self, item: Loaded | Failed) -> Loaded | Failed:
        """The same with its pixels as tensors on the device."""
        if isinstance(item, Failed):
            return item
        moved: dict[str, Any] = {name: torch.from_numpy(item.arrays[name]) for name in PIXELS}
        if self._device.type == "cuda":
            moved = self._copied(moved)
        return replace(item, arrays={**item.arrays, **moved})

    def _copied(self, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            moved = {name: value.pin_memory().to(self._device, non_blocking=True) for name, value in pixels.items()}
        self._stream.synchronize()
        return moved
