"""Towers as captured graphs: a forward and a backward pass that are replayed instead of launched op by op.

    captured = CapturedTower("visual", model.visual, CudaPass, gradients)     # from now on model.visual(...) replays
    features = model.visual(pixels, mean, std)                                # in training; else it runs as ever
    captured.reset()                                                          # forget the graphs: parameters moved

A pass is captured for one tower at one shape, with memory of its own: inputs, outputs and gradients always lie in the
same places. What follows from that:

- Inputs are copied into their place. A copy broadcasts in silence, so a pass is chosen by the exact shapes, and what
  has none runs eagerly.
- A second replay overwrites the activations of the first. So a pass in flight, between its forward and its backward,
  is not used again: another use of the tower takes a pass of another slot. Passes of one slot are never in flight
  together and share their memory.
- The features are copied out, and gradients too: the parameters own theirs. With `FlatGradients` the pass adds to the
  parameters' gradients itself (ZeRO 0); without, autograd gets a copy and calls DeepSpeed's hooks (ZeRO 1 and 2).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.flat_gradients import FlatGradients
from pipeline.log import logger

MAX_PASSES = 16
"""Of one tower. Beyond, other shapes run eagerly: each pass of a new slot holds its activations for good."""
WARM_UP_PASSES = 3
"""Before a capture: compilation, the choice of algorithms and their workspaces do not belong into a graph."""

Run = Callable[..., Tensor]
Deliver = Callable[[Sequence[Tensor]], None]


class Pass(Protocol):
    """A captured forward and backward pass. Everything in it lies in fixed places."""

    inputs: list[Tensor]
    output: Tensor
    output_gradient: Tensor

    def __init__(
        self, run: Run, parameters: list[nn.Parameter], inputs: Sequence[Tensor], deliver: Deliver, pool: Any
    ) -> None:
        """Capture `run(*inputs)` and its gradient; `deliver` is what the backward pass does with the gradients."""

    def forward(self) -> None:
        """From `inputs` to `output`."""

    def backward(self) -> None:
        """From `output_gradient` to what `deliver` did."""

    @staticmethod
    def new_pool() -> Any:
        """Memory for the passes of one slot."""


class CudaPass:
    """A pass as two CUDA graphs."""

    def __init__(
        self, run: Run, parameters: list[nn.Parameter], inputs: Sequence[Tensor], deliver: Deliver, pool: Any
    ) -> None:
        self.inputs = [torch.empty_like(value).copy_(value) for value in inputs]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_PASSES):
                output = run(*self.inputs)
                torch.autograd.grad(output, parameters, torch.zeros_like(output), allow_unused=True)
                del output
        torch.cuda.current_stream().wait_stream(side)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads (pinned memory, NCCL's watchdog) go on: what they do is no part of the capture.
        with torch.cuda.graph(self._forward, pool=pool, capture_error_mode="thread_local"):
            output = run(*self.inputs)
        self.output_gradient = torch.zeros_like(output)
        with torch.cuda.graph(self._backward, pool=pool, capture_error_mode="thread_local"):
            gradients = torch.autograd.grad(output, parameters, self.output_gradient, allow_unused=True)
            deliver([_whole(gradient, parameter) for gradient, parameter in zip(gradients, parameters, strict=True)])
        self.output = output.detach()

    def forward(self) -> None:
        """Replay."""
        self._forward.replay()

    def backward(self) -> None:
        """Replay."""
        self._backward.replay()

    @staticmethod
    def new_pool() -> Any:
        """A private pool of the caching allocator."""
        return torch.cuda.graph_pool_handle()


class StandInPass:
    """The same on a CPU, where nothing can be captured: fixed places with NaN in them before every replay.

    It is no faster. Whatever relies on a place after the next replay, or on one that was not filled, shows at once.
    """

    def __init__(
        self, run: Run, parameters: list[nn.Parameter], inputs: Sequence[Tensor], deliver: Deliver, pool: Any
    ) -> None:
        self._run, self._parameters, self._deliver = run, parameters, deliver
        self.inputs = [torch.empty_like(value).copy_(value) for value in inputs]
        self._alive: Tensor | None = run(*self.inputs)
        self.output = torch.empty_like(self._alive)
        self.output_gradient = torch.zeros_like(self._alive)
        self._gradients = [torch.empty_like(parameter) for parameter in parameters]

    def forward(self) -> None:
        """Compute, into the place of the output."""
        self.output.fill_(torch.nan)
        self.output_gradient.fill_(torch.nan)
        with torch.enable_grad():
            self._alive = self._run(*self.inputs)
        self.output.copy_(self._alive.detach())

    def backward(self) -> None:
        """Differentiate what `forward` computed last, into the places of the gradients."""
        assert self._alive is not None, "the graph of this pass was used already"
        found = torch.autograd.grad(self._alive, self._parameters, self.output_gradient, allow_unused=True)
        self._alive = None
        with torch.no_grad():
            for place, gradient in zip(self._gradients, found, strict=True):
                place.fill_(torch.nan).copy_(_whole(gradient, place))
            self._deliver(self._gradients)

    @staticmethod
    def new_pool() -> Any:
        """Nothing to share."""
        return None


def _whole(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


class _Slot:
    """Passes of which one is in flight at a time."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.passes: dict[Any, Pass] = {}
        self.in_flight = False


class _Use:
    """A pass between its forward and its backward; or until its graph is dropped without one."""

    def __init__(self, tower: "CapturedTower", slot: _Slot, captured: Pass) -> None:
        self.tower, self.slot, self.captured = tower, slot, captured
        slot.in_flight = self.is_open = True

    def close(self) -> None:
        """The slot is free again."""
        if self.is_open:
            self.slot.in_flight = self.is_open = False

    def __del__(self) -> None:
        self.close()


class CapturedTower:
    """A module whose calls in training are replays. `gradients`: ZeRO 0's, or None for autograd and its hooks."""

    def __init__(
        self, name: str, tower: nn.Module, kind: type[Pass], gradients: FlatGradients | None, *, must: bool = False
    ) -> None:
        """`must`: what cannot be captured is an error, and not run eagerly."""
        self.name, self.tower, self.kind, self.gradients, self.must = name, tower, kind, gradients, must
        self.parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
        self._eager: Run = tower.forward
        self._slots: list[_Slot] = []
        self._gave_up = self._limit_is_told = False
        self.eager_uses = 0
        """Uses with a graph of autograd's own since the last backward pass."""
        device = self.parameters[0].device
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._handed_over: Tensor | None = None
        if gradients is None:
            size = sum(parameter.numel() for parameter in self.parameters)
            self._handed_over = torch.zeros(size, dtype=self.parameters[0].dtype, device=device)
        tower.forward = self

    @property
    def num_in_flight(self) -> int:
        """Uses whose backward pass is still to come."""
        return sum(slot.in_flight for slot in self._slots)

    @property
    def num_passes(self) -> int:
        """Captured so far."""
        return sum(len(slot.passes) for slot in self._slots)

    def reset(self) -> None:
        """Forget all passes."""
        assert not self.num_in_flight, "a backward pass is still to come"
        self._slots.clear()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """As the tower's own forward."""
        if self._gave_up or not self.tower.training or any(value.requires_grad for value in inputs):
            return self._run_eagerly(*inputs)
        found = self._pass_for(inputs)
        if found is None:
            return self._run_eagerly(*inputs)
        slot, captured = found
        for place, value in zip(captured.inputs, inputs, strict=True):
            place.copy_(value)
        if not torch.is_grad_enabled():
            captured.forward()
            return captured.output.clone()
        use = _Use(self, slot, captured)
        leaves = [self._anchor] if self.gradients is not None else self.parameters
        output: Tensor = _Replay.apply(use, *leaves)
        return output

    def _run_eagerly(self, *inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.eager_uses += 1
        return self._eager(*inputs)

    def _pass_for(self, inputs: Sequence[Tensor]) -> tuple[_Slot, Pass] | None:
        """A pass of these shapes that is not in flight, captured now where there is none yet."""
        kind = inputs[0].device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (autocast, *((tuple(value.shape), value.dtype) for value in inputs))
        free = [slot for slot in self._slots if not slot.in_flight]
        for slot in free:
            if key in slot.passes:
                return slot, slot.passes[key]
        if self.num_passes >= MAX_PASSES:
            if not self._limit_is_told:
                logger.info(f"{self.name}: {MAX_PASSES} passes are captured; other shapes run eagerly")
            self._limit_is_told = True
            return None
        slot = free[0] if free else self._new_slot()
        try:
            slot.passes[key] = self._captured(inputs, autocast, slot.pool)
        except RuntimeError as error:  # out of memory, or an operation that a graph cannot hold
            if self.must:
                raise
            self._gave_up = True
            logger.warning(f"{self.name} runs without a captured graph: {' '.join(str(error).split())[:200]}")
            return None
        return slot, slot.passes[key]

    def _new_slot(self) -> _Slot:
        self._slots.append(_Slot(self.kind.new_pool()))
        return self._slots[-1]

    def _captured(self, inputs: Sequence[Tensor], autocast: torch.dtype | None, pool: Any) -> Pass:
        """Capture, and leave no trace: random numbers go on as if nothing had happened."""
        device = inputs[0].device

        def run(*places: Tensor) -> Tensor:
            # Without autocast's cache: it would hold copies of the weights from outside of the graph, or of before.
            with torch.autocast(device.type, autocast, enabled=autocast is not None, cache_enabled=False):
                return self._eager(*places)

        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            return self.kind(run, self.parameters, inputs, self._deliver, pool)

    def _deliver(self, gradients: Sequence[Tensor]) -> None:
        """Part of the captured backward pass."""
        if self._handed_over is None:
            targets = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            torch._foreach_add_(targets, list(gradients))
        else:
            sizes = [parameter.numel() for parameter in self.parameters]
            places = list(torch.split(self._handed_over, sizes))
            torch._foreach_copy_(places, [gradient.flatten() for gradient in gradients])

    def finish(self, use: _Use) -> list[Tensor | None]:
        """After a backward replay: what autograd is to add to the leaves."""
        use.close()
        if self._handed_over is not None:
            own = torch.split(self._handed_over.clone(), [parameter.numel() for parameter in self.parameters])
            return [part.view_as(parameter) for part, parameter in zip(own, self.parameters, strict=True)]
        assert self.gradients is not None
        if not self.num_in_flight:
            self.gradients.complete(self.name, len(self.parameters))
        return [None]


class _Replay(torch.autograd.Function):
    """Forward and backward of one use."""

    @staticmethod
    def forward(ctx: Any, use: _Use, *leaves: Tensor) -> Tensor:
        """Features [B, D]."""
        ctx.use = use
        use.captured.forward()
        return use.captured.output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of the leaves."""
        use: _Use = ctx.use
        assert use.is_open, "a captured pass has one backward pass"
        use.captured.output_gradient.copy_(gradient)
        use.captured.backward()
        return None, *use.tower.finish(use)
