"""One decode pass over a source video: one ffmpeg process, whose output is the frames of all clips, in time order.

    source file -> ffmpeg (decode, pick slots, scale, convert colours, encode) -> NUT on a pipe -> EncodedFrame

A frame that two overlapping clips need is encoded once and handed to both. The process gets this one file, or a pipe
with the packets of it that are needed (`thin.py`) and no file at all, a limit of time, memory and frame size, and may
not write files.
"""

import contextlib
import functools
import math
import os
import re
import resource
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import av
import av.error
import ffmpeg

from pipeline.data.format import Reason
from preprocess.clips import ClipsConfig
from preprocess.clock import Clock
from preprocess.colours import shape
from preprocess.faults import FILE_SYSTEM_WORDS, MAX_WORDS_BYTES, SuspectedFault, is_outside_signal
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.lifeline import killed_with
from preprocess.limits import LimitsConfig, memory_bytes, process_status
from preprocess.probe import Probe
from preprocess.records import ClipError
from preprocess.select import OPEN_END, Grid, Slots, select_expression
from preprocess.thin import OddPacket, Wanted, feed_needed

_TIME_BASE = 90_000
_REPEATS = 2000
"""Frames, at the finest clock of a container (90 kHz) longer than a slot of the coarsest grid (50 a second)."""
_STDERR_BYTES = 4096
_NEARLY = 0.8
"""An ffmpeg that failed with this share of its memory in use is taken to have run out of it: decoders call a failed
allocation invalid data."""
_LOOK_S = 0.05
_NO_MEMORY = re.compile(rb"Cannot allocate memory|Error allocating|failed to map segment")
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
_OVERLAP_BYTES = max(32, MAX_WORDS_BYTES)
"""A message may come in two pieces."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One picked frame: a JPEG, or raw yuv420p where the clips will be H.264."""

    slot: int
    data: bytes
    width_px: int
    height_px: int


def decode_frames_of(
    path: Path,
    probe: Probe,
    spans: Sequence[Slots],
    grid: Grid,
    clips: ClipsConfig,
    limits: LimitsConfig,
    clock: Clock,
    is_second: bool = False,
) -> Generator[EncodedFrame, None, None]:
    """The frames on the slots of `spans` in time order. Raises `ClipError` at the end if ffmpeg did not finish well,
    and `SuspectedFault` in a first look if the machine may be to blame."""
    last_slot = -1
    if probe.can_be_thinned and not clips.fast:
        feed = functools.partial(feed_needed, path, probe.stream_index, Wanted(spans, grid), limits)
        command = decode_command(None, probe, spans, grid, clips, limits)
        with _LimitedProcess(command, limits, clock, bool(clips.hwaccel), feed) as process:
            for frame in _read_frames(process.stdout, grid):
                last_slot = frame.slot
                yield frame
            if not process.feed_gave_up():
                process.check(is_second)
                return
    command = decode_command(path, probe, spans, grid, clips, limits)
    with _LimitedProcess(command, limits, clock, bool(clips.hwaccel)) as process:
        for frame in _read_frames(process.stdout, grid):
            if frame.slot > last_slot:
                yield frame
        process.check(is_second)


def _read_frames(stdout: IO[bytes], grid: Grid) -> Iterator[EncodedFrame]:
    # An empty or cut stream is judged by ffmpeg's own verdict, not by the reader of its pipe.
    with contextlib.suppress(av.error.FFmpegError), av.open(stdout, "r", format="nut") as container:
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        for packet in container.demux(stream):
            if packet.pts is not None and packet.time_base is not None:
                slot = round(packet.pts * packet.time_base * grid.grid_fps)
                yield EncodedFrame(slot, bytes(packet), width, height)


def decode_command(
    path: Path | None, probe: Probe, spans: Sequence[Slots], grid: Grid, clips: ClipsConfig, limits: LimitsConfig
) -> list[str]:
    """The ffmpeg command line of one decode pass; without a path it reads needed packets from its standard input."""
    source = ffmpeg.input(
        "pipe:0" if path is None else f"file:{path}",
        protocol_whitelist="pipe" if path is None else "file",
        format_whitelist="nut" if path is None else ",".join(limits.formats),
        max_pixels=limits.max_frame_pixels,
        threads=1,
        # A stream that changes its size goes on through the same filters: new ones would start their clock again.
        reinit_filter=0,
        **({"skip_frame": "noref"} if clips.fast else {}),
        **({"hwaccel": clips.hwaccel} if clips.hwaccel else {}),
    )
    frames = source["0" if path is None else str(probe.stream_index)]
    end_slots = [max(span.last for span in spans) + 1]
    if probe.end_s is not None:
        # ffmpeg does not always know how long the last frame stays, nor the rate at which `tpad` counts: it is repeated
        # until it has a slot of its own, then from slot to slot, and the end of the video cuts the rest off.
        end_slots.append(max(1, math.ceil(probe.end_s * grid.grid_fps)))
        frames = frames.filter("tpad", stop=_REPEATS, stop_mode="clone")
    elif path is None:  # NUT tells nothing of it
        frames = frames.filter("tpad", stop=1, stop_mode="clone")
    frames = frames.filter("fps", fps=str(grid.grid_fps), round="up", start_time=0)
    if probe.end_s is not None:
        frames = frames.filter("tpad", stop=-1, stop_mode="clone")
    if min(end_slots) < OPEN_END:
        frames = frames.filter("trim", end=float(min(end_slots) / grid.grid_fps))
    frames = frames.filter("select", select_expression(spans, grid))
    frames = shape(frames, probe, clips)
    codec: dict[str, Any] = (
        {"vcodec": "mjpeg", "q:v": clips.quality} if clips.codec == "mjpeg" else {"vcodec": "rawvideo"}
    )
    output = frames.output(
        "pipe:1",
        format="nut",
        fps_mode="passthrough",
        enc_time_base=f"1:{_TIME_BASE}",
        flags="+bitexact",
        fflags="+bitexact",
        threads=1,
        **codec,
    )
    # The times in the pipe are those that ffmpeg would make of the file's, as they are.
    clock = ("-copyts",) if path is None else ()
    arguments = (*clock, "-nostdin", "-hide_banner", "-loglevel", "error", "-filter_complex_threads", "1")
    return list(output.global_args(*arguments).compile(cmd=find_ffmpeg()))


class _LimitedProcess:
    """An ffmpeg with its output on `stdout`, watched by one thread that keeps the start of stderr and the time.

    With `feed` another thread lets that write the ffmpeg's input.
    """

    def __init__(
        self,
        command: list[str],
        limits: LimitsConfig,
        clock: Clock,
        has_device: bool,
        feed: Callable[[IO[bytes]], None] | None = None,
    ) -> None:
        self._limits, self._clock = limits, clock
        # The driver of a GPU reserves far more addresses than it uses: there private memory is what counts.
        memory_limit = resource.RLIMIT_DATA if has_device else resource.RLIMIT_AS
        self._memory_kind = "VmData" if has_device else "VmPeak"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=killed_with(os.getpid()),
        )
        with contextlib.suppress(ProcessLookupError):
            memory = limits.memory_mb * 2**20
            resource.prlimit(self._process.pid, memory_limit, (memory, memory))
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (0, 0))
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
        assert self._process.stdout is not None
        self.stdout = self._process.stdout
        self._stderr = b""
        self._peak_bytes = 0
        self._no_memory = False
        self._file_system_said: re.Match[bytes] | None = None
        self._timed_out = False
        self._gave_up = False
        self._threads = [threading.Thread(target=self._watch_stderr, daemon=True)]
        if feed is not None:
            self._threads.append(threading.Thread(target=self._feed, args=(feed,), daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "_LimitedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._wait()
        self.stdout.close()

    def _wait(self) -> int:
        code = self._process.wait()
        for thread in self._threads:
            thread.join()
        return code

    def feed_gave_up(self) -> bool:
        """Wait for the end; whether the feed met what it does not understand, so that the output is cut short."""
        self._wait()
        return self._gave_up

    def check(self, is_second: bool) -> None:
        """Wait for the end; a bad one becomes a `ClipError`, or a `SuspectedFault` in a first look."""
        code = self._wait()
        if self._timed_out:
            raise ClipError(Reason.TIME_LIMIT, f"decoding took over {self._limits.time_s:g} s")
        if is_second and code == -signal.SIGKILL:
            raise ClipError(Reason.MEMORY_LIMIT, "ffmpeg was killed twice, as by a lack of memory")
        if is_outside_signal(code):
            raise SuspectedFault(f"ffmpeg was ended by {signal.Signals(-code).name}")
        # ffmpeg takes an error of reading for the end of the file, and ends with 0.
        if not is_second and self._file_system_said:
            raise SuspectedFault(f"ffmpeg ended with {code}: {first_words(self._stderr)}")
        if code != 0 and (self._no_memory or self._peak_bytes > _NEARLY * self._limits.memory_mb * 2**20):
            raise ClipError(Reason.MEMORY_LIMIT, f"decoding needs over {self._limits.memory_mb} MB")
        if code != 0:
            raise ClipError(Reason.VIDEO_UNREADABLE, f"ffmpeg ended with {code}: {first_words(self._stderr)}")

    def _feed(self, feed: Callable[[IO[bytes]], None]) -> None:
        assert self._process.stdin is not None
        self._gave_up = True
        try:
            feed(self._process.stdin)
            self._gave_up = False
        except OddPacket:
            pass
        finally:
            if self._gave_up:
                self._process.kill()  # before it takes the end of the pipe for the end of the video
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _watch_stderr(self) -> None:
        assert self._process.stderr is not None
        end = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stderr, selectors.EVENT_READ)
            time_left_s, is_stopped = self._clock.watch(), False
            while (left_s := time_left_s(is_stopped)) > 0:
                # What a process took is gone with it: look while it lives, also where it says nothing.
                ready = selector.select(min(left_s, _LOOK_S))
                status = process_status(self._process.pid)
                self._peak_bytes = max(self._peak_bytes, memory_bytes(status, self._memory_kind))
                is_stopped = status.get("State", "").startswith("T")
                if ready:
                    chunk = self._process.stderr.read1(65536)  # type: ignore[attr-defined]
                    if not chunk:
                        break
                    self._no_memory |= _NO_MEMORY.search(end + chunk) is not None
                    self._file_system_said = self._file_system_said or FILE_SYSTEM_WORDS.search(end + chunk)
                    end = (end + chunk)[-_OVERLAP_BYTES:]
                    self._stderr = (self._stderr + chunk)[:_STDERR_BYTES]
            else:
                self._timed_out = True
                self._process.kill()
        self._process.stderr.close()


def first_words(stderr: bytes) -> str:
    """The first line that ffmpeg said, which is the cause, without the addresses that differ from run to run."""
    lines = _ADDRESS.sub("", stderr.decode("utf-8", "replace")).strip().splitlines()
    return lines[0] if lines else ""
