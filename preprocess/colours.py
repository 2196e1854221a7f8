"""From source pictures to delivered ones inside ffmpeg: size, BT.601, and the range that the codec's readers expect.

    frames = shape(frames, probe, clips)        # a filter chain; JPEGs are BT.601 full range, H.264 is BT.601 limited

`scale` only scales. Its own matrix conversion goes through RGB with half of the chroma bits and its range conversion
rounds chroma down in newer versions: 6 levels of RGB together. `colorspace` does both in one step at the small size,
in less time; what is left is the rounding of 8-bit YUV on both sides, 3 levels.
"""

import ffmpeg

from preprocess.clips import ClipsConfig
from preprocess.probe import Probe

_FLAGS = "bicubic+accurate_rnd+bitexact"
_BT601 = "smpte170m"
_SPACES = {"bt601": _BT601, "bt2020": "bt2020ncl"}
"""What `colorspace` calls matrices that `scale` calls otherwise."""


def shape(frames: "ffmpeg.nodes.FilterableStream", probe: Probe, clips: ClipsConfig) -> "ffmpeg.nodes.FilterableStream":
    """Scale to the delivered size and convert the colours; full range for JPEGs, as every decoder takes them to be."""
    side = clips.size_px
    to_full = clips.codec == "mjpeg"
    size = {"w": str(side), "h": str(side)} if clips.resize == "squash" else _short_side(side)
    if probe.matrix == "rgb":  # it has to become YUV by some matrix: at once by the right one
        frames = _scale(frames, "bt601", True, to_full, **size)
    else:
        frames = _scale(frames, probe.matrix, probe.full_range, probe.full_range, **size)
    if clips.resize == "center_crop":
        frames = frames.filter("crop", side, side)
    space = _SPACES.get(probe.matrix, probe.matrix)
    if space not in ("rgb", _BT601) or (space == _BT601 and probe.full_range != to_full):
        # Primaries and transfer stay as they are: equal names on both sides say so.
        same = {"iprimaries": "bt709", "primaries": "bt709", "itrc": "bt709", "trc": "bt709", "fast": 1}
        ranges = {"irange": _range_word(probe.full_range), "range": _range_word(to_full)}
        frames = frames.filter("format", "yuv444p")
        frames = frames.filter("colorspace", ispace=space, space=_BT601, format="yuv444p", **ranges, **same)
        frames = _scale(frames, "bt601", to_full, to_full)  # to half the chroma
    return frames.filter("setsar", 1).filter("format", "yuvj420p" if to_full else "yuv420p")


def _short_side(side: int) -> dict[str, str]:
    """The size of an upright frame as it is shown, whatever the shape of its pixels, with an even longer side.

    `scale` computes numbers from the first frame and keeps them. With -2 for the longer side it would keep that, and a
    stream that changes its shape would change the size of the clip within a clip.
    """
    wide = "gte(iw*sar,ih)"
    longer = {"w": f"round({side}*iw*sar/ih/2)*2", "h": f"round({side}*ih/iw/sar/2)*2"}
    return {"w": f"if({wide},{longer['w']},{side})", "h": f"if({wide},{side},{longer['h']})"}


def _scale(
    frames: "ffmpeg.nodes.FilterableStream", matrix: str, is_full: bool, to_full: bool, **size: str
) -> "ffmpeg.nodes.FilterableStream":
    """Scale and leave the colours alone, but for those of RGB, which become YUV of `matrix` and range."""
    ranges = {"in_range": _range_word(is_full), "out_range": _range_word(to_full)}
    matrices = {"in_color_matrix": matrix, "out_color_matrix": matrix}
    return frames.filter("scale", **size, flags=_FLAGS, **ranges, **matrices)


def _range_word(full: bool) -> str:
    return "pc" if full else "tv"
