"""Whole tensors by name into the partitions of any ZeRO stage.

    fill_engine(engine, weights, moments, optimizer_step)

Under stages 1 and 2 a rank holds, for each parameter group, one flat run of elements that begins and ends anywhere in
a parameter; under stage 3 an equal, padded part of every parameter. Both are laid out here as DeepSpeed made them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine import Engine

Moments = Callable[[str], tuple[Tensor, Tensor] | None]


def fill_engine(engine: Engine, weights: Mapping[str, Tensor], moments: Moments, optimizer_step: int) -> None:
    """Put weights, fp32 masters, both moments and the step count into `engine`. Every rank, the same arguments."""
    optimizer = engine.deepspeed.optimizer
    named = dict(engine.module.named_parameters())
    names = {parameter: name for name, parameter in named.items()}
    with torch.no_grad():
        for name, buffer in engine.module.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])
        for name, parameter in named.items():
            _write_parameter(parameter, weights[name])
        if engine.zero_stage == 0:
            for parameter, name in names.items():
                if parameter.requires_grad:
                    _set_state(optimizer, parameter, moments(name), optimizer_step)
            return
        base = engine.base_optimizer
        for flat, pieces in _flat_partitions(engine):
            states = [torch.zeros_like(flat), torch.zeros_like(flat)]
            has_state = False
            for parameter, start, take in pieces:
                whole = weights[names[parameter]]
                flat[start : start + take(whole).numel()].copy_(take(whole))
                if (both := moments(names[parameter])) is not None:
                    has_state = True
                    for state, moment in zip(states, both, strict=True):
                        piece = take(moment)
                        state[start : start + piece.numel()].copy_(piece)
            _set_state(base, flat, (states[0], states[1]) if has_state else None, optimizer_step)


Piece = tuple[nn.Parameter, int, Callable[[Tensor], Tensor]]
"""A parameter, where its part begins in the flat partition, and how to take that part out of the whole tensor."""


def _flat_partitions(engine: Engine) -> Iterator[tuple[Tensor, list[Piece]]]:
    """This rank's fp32 partitions and what lies in them."""
    optimizer = engine.deepspeed.optimizer
    if engine.zero_stage < 3:
        for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
            yield flat, [_run_of(parameter) for parameter in group if parameter._hp_mapping is not None]
        return
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        pieces: list[Piece] = []
        start = 0
        for parameter in group:
            pieces.append((parameter, start, _own_part(parameter)))
            start += parameter.partition_numel()
        yield flat, pieces


def _run_of(parameter: Any) -> Piece:
    inside, at = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.get_hp_fragment_address().start
    return parameter, at, lambda whole: whole.flatten()[inside.start : inside.start + inside.numel]


def _own_part(parameter: Any) -> Callable[[Tensor], Tensor]:
    """Under stage 3 every rank has `partition_numel` elements; the last ones may lie beyond the parameter's end."""
    size = parameter.partition_numel()
    start = size * torch.distributed.get_rank()
    return lambda whole: whole.flatten()[start : start + size]


def _write_parameter(parameter: Any, whole: Tensor) -> None:
    if hasattr(parameter, "ds_tensor"):
        part = _own_part(parameter)(whole)
        parameter.ds_tensor.data[: part.numel()].copy_(part)
        if parameter.numel() == whole.numel():  # small parameters stay gathered between steps
            parameter.data.copy_(whole.view_as(parameter))
    else:
        parameter.data.copy_(whole.view_as(parameter))


def _set_state(
    optimizer: torch.optim.Optimizer, tensor: Tensor, moments: tuple[Tensor, Tensor] | None, step: int
) -> None:
    if moments is None:
        optimizer.state.pop(tensor, None)
        return
    optimizer.state[tensor] = {
        "step": torch.tensor(float(step)),
        "exp_avg": moments[0].to(tensor.device, tensor.dtype).view_as(tensor).clone(),
        "exp_avg_sq": moments[1].to(tensor.device, tensor.dtype).view_as(tensor).clone(),
    }
