"""From source pictures to delivered ones inside ffmpeg: size, BT.601, and the range that the codec's readers expect.

    frames = shape(frames, probe, clips)        # a filter chain; JPEGs are BT.601 full range, H.264 is BT.601 limited

swscale alone errs by up to 6 levels of RGB here: it drops chroma bits on its way through RGB unless told otherwise, and
its own range conversion rounds chroma down in newer versions. So the range goes through a table at 16 bits instead,
where value x of 8 bits is 256 x. What is left is the rounding of 8-bit YUV on both sides: 3 levels.
"""

import ffmpeg

from preprocess.clips import ClipsConfig
from preprocess.probe import Probe

_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
_FULL = (0, 255, 255)
_LIMITED = (16, 219, 224)
"""Black, then the spans of luma and chroma, in 8-bit levels."""


def shape(frames: "ffmpeg.nodes.FilterableStream", probe: Probe, clips: ClipsConfig) -> "ffmpeg.nodes.FilterableStream":
    """Scale to the delivered size and convert the colours; full range for JPEGs, as every decoder takes them to be."""
    full = clips.codec == "mjpeg"
    side = clips.size_px
    if clips.resize == "squash":
        size = {"w": str(side), "h": str(side)}
    else:
        size = {"w": f"if(gte(iw,ih),-2,{side})", "h": f"if(gte(iw,ih),{side},-2)"}
    source_range = _range_word(probe.full_range)
    frames = frames.filter(
        "scale",
        **size,
        flags=_FLAGS,
        in_color_matrix=probe.matrix,
        in_range=source_range,
        out_color_matrix="bt601",
        out_range=source_range,
    )
    if clips.resize == "center_crop":
        frames = frames.filter("crop", side, side)
    if probe.full_range != full:
        frames = _convert_range(frames, to_full=full)
    return frames.filter("setsar", 1).filter("format", "yuvj420p" if full else "yuv420p")


def _convert_range(frames: "ffmpeg.nodes.FilterableStream", to_full: bool) -> "ffmpeg.nodes.FilterableStream":
    """Limited to full range or back, exact to half a level of 16 bits, then down to 8 bits."""
    old, new = (_LIMITED, _FULL) if to_full else (_FULL, _LIMITED)
    luma = f"clip(round((val-{256 * old[0]})*{new[1]}/{old[1]})+{256 * new[0]},0,65535)"
    chroma = f"clip(round((val-32768)*{new[2]}/{old[2]})+32768,0,65535)"
    word = _range_word(to_full)
    frames = frames.filter("format", "yuv444p16le").filter("lutyuv", y=luma, u=chroma, v=chroma)
    return frames.filter("setparams", range=word).filter("scale", flags=_FLAGS, in_range=word, out_range=word)


def _range_word(full: bool) -> str:
    return "pc" if full else "tv"
