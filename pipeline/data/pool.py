"""Data workers: clean processes that compute items ahead and hand them over without a copy and without a name.

    for item in run_workers(load, requests, num_workers=4, prefetch=2): ...      # load(request), in order

A fresh interpreter, started once per process, imports what `load` needs and forks the workers: they share its memory,
and have no CUDA, no signal handlers, no locks and no random state of the trainer. Requests and items travel over
anonymous socket pairs (`handover`): nothing has a name in /dev/shm or in a temporary folder, so a SIGKILL of any
process, or of all at once, leaves nothing behind, and the size of /dev/shm does not matter.

A worker ends when its socket closes, so also when the trainer is killed. It ignores the signals that a scheduler sends
to every process of a job: the trainer decides when to stop. A worker that dies closes its socket: `WorkerDied`.
"""

import contextlib
import gc
import itertools
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.handover import MAX_DESCRIPTORS, Borrower, Lender, receive, send
from pipeline.data.hang import SLOW_AFTER_S, Wait

_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Load = Callable[[Any], Any]


class WorkerDied(Exception):
    """A data worker ended without an error of its own: most often killed for memory."""


def run_workers(
    load: Load, requests: Iterable[Any], *, num_workers: int, prefetch: int, slow_after_s: float = SLOW_AFTER_S
) -> Generator[Any, None, None]:
    """Yield `load(request)` for each request in order, `num_workers` at work (0: this process), `prefetch` ahead each.

    `load` is picklable and gives nested values whose arrays are numpy's. Requests are taken as far ahead as workers
    have room. Raises WorkerDied; an error inside `load` is raised here with the worker's traceback. A worker for which
    this waits longer than `slow_after_s` is named in the log.
    """
    if num_workers == 0:
        yield from map(load, requests)
        return
    channels = _start_workers(load, num_workers)
    workers = [_WorkerEnd(channel, f"worker {n}", slow_after_s) for n, channel in enumerate(channels)]
    waiting = iter(requests)
    turns: list[_WorkerEnd] = []
    try:
        for worker, request in zip(itertools.cycle(workers), itertools.islice(waiting, num_workers * prefetch)):
            worker.ask(request)
            turns.append(worker)
        while turns:
            worker = turns.pop(0)
            item = worker.receive()
            for request in itertools.islice(waiting, 1):
                worker.ask(request)
                turns.append(worker)
            yield item
            del item  # else its memory would not be free when the next request goes out
    except (ConnectionError, EOFError) as error:
        raise WorkerDied(str(error)) from None
    finally:
        for worker in workers:
            worker.channel.close()


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
    """uint8 [shape] with anything in it, for an item's pixels; in a worker, handing it over copies nothing."""
    return np.empty(shape, dtype=np.uint8) if _Worker.lender is None else _Worker.lender.empty_bytes(*shape)


def next_request() -> Any | None:
    """What this worker will be asked for after the item at hand, if that is known by now; None outside of a worker."""
    return None if _Worker.requests is None else _Worker.requests.peek()


class _Worker:
    """What a process knows of itself as a worker."""

    lender: Lender | None = None
    requests: "_Requests | None" = None


class _Requests:
    """A worker's requests, in order. Memory that comes back with one is free at once."""

    def __init__(self, channel: socket.socket, lender: Lender) -> None:
        self._channel = channel
        self._lender = lender
        self._taken: deque[Any] = deque()
        self._is_closed = False
        self._waiting = select.poll()
        self._waiting.register(channel, select.POLLIN)

    def take(self) -> Any:
        """The next one. Raises EOFError when the trainer has gone."""
        if not self._taken:
            self._receive()
        if not self._taken:
            raise EOFError("the trainer has closed its end")
        return self._taken.popleft()

    def peek(self) -> Any | None:
        """The next one if it is there."""
        if not self._taken and not self._is_closed and self._waiting.poll(0):
            self._receive()
        return self._taken[0] if self._taken else None

    def _receive(self) -> None:
        try:
            request, returned = receive(self._channel)
        except (EOFError, ConnectionError):
            self._is_closed = True
            return
        self._lender.take_back(returned)
        self._taken.append(request)


class _WorkerEnd:
    """A worker, seen from the trainer."""

    def __init__(self, channel: socket.socket, name: str, slow_after_s: float) -> None:
        self.channel = channel
        self._borrower = Borrower()
        self._wait = Wait(channel, name, slow_after_s)

    def ask(self, request: Any) -> None:
        send(self.channel, (request, self._borrower.take_returned()))

    def receive(self) -> Any:
        if self._wait.pid is None:
            self._wait.for_answer()
            self._wait.pid = self._borrower.receive(self.channel)
        self._wait.for_answer()
        item, failure = self._borrower.receive(self.channel)
        if failure is not None:
            raise RuntimeError(f"a data worker failed:\n{failure}")
        return item


class _Server:
    """The fresh interpreter that forks workers, and our end of its socket."""

    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    owner = 0


def _start_workers(load: Load, num_workers: int) -> list[socket.socket]:
    server = _server()
    send(server, load)
    ours, theirs = zip(
        *(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(num_workers)), strict=True
    )
    for start in range(0, num_workers, MAX_DESCRIPTORS):  # a message takes no more
        word = b"fork" if start + MAX_DESCRIPTORS >= num_workers else b"more"
        socket.send_fds(server, [word], [one.fileno() for one in theirs[start : start + MAX_DESCRIPTORS]])
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
        # Blocked until `serve` ignores them: Ctrl-C reaches every process of the terminal, also one that just began.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
        try:
            _Server.process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        _Server.channel, _Server.owner = ours, os.getpid()
    return _Server.channel


def serve(descriptor: int) -> None:
    """The server's life: unpickle a `load` (which imports what it needs), fork its workers, until the trainer ends."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    trainer = socket.socket(fileno=descriptor)
    while True:
        try:
            load: Load | str = receive(trainer)
        except (EOFError, ConnectionError):
            return
        except Exception:
            # The workers report it: they have the sockets on which somebody listens.
            load = traceback.format_exc()
        word, descriptors = b"more", []
        while word == b"more":
            word, new, _, _ = socket.recv_fds(trainer, 4, MAX_DESCRIPTORS)
            descriptors += new
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
    lender = _Worker.lender = Lender()
    requests = _Worker.requests = _Requests(trainer, lender)
    with contextlib.suppress(ConnectionError):
        send(trainer, os.getpid())
    while True:
        try:
            request = requests.take()
        except EOFError:
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
            lender.send(trainer, answer)
        except ConnectionError:
            return
        answer = None
