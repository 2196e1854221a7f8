"""All gradients of a model in one buffer, reduced over ranks tower by tower while the backward pass goes on.

    gradients = FlatGradients(model, torch.bfloat16)      # every `parameter.grad` is a view of `gradients.flat`
    gradients.begin(is_last=True); loss.backward(); gradients.finish()
    gradients.flat                                        # averaged over ranks
    gradients.zero()

For ZeRO 0, where nothing is partitioned. The parameters own their gradients: autograd, and a captured tower, add to
what is there. So norm, clipping and zeroing are a few kernels, whatever the number of parameters.

A part of the buffer (a tower, and at last what lies in no tower) is reduced as soon as every parameter in it has its
gradient. All ranks reduce the parts in the same order, in that of the backward pass: texts, then frames, then the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.dist import world_size


class CountsUses(Protocol):
    """A tower that knows which of its uses are to be differentiated, and how."""

    eager_uses: int

    @property
    def num_in_flight(self) -> int:
        """Captured uses."""


@dataclass
class Part:
    """A run of the buffer."""

    name: str
    flat: Tensor
    parameters: list[nn.Parameter]
    missing: int = 0
    """Parameters whose gradient is not complete in the backward pass at hand."""
    travelling: list[tuple[Any, Tensor]] = field(default_factory=list)
    """A collective under way, and what it reduces: a view of `flat`, or a copy in the dtype of the reduction."""


class FlatGradients:
    """The gradients of `module`, of which no parameter may be frozen or thawed later."""

    def __init__(self, module: nn.Module, reduce_dtype: torch.dtype) -> None:
        self.reduce_dtype = reduce_dtype
        groups = list(_groups(module))
        first = next(parameter for _, parameters in groups for parameter in parameters)
        size = sum(parameter.numel() for _, parameters in groups for parameter in parameters)
        self.flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.parts: list[Part] = []
        self._is_last, self._next = False, 0
        self.captured: dict[str, CountsUses] = {}
        """Captured towers by the name of their part."""
        start = 0
        for name, parameters in groups:
            end = start + sum(parameter.numel() for parameter in parameters)
            self.parts.append(Part(name, self.flat[start:end], parameters))
            start = end
        self.attach()
        if world_size() > 1:
            self._watch()

    def attach(self) -> None:
        """Make every parameter's gradient a view of the buffer."""
        for part in self.parts:
            start = 0
            for parameter in part.parameters:
                end = start + parameter.numel()
                parameter.grad = part.flat[start:end].view_as(parameter)
                start = end

    def zero(self) -> None:
        """Forget the gradients."""
        self.flat.zero_()

    def begin(self, *, is_last: bool) -> None:
        """A backward pass begins; the reduction goes with the last one of a step."""
        self._is_last, self._next = is_last, 0
        for part in self.parts:
            # A captured tower tells of all its parameters at once, autograd of each; both, where both were used.
            tower = self.captured.get(part.name)
            ways = 1 if tower is None else bool(tower.eager_uses) + bool(tower.num_in_flight)
            part.missing = len(part.parameters) * ways
            if tower is not None:
                tower.eager_uses = 0

    def complete(self, name: str, count: int) -> None:
        """`count` more parameters of a part have their whole gradient of this backward pass."""
        part = next(part for part in self.parts if part.name == name)
        part.missing -= count
        while self._is_last and self._next < len(self.parts) - 1 and self.parts[self._next].missing <= 0:
            self._send(self.parts[self._next])
            self._next += 1

    def finish(self) -> None:
        """The backward pass is over: reduce what was not yet, and wait (on a GPU: have the stream wait)."""
        if not self._is_last or world_size() == 1:
            return
        for part in self.parts[self._next :]:
            self._send(part)
        for part in self.parts:
            for work, reduced in part.travelling:
                work.wait()
                if reduced.dtype != part.flat.dtype:
                    part.flat.copy_(reduced)
            part.travelling.clear()

    def _send(self, part: Part) -> None:
        if world_size() == 1:
            return
        part.flat.div_(world_size())
        travels = part.flat.to(self.reduce_dtype)  # the buffer itself where the dtypes agree
        part.travelling.append((dist.all_reduce(travels, async_op=True), travels))

    def _watch(self) -> None:
        """Hear of every gradient that autograd has added up: once a backward pass, whatever the number of uses."""
        for part in self.parts[:-1]:
            for parameter in part.parameters:
                hook = partial(self._count, part.name)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _count(self, name: str, _: Tensor) -> None:
        self.complete(name, 1)


def _groups(module: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Trainable parameters by child, in the reverse order of their use in a forward pass; then those of none."""
    seen: set[nn.Parameter] = set()
    for name, child in reversed(list(module.named_children())):
        parameters = [p for p in child.parameters() if p.requires_grad and p not in seen]
        seen.update(parameters)
        if parameters:
            yield name, parameters
    yield "", [p for p in module.parameters() if p.requires_grad and p not in seen]
