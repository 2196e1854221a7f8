"""Values from one process to another over a socket pair: pickles whose arrays lie in memfds, without a copy or a name.

    send(channel, value); receive(channel)        # small values
    lender.send(channel, value)                   # in a worker: pixels in memory from `lender.empty_bytes`
    borrower.receive(channel)                     # in the trainer; its `take_returned()` goes with the next request

A batch of pixels is tens of megabytes. To map it, fault it in, zero it and unmap it again costs the trainer 10 ms and
the worker as much, each time. So a worker's buffers stay mapped on both sides and are used again, each as soon as the
last array, view or tensor of it is gone in the trainer.
"""

import array
import mmap
import os
import pickle
import socket
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_MESSAGE_BYTES = 65536
MAX_DESCRIPTORS = 64
_MAX_UNUSED_ITEMS = 16

_INLINE = 0
"""The number of the buffer that only this message has: the pickle and what is small."""


def send(channel: socket.socket, value: Any) -> None:
    """Send `value`, by copy."""
    _send(channel, value, {}, ())


def receive(channel: socket.socket) -> Any:
    """What `send` sent. Raises EOFError when the other end is closed."""
    return Borrower().receive(channel)


@dataclass
class _Buffer:
    number: int
    memory: mmap.mmap
    descriptor: int
    """-1 once the trainer has it mapped."""
    last_item: int = 0


class Lender:
    """A worker's buffers. Each is free, or part of the item at hand, or with the trainer."""

    def __init__(self) -> None:
        self._free: list[_Buffer] = []
        self._at_hand: dict[int, _Buffer] = {}  # by address
        self._away: dict[int, _Buffer] = {}  # by number
        self._num_buffers = 0
        self._num_items = 0

    def empty_bytes(self, *shape: int) -> NDArray[np.uint8]:
        """uint8 [shape] with anything in it, for the item at hand."""
        size = int(np.prod(shape))
        fitting = [buffer for buffer in self._free if len(buffer.memory) == size]
        if fitting:
            buffer = fitting[-1]
            self._free.remove(buffer)
        else:
            self._num_buffers += 1
            descriptor = os.memfd_create("clip_vip_item")
            os.ftruncate(descriptor, size)
            buffer = _Buffer(self._num_buffers, mmap.mmap(descriptor, size), descriptor)
        pixels = np.frombuffer(buffer.memory, dtype=np.uint8)
        self._at_hand[pixels.ctypes.data] = buffer
        return pixels.reshape(shape)

    def take_back(self, numbers: list[int]) -> None:
        """The trainer has nothing of these buffers any more."""
        self._free += [self._away.pop(number) for number in numbers]

    def send(self, channel: socket.socket, value: Any) -> None:
        """Send `value`; arrays of `empty_bytes` go as they are, and may not be touched afterwards."""
        sent = _send(channel, value, self._at_hand, self._drop_unused())
        self._num_items += 1
        for buffer in self._at_hand.values():
            buffer.last_item = self._num_items
            if buffer in sent:
                self._away[buffer.number] = buffer
            else:
                self._free.append(buffer)
        self._at_hand.clear()

    def _drop_unused(self) -> list[int]:
        """Buffers of a size that is not asked for any more; their numbers, for the trainer to drop them too."""
        unused = [buffer for buffer in self._free if self._num_items - buffer.last_item > _MAX_UNUSED_ITEMS]
        for buffer in unused:
            self._free.remove(buffer)
            if buffer.descriptor >= 0:
                os.close(buffer.descriptor)
        return [buffer.number for buffer in unused]


class Borrower:
    """The trainer's side of one worker's `Lender`."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._returned: deque[int] = deque()

    def receive(self, channel: socket.socket) -> Any:
        """The next value; its arrays may be written to. Raises EOFError when the other end is closed."""
        message, ancillary, _, _ = channel.recvmsg(_MAX_MESSAGE_BYTES, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4))
        if not message:
            raise EOFError("the other end is closed")
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        head_size, new, dropped, table = pickle.loads(message)
        for (number, size), descriptor in zip(new, descriptors, strict=True):
            self._maps[number] = mmap.mmap(descriptor, size)
            os.close(descriptor)
        for number in dropped:
            self._maps.pop(number, None)
        inline = memoryview(self._maps.pop(_INLINE))
        lent = {number for number, _, _ in table} - {_INLINE}
        memories = {_INLINE: inline, **{number: self._lease(number) for number in lent}}
        buffers = [memories[number][start : start + size] for number, start, size in table]
        return pickle.loads(inline[:head_size], buffers=buffers)

    def take_returned(self) -> list[int]:
        """The buffers that went free since the last call."""
        return [self._returned.popleft() for _ in range(len(self._returned))]

    def _lease(self, number: int) -> memoryview:
        """The memory of a buffer. The array below it dies with the last view, in whatever thread that is."""
        lease = np.frombuffer(self._maps[number], dtype=np.uint8)
        weakref.finalize(lease, self._returned.append, number).atexit = False
        return lease.data


def _send(
    channel: socket.socket, value: Any, at_hand: dict[int, _Buffer], dropped: list[int] | tuple[()]
) -> list[_Buffer]:
    """Send `value`; returns those of the buffers at hand that are part of it."""
    views: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=views.append)
    sent: list[_Buffer] = []
    table, inline, end = [], [memoryview(head)], len(head)
    for raw in (view.raw() for view in views):
        buffer = at_hand.get(np.frombuffer(raw, np.uint8).ctypes.data) if raw.nbytes else None
        if buffer is None:
            table.append((_INLINE, end, raw.nbytes))
            inline.append(raw)
            end += raw.nbytes
        else:
            table.append((buffer.number, 0, raw.nbytes))
            if buffer not in sent:
                sent.append(buffer)
    body = os.memfd_create("clip_vip_item")
    try:
        with open(body, "wb", closefd=False) as file:
            file.writelines(inline)
        unknown = [buffer for buffer in sent if buffer.descriptor >= 0]
        new = [(_INLINE, end), *((buffer.number, len(buffer.memory)) for buffer in unknown)]
        descriptors = [body, *(buffer.descriptor for buffer in unknown)]
        socket.send_fds(channel, [pickle.dumps((len(head), new, dropped, table))], descriptors)
    finally:
        os.close(body)
    for buffer in unknown:
        os.close(buffer.descriptor)
        buffer.descriptor = -1
    return sent
