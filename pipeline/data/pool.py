"""Data workers: clean processes that compute items ahead and hand them over without a copy and without a name.

    for item in run_workers(load, requests, num_workers=4, prefetch=2): ...      # load(request), in order

A fresh interpreter, started once per process, imports what `load` needs and forks the workers: they share its memory,
and have no CUDA, no signal handlers, no locks and no random state of the trainer. Requests and items travel over
anonymous socket pairs as pickles whose arrays lie in memfds: nothing has a name in /dev/shm or in a temporary folder,
so a SIGKILL of any process, or of all at once, leaves nothing behind, and the size of /dev/shm does not matter.

A worker ends when its socket closes, so also when the trainer is killed. It ignores the signals that a scheduler sends
to every process of a job: the trainer decides when to stop. A worker that dies closes its socket: `WorkerDied`.
"""

import array
import gc
import itertools
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_MESSAGE_BYTES = 65536
_MAX_DESCRIPTORS = 64
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Load = Callable[[Any], Any]


class WorkerDied(Exception):
    """A data worker ended without an error of its own: most often killed for memory."""


def run_workers(load: Load, requests: Iterable[Any], *, num_workers: int, prefetch: int) -> Generator[Any, None, None]:
    """Yield `load(request)` for each request in order, `num_workers` at work (0: this process), `prefetch` ahead each.

    `load` is picklable and gives nested values whose arrays are numpy's. Requests are taken as far ahead as workers
    have room. Raises WorkerDied; an error inside `load` is raised here with the worker's traceback.
    """
    if num_workers == 0:
        yield from map(load, requests)
        return
    workers = _start_workers(load, num_workers)
    waiting = iter(requests)
    turns: list[socket.socket] = []
    try:
        for worker, request in zip(itertools.cycle(workers), itertools.islice(waiting, num_workers * prefetch)):
            _send(worker, request)
            turns.append(worker)
        while turns:
            worker = turns.pop(0)
            item = _receive_item(worker)
            for request in itertools.islice(waiting, 1):
                _send(worker, request)
                turns.append(worker)
            yield item
    except (ConnectionError, EOFError) as error:
        raise WorkerDied(str(error)) from None
    finally:
        for worker in workers:
            worker.close()


def pinned(items: Generator[Any, None, None], pin: Callable[[Any], Any]) -> Generator[Any, None, None]:
    """`pin(item)` of each item, one ahead in a thread: the copy to page-locked memory hides behind the step."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def offer(item: Any, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer(pin(item), None)
                if stopped.is_set():
                    return
            offer(None, StopIteration())
        except BaseException as error:
            offer(None, error)
        finally:
            items.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()


def empty_bytes(*shape: int) -> NDArray[np.uint8]:
    """An array for an item's pixels; in a worker it lies in a memfd, so that handing it over copies nothing."""
    if not _Worker.is_one:
        return np.empty(shape, dtype=np.uint8)
    size = int(np.prod(shape))
    descriptor = os.memfd_create("clip_vip_item")
    os.ftruncate(descriptor, size)
    pixels = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
    _Worker.lent[pixels.ctypes.data] = descriptor
    return pixels.reshape(shape)


class _Worker:
    """What a process knows of itself as a worker."""

    is_one = False
    lent: dict[int, int] = {}
    """Address -> memfd of the arrays made for the item at hand."""


class _Server:
    """The fresh interpreter that forks workers, and our end of its socket."""

    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    owner = 0


def _start_workers(load: Load, num_workers: int) -> list[socket.socket]:
    server = _server()
    _send(server, load)
    ours, theirs = zip(
        *(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(num_workers)), strict=True
    )
    socket.send_fds(server, [b"fork"], [one.fileno() for one in theirs])
    for one in theirs:
        one.close()
    return list(ours)


def _server() -> socket.socket:
    # A process forked from the trainer holds the same socket, but must not talk between the trainer's two messages.
    is_ours = _Server.process is not None and _Server.owner == os.getpid() and _Server.process.poll() is None
    if _Server.channel is None or not is_ours:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"from pipeline.data.pool import serve; serve({theirs.fileno()})"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",  # a worker is one core's worth
        }
        _Server.process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
        )
        theirs.close()
        _Server.channel, _Server.owner = ours, os.getpid()
    return _Server.channel


def serve(descriptor: int) -> None:
    """The server's life: unpickle a `load` (which imports what it needs), fork its workers, until the trainer ends."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    trainer = socket.socket(fileno=descriptor)
    while True:
        try:
            load: Load | str = _receive(trainer)
        except (EOFError, ConnectionError):
            return
        except Exception:
            # The workers report it: they have the sockets on which somebody listens.
            load = traceback.format_exc()
        _, descriptors, _, _ = socket.recv_fds(trainer, 4, _MAX_DESCRIPTORS)
        gc.freeze()
        for worker in descriptors:
            if os.fork() == 0:
                trainer.close()
                for other in descriptors:
                    if other != worker:
                        os.close(other)
                _work(load, socket.socket(fileno=worker))
                os._exit(0)
        for worker in descriptors:
            os.close(worker)


def _work(load: Load | str, trainer: socket.socket) -> None:
    _Worker.is_one = True
    while True:
        try:
            request = _receive(trainer)
        except (EOFError, ConnectionError):
            return
        try:
            if isinstance(load, str):
                raise ImportError(
                    f"data workers cannot unpickle their task; keep it in a module, not a script:\n{load}"
                )
            answer: tuple[Any, str | None] | None = (load(request), None)
        except Exception:
            answer = (None, traceback.format_exc())
        try:
            _send(trainer, answer)
        except ConnectionError:
            return
        answer = None
        for lent in _Worker.lent.values():
            os.close(lent)
        _Worker.lent.clear()


def _receive_item(worker: socket.socket) -> Any:
    item, failure = _receive(worker)
    if failure is not None:
        raise RuntimeError(f"a data worker failed:\n{failure}")
    return item


def _send(channel: socket.socket, value: Any) -> None:
    """Send a pickle; its arrays, and the pickle itself, lie in memfds that the message carries."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    descriptors, table, inline, end = [], [], [memoryview(head)], len(head)
    for raw in (buffer.raw() for buffer in buffers):
        lent = _Worker.lent.get(np.frombuffer(raw, np.uint8).ctypes.data) if raw.nbytes else None
        if lent is None:
            table.append((0, end, raw.nbytes))
            inline.append(raw)
            end += raw.nbytes
        else:
            descriptors.append(lent)
            table.append((len(descriptors), 0, raw.nbytes))
    body = os.memfd_create("clip_vip_item")
    try:
        with open(body, "wb", closefd=False) as file:
            file.writelines(inline)
        message = pickle.dumps((len(head), end, table))
        socket.send_fds(channel, [message], [body, *descriptors])
    finally:
        os.close(body)


def _receive(channel: socket.socket) -> Any:
    message, ancillary, _, _ = channel.recvmsg(_MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4))
    if not message:
        raise EOFError("the other end is closed")
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    head_size, body_size, table = pickle.loads(message)
    sizes = [body_size, *(size for number, _, size in table if number)]
    maps = []
    for descriptor, size in zip(descriptors, sizes, strict=True):
        maps.append(memoryview(mmap.mmap(descriptor, size)))
        os.close(descriptor)
    buffers = [maps[number][start : start + size] for number, start, size in table]
    return pickle.loads(maps[0][:head_size], buffers=buffers)
