"""`Batch`: what one rank trains on in one step. The only type that data, model and losses share, by way of the trainer.

B clips of this rank, T frames, L tokens. A bad sample, and the padding of a global batch that the ranks do not divide,
is a row with `valid_B` false: zeros that take part in no loss term.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read: masked, counted, named."""

    key: str
    shard: str
    reason: str
    """One word, stable: the meters count by it."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of one global batch. Shapes and dtypes are checked on construction (ValueError)."""

    video_BTCHW: Tensor
    """uint8 [B, T, 3, H, W], RGB."""
    middle_BCHW: Tensor
    """uint8 [B, 3, H, W]: frame int(N/2) of the delivered clip."""
    subtitle_BL: Tensor
    """int64 [B, L], padded with 0."""
    caption_BL: Tensor
    """int64 [B, L], padded with 0."""
    valid_B: Tensor
    """bool [B]."""
    has_subtitle_B: Tensor
    """bool [B]; false wherever `valid_B` is false."""
    has_caption_B: Tensor
    """bool [B]; false wherever `valid_B` is false."""
    keys: tuple[str, ...]
    """B sample keys; empty string for padding."""
    epoch: int
    index: int
    """Number of this global batch in the run, from 0."""
    bad: tuple[BadSample, ...] = ()
    """The bad samples among this rank's rows."""
    sources: tuple[int, ...] = ()
    """B source numbers (0 = the first source); -1 for padding."""

    def __post_init__(self) -> None:
        num_clips = len(self.keys)
        if self.video_BTCHW.dtype != torch.uint8 or self.video_BTCHW.ndim != 5 or self.video_BTCHW.shape[2] != 3:
            raise ValueError(
                f"video must be uint8 [B, T, 3, H, W], got {self.video_BTCHW.dtype} {tuple(self.video_BTCHW.shape)}"
            )
        if self.middle_BCHW.dtype != torch.uint8 or self.middle_BCHW.shape != self.video_BTCHW[:, 0].shape:
            raise ValueError(f"middle must be uint8 [B, 3, H, W] like the video, got {tuple(self.middle_BCHW.shape)}")
        for name in ("subtitle_BL", "caption_BL"):
            ids: Tensor = getattr(self, name)
            if ids.dtype != torch.int64 or ids.ndim != 2:
                raise ValueError(f"{name} must be int64 [B, L], got {ids.dtype} {tuple(ids.shape)}")
        for name in ("valid_B", "has_subtitle_B", "has_caption_B"):
            mask: Tensor = getattr(self, name)
            if mask.dtype != torch.bool or mask.ndim != 1:
                raise ValueError(f"{name} must be bool [B], got {mask.dtype} {tuple(mask.shape)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and len(value) != num_clips:
                raise ValueError(f"{field.name} has {len(value)} rows, but there are {num_clips} keys")

    def trimmed(self) -> Self:
        """The same without the columns of texts that are padding in every row. On the host: it reads them."""
        return replace(self, subtitle_BL=without_padding(self.subtitle_BL), caption_BL=without_padding(self.caption_BL))

    def to(self, device: torch.device | str) -> Self:
        """A copy with every tensor on `device`."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
                if value.device.type == "cuda":  # copied there on another stream, which may not have it back too early
                    value.record_stream(torch.cuda.current_stream(value.device))
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.keys)


def without_padding(ids_BL: Tensor) -> Tensor:
    """[B, L] to [B, L'], at least one column: without those at the end that are 0 in every row."""
    used = ids_BL.any(dim=0).nonzero()
    return ids_BL[:, : int(used[-1]) + 1 if len(used) else 1]
