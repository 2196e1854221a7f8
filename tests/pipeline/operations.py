"""Counts what is dispatched: on a GPU each of these is at least a launch, and time of the host."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    [
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "permute", "transpose", "t", "unsqueeze"),
        *("squeeze", "select", "slice", "split", "split_with_sizes", "unbind", "detach", "alias", "diagonal"),
        *("as_strided", "unfold", "chunk", "lift_fresh", "view_as"),
    ]
)


class CountOperations(TorchDispatchMode):
    """`with CountOperations() as count: ...; count.total`: operations by name, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not self.paused and name not in VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.names.values())
