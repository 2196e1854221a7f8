"""Processes that end with the one that started them, also where that one is killed and can tell nobody.

    end_with_parent()                                            # in a worker of multiprocessing, first thing
    subprocess.Popen(command, preexec_fn=killed_with(os.getpid()))   # a program such as ffmpeg

The parent of a worker, for the kernel, is multiprocessing's fork server, which outlives whom it works for: a worker
waits for the end of a pipe instead. A program cannot do that; the kernel kills it with its parent.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl  # looked up here: between fork and exec it is too late to load anything


def end_with_parent() -> None:
    """Kill this process as soon as the one that started it by multiprocessing has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_kill_after, args=(parent.sentinel,), daemon=True).start()


def _kill_after(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)  # nothing of an unfinished shard is visible, and nobody would read its events


def killed_with(parent_pid: int) -> Callable[[], None]:
    """What a child does between fork and exec, so that it is killed when the thread that forked it ends."""

    def ask_kernel() -> None:
        _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:  # ended before the call above: nothing will be sent any more
            os._exit(1)

    return ask_kernel
