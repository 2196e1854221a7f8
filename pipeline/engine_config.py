"""How the engine runs a step: its config, the device that follows from it, and DeepSpeed's own config.

device = resolve_device(config)                                             # or InputError
settings = deepspeed_config(config, device, clip_norm=5.0, rows_per_rank=32, passthrough={})
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from pipeline.config import Section
from pipeline.dist import local_rank
from pipeline.errors import InputError

DERIVED_KEYS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "optimizer",
        "scheduler",
        "bf16",
        "fp16",
        "torch_autocast",
        "steps_per_print",
        "communication_data_type",
        "checkpoint",
        "zero_optimization.stage",
    }
)
"""What our own config decides; repeating it in the `deepspeed` section is an error."""


ROUND_ROBIN_KEY = "zero_optimization.round_robin_gradients"
"""Moves parameters between ranks, which DeepSpeed 0.19 forgets where it notes which part of which parameter a rank has:
a checkpoint converted by these notes would have its moments in wrong places."""


REDUCE_BUCKET_ELEMENTS = 50_000_000
"""Gradients that ZeRO reduces at a time, unless deepspeed.zero_optimization.reduce_bucket_size says otherwise.

DeepSpeed's own 500 M elements are a buffer of 2 GB, more than all gradients of these models, and one reduction at the
very end of the backward pass, which nothing could overlap.
"""


REDUCE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class EngineConfig(Section):
    """How the step runs: ZeRO, precision, device."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """Partitioned over ranks: 0 nothing, 1 optimizer states, 2 also gradients, 3 also parameters."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bf16: autocast over fp32 parameters; fp16: the same with a scaled loss, GPUs only."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """What gradients travel in between ranks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    compile: Literal["auto"] | bool = "auto"
    """Run the blocks of the model compiled (torch.compile); ZeRO 0 to 2. auto: on GPUs, where it can be."""
    capture: Literal["auto"] | bool = "auto"
    """Replay the towers as captured CUDA graphs; ZeRO 0 to 2, no activation checkpointing. auto: on GPUs, where it can
    be. true on a CPU: a stand-in that is no faster, for tests."""
    tf32: bool = True
    """TensorFloat-32 for what is left in fp32 on GPUs."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """A collective that waits longer, because a rank hangs or died, ends the run on all ranks."""

    @model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        for name, wanted in (("compile", self.compile), ("capture", self.capture)):
            if wanted is True and self.zero_stage == 3:
                raise ValueError(f"{name} works with ZeRO 0 to 2; set {name}: auto or zero_stage: 2")
        if self.device == "cpu" and self.precision == "fp16":
            raise ValueError("precision: fp16 needs a GPU; on a CPU set precision: fp32 or bf16")
        return self


def resolve_device(config: EngineConfig) -> torch.device:
    """This rank's device. InputError where the config asks for what the machine lacks."""
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device is cuda, but this machine has no CUDA device; set engine.device=cpu")
    if wanted == "cpu" and config.precision == "fp16":
        raise InputError("engine.precision fp16 needs a GPU; on a CPU set engine.precision=fp32 or bf16")
    if wanted == "cpu":
        return torch.device("cpu")
    # Where a site shows each task its own GPU only, all of them are number 0.
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def deepspeed_config(
    config: EngineConfig, device: torch.device, *, clip_norm: float, rows_per_rank: int, passthrough: dict[str, Any]
) -> dict[str, Any]:
    """DeepSpeed's own config: derived from ours, then the engine-only keys of `passthrough`."""
    assert not repeated_keys(passthrough), "TrainConfig refuses these"
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": rows_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "steps_per_print": None,
        # Ours is a plain subclass of torch's; offloading must not insist on DeepSpeed's own.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": config.reduce_dtype,
        # It would wait for the GPU before every forward pass and after every update. The meters do not.
        "timers": {"throughput": {"enabled": False}},
    }
    if config.precision == "bf16":
        # The listed modules would have their gradients reduced in bf16, whatever communication_data_type says.
        safe: list[str] | None = None if config.reduce_dtype == "bf16" else []
        made["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": safe}
    elif config.precision == "fp16":
        made["torch_autocast"] = {"enabled": True, "dtype": "float16", "lower_precision_safe_modules": []}
    made |= {key: value for key, value in passthrough.items() if key != "zero_optimization"}
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage > 0:
        zero["reduce_bucket_size"] = REDUCE_BUCKET_ELEMENTS
    if config.zero_stage in (1, 2) and device.type == "cuda":
        # DeepSpeed's default is to reduce everything after the backward pass; in stage 3 it overlaps by itself.
        zero["overlap_comm"] = True
    made["zero_optimization"] = zero | dict(passthrough.get("zero_optimization", {}))
    return made


def repeated_keys(passthrough: dict[str, Any]) -> list[str]:
    """Dotted keys of a `deepspeed` section that our own config decides."""
    return [
        dotted
        for dotted in _dotted_keys(passthrough)
        if any(dotted == derived or dotted.startswith(f"{derived}.") for derived in DERIVED_KEYS)
    ]


def moves_parameters(passthrough: dict[str, Any]) -> bool:
    """Whether a `deepspeed` section asks for round robin."""
    return ROUND_ROBIN_KEY in _dotted_keys(passthrough)


def _dotted_keys(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted_keys(value, f"{prefix}{key}.")
