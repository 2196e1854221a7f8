"""Geometry, frame rate and codec of the delivered clips."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config import Section

_QUALITIES = {"mjpeg": 4, "h264": 23}
"""Of the same number on both scales one is half the size, the other twice as large as it needs to be."""


class ClipsConfig(Section):
    """What a delivered clip looks like."""

    fps: float = Field(default=3.0, ge=0.001, le=240)
    """Frames per second of the delivered clips."""
    size_px: int = Field(default=224, ge=16, le=4096)
    """Side of the square (squash, center_crop) or of the shorter side (short_side)."""
    resize: Literal["squash", "short_side", "center_crop"] = "squash"
    """squash: to a square without regard to the aspect ratio, as the official code; short_side: keep the aspect ratio;
    center_crop: scale the shorter side, then cut the middle square."""
    codec: Literal["mjpeg", "h264"] = "mjpeg"
    """mjpeg: every frame a JPEG in BT.601 full range, fast to read; h264: 3 times smaller, 7 times slower to read."""
    quality: int = Field(default=_QUALITIES["mjpeg"], ge=1, le=51)
    """mjpeg: ffmpeg's q (2 best, 31 worst), 4 where the config names none; h264: x264's CRF, then 23 as x264 itself."""
    audio: bool = False
    """Also deliver the clip's audio, copied from the source stream, as {key}.mka."""
    fast: bool = False
    """Skip non-reference frames while decoding: cheaper, at a measured time error of about one source frame."""
    hwaccel: str = ""
    """ffmpeg's hardware decoder (cuda, vaapi, ...); empty: software. Exempt from byte identity."""
    min_coverage: float = Field(default=0.5, gt=0, le=1)
    """Share of the span that must lie inside the video; below it the clip fails with `span_beyond_end`."""

    @model_validator(mode="before")
    @classmethod
    def _quality_of_the_codec(cls, values: Any) -> Any:
        if isinstance(values, dict) and "quality" not in values and values.get("codec") in _QUALITIES:
            return {**values, "quality": _QUALITIES[values["codec"]]}
        return values

    @model_validator(mode="after")
    def _fits_the_codec(self) -> "ClipsConfig":
        if self.codec == "h264" and self.size_px % 2:
            raise ValueError(f"h264 needs an even size_px, got {self.size_px}")
        if self.codec == "mjpeg" and self.quality > 31:
            raise ValueError(f"the quality of mjpeg goes from 1 to 31, got {self.quality}")
        return self
