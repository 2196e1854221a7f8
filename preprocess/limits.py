"""Limits that keep a hostile or broken video from taking a worker down: time, memory, frame size, file formats.

ffmpeg and the probe may open this one local file only. The *demuxers* are on a list of their own beside the
protocols: a playlist or a concat file that poses as an mp4 would otherwise make ffmpeg read other files through the
allowed protocol `file`.
"""

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import av
from pydantic import Field

from pipeline.config import Section
from preprocess.faults import SourceFile


class LimitsConfig(Section):
    """What one source video may cost, and what ffmpeg may open."""

    time_s: float = Field(default=3600.0, gt=0)
    """Wall time for the decode of one video; beyond it the video's clips fail with `time_limit`."""
    memory_mb: int = Field(default=4096, ge=256)
    """Address space of the ffmpeg process; beyond it the video's clips fail with `memory_limit`."""
    max_frame_pixels: int = Field(default=8192 * 4608, ge=1)
    """Largest frame that is decoded at all; larger ones fail with `too_large`."""
    max_clip_mb: int = Field(default=256, ge=1)
    """Largest media member of one clip; larger ones fail with `too_large`."""
    max_line_mb: int = Field(default=64, ge=1)
    """Longest line of a metadata or text file; a longer one is skipped and counted."""
    formats: tuple[str, ...] = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mpegvideo", "h264")
    """Demuxers that may open a video (ffmpeg's short names); none of them follows references to other files."""


@contextmanager
def open_source(path: Path, limits: LimitsConfig, limit_s: float) -> Iterator[av.container.InputContainer]:
    """Open a source video in this process, under the same lists. Raises `FileSystemFault` where it cannot be read, and
    `TimeoutError` where libav works on it for over `limit_s`."""
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(limits.formats)}
    # Tags are free text: stray bytes in them are no reason to refuse a video.
    with (
        SourceFile(path, limit_s) as file,
        av.open(file, "r", container_options=options, metadata_errors="replace") as container,
    ):
        yield container


@contextmanager
def memory_limited(limits: LimitsConfig) -> Iterator[None]:
    """What this process takes in the meantime, beside what it has, stays below `memory_mb`, or is a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = memory_bytes(process_status("self"), "VmData") + limits.memory_mb * 2**20
    soft = allowed if before[0] == resource.RLIM_INFINITY else min(before[0], allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def process_status(pid: int | str) -> dict[str, str]:
    """What the kernel tells about a living process, such as State or VmPeak; empty where it cannot be seen."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def memory_bytes(status: Mapping[str, str], kind: str) -> int:
    """A kind of memory in a process's status, such as VmPeak, in bytes; 0 where it cannot be seen."""
    return int(status.get(kind, "0").split()[0]) * 1024
