"""Which way a step runs: blocks compiled or not, towers captured or not; and why.

    way = choose_way(config, device, model)      # Way(compiles=True, captures=True, reasons=())
    way.describe()                               # the line in the log

`auto` is on for GPUs and falls back; `true` is an error where it cannot be.
"""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from pipeline.engine_config import EngineConfig
from pipeline.errors import InputError

COMPILER_BACKEND = "inductor"
"""torch.compile's; tests take one that needs no C++ compiler."""


@runtime_checkable
class HasTowers(Protocol):
    """What a model offers to be accelerated; a model without it runs eagerly."""

    few_text_lengths: bool

    def towers(self) -> dict[str, nn.Module]:
        """The modules that train, by the name of the attribute; called with tensors, they return one tensor."""

    def compile_blocks(self, backend: str, *, must: bool) -> None:
        """Have the blocks of the towers run compiled in training."""

    def why_not_captured(self) -> str | None:
        """What of the model's own settings stands against captured towers."""


@dataclass(frozen=True)
class Way:
    """How the step runs."""

    compiles: bool
    captures: bool
    reasons: tuple[str, ...] = ()
    """Why not, of what `auto` left off."""

    def describe(self) -> str:
        """One line.

        >>> Way(True, False, ("no captured graphs under ZeRO 3",)).describe()
        'the step runs with compiled blocks, without captured graphs (no captured graphs under ZeRO 3)'
        """
        blocks = "with compiled blocks" if self.compiles else "with eager blocks"
        graphs = "with captured towers" if self.captures else "without captured graphs"
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"the step runs {blocks}, {graphs}{why}"


def choose_way(config: EngineConfig, device: torch.device, model: nn.Module) -> Way:
    """The way of this run. InputError where the config insists on what cannot be."""
    reasons: list[str] = []
    chosen: dict[str, bool] = {}
    for name, wanted, obstacle in (
        ("compile", config.compile, why_not_compiled(config, device, model)),
        ("capture", config.capture, why_not_captured(config, device, model)),
    ):
        if wanted is True and obstacle is not None:
            raise InputError(f"engine.{name} is true, but {obstacle}; set engine.{name}=auto or change what is named")
        chosen[name] = bool(wanted) and obstacle is None and (wanted is True or device.type == "cuda")
        if wanted == "auto" and device.type == "cuda" and obstacle is not None:
            reasons.append(obstacle)
    return Way(chosen["compile"], chosen["capture"], tuple(dict.fromkeys(reasons)))


def why_not_compiled(config: EngineConfig, device: torch.device, model: nn.Module) -> str | None:
    """What stands against compiled blocks, or None."""
    if not isinstance(model, HasTowers):
        return "the model has no towers to compile"
    if config.zero_stage == 3:
        return "ZeRO 3 gathers parameters by hooks, which no compiled block can hold"
    if COMPILER_BACKEND == "inductor" and not has_c_compiler():
        return "there is no C compiler (set CC, or install gcc)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def why_not_captured(config: EngineConfig, device: torch.device, model: nn.Module) -> str | None:
    """What stands against captured towers, or None."""
    if not isinstance(model, HasTowers):
        return "the model has no towers to capture"
    if config.zero_stage == 3:
        return "ZeRO 3 gathers parameters in each pass, so that they lie elsewhere each time"
    return model.why_not_captured()


def has_c_compiler() -> bool:
    """Whether torch.compile finds a compiler for what it writes."""
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
