"""Finds the ffmpeg that decodes: $FFMPEG, then PATH, then the binary inside the imageio-ffmpeg wheel."""

import errno
import functools
import os
import shutil
import signal
import socket
import subprocess

import imageio_ffmpeg

from pipeline.errors import InputError, MachineFault
from preprocess.faults import is_outside_signal

_NO_PROGRAM = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC, errno.ELOOP))


@functools.cache
def find_ffmpeg() -> str:
    """Path of the ffmpeg to use."""
    chosen = os.environ.get("FFMPEG")
    if chosen:
        path = shutil.which(chosen)
        if path is None:
            raise InputError(f"$FFMPEG is {chosen!r}, which is no program; unset it or point it at ffmpeg")
        return path
    path = shutil.which("ffmpeg")
    if path is not None:
        return path
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise InputError(f"no ffmpeg found ({error}); install ffmpeg or set $FFMPEG") from None


@functools.cache
def ffmpeg_version() -> str:
    """The version word of the ffmpeg in use, such as 5.1.9-0+deb12u1: part of the config hash. Raises `MachineFault`
    where it is killed or does not answer, and `InputError` where it is no ffmpeg."""
    try:
        answer = subprocess.run(
            [find_ffmpeg(), "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise MachineFault(f"{find_ffmpeg()} does not start on {socket.gethostname()} ({error})") from None
    except OSError as error:
        if error.errno not in _NO_PROGRAM:
            raise MachineFault(f"{find_ffmpeg()} does not start on {socket.gethostname()} ({error})") from None
        raise InputError(f"{find_ffmpeg()} does not run ({error}); set $FFMPEG to one that does") from None
    _refuse_killed(answer)
    words = answer.stdout.split()
    if answer.returncode != 0 or words[:2] != ["ffmpeg", "version"]:
        raise InputError(f"{find_ffmpeg()} does not answer like ffmpeg; set $FFMPEG to one that does")
    return words[2]


def _refuse_killed(answer: "subprocess.CompletedProcess[str]") -> None:
    if is_outside_signal(answer.returncode):
        raise MachineFault(
            f"{find_ffmpeg()} was ended by {signal.Signals(-answer.returncode).name} on {socket.gethostname()}; give "
            "the machine more memory, or look at what ends processes there"
        )


def check_hwaccel(name: str) -> None:
    """Raise an `InputError` where ffmpeg has no hardware decoder `name` on this machine: each video would fail."""
    nothing = ["-f", "lavfi", "-i", "nullsrc", "-frames:v", "1", "-f", "null", "-"]
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-init_hw_device", name, *nothing]
    answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    _refuse_killed(answer)
    if answer.returncode != 0:
        said = (answer.stderr.strip().splitlines() or ["no reason given"])[0]
        raise InputError(
            f"clips.hwaccel: {find_ffmpeg()} cannot use {name!r} on this machine ({said}); leave it empty to decode on "
            "the CPU"
        )
