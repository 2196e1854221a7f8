"""System calls that fail as those of a network file system do: so many times, for paths of some name.

with failing("state.json", errno.EIO, times=2): ...
"""

import builtins
import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def failing(ending: str, number: int, times: float = math.inf) -> Iterator[list[str]]:
    """Inside, the next `times` calls that open, stat or list a path of this ending fail; yields those that did."""
    failed: list[str] = []

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and os.fspath(path).endswith(ending) and len(failed) < times:
                failed.append(call.__name__)
                raise OSError(number, os.strerror(number), os.fspath(path))
            return call(path, *arguments, **options)

        return inner

    with contextlib.ExitStack() as stack:
        for module, name in ((builtins, "open"), (io, "open"), (os, "stat"), (os, "listdir"), (os, "scandir")):
            stack.enter_context(mock.patch.object(module, name, guarded(getattr(module, name))))
        yield failed
