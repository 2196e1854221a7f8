"""Plan a run: `python -m pipeline.plan FILE.yaml... [--gpus 64] [--gpu h100] [--mfu 0.45] [--clips N] [key=value...]`.

Answers before anything is spent: parameters, operations per clip, memory per GPU under every ZeRO stage, loader cores,
storage and bandwidth, hours and GPU-hours. Operations and memory follow from shapes; the share of the peak that is
reached (--mfu) and what a clip costs to store and decode are assumptions, printed beside the results.
"""

import math
from dataclasses import dataclass

from pipeline.config import load_config, split_arguments
from pipeline.errors import InputError, run_command
from pipeline.log import quiet

with quiet():
    import torch

    from pipeline.data.index import Manifest
    from pipeline.engine_config import REDUCE_BUCKET_ELEMENTS
    from pipeline.flops import GPUS, ClipWork, Gpu
    from pipeline.model.clip_vip import CLIPViP
    from pipeline.train_config import TrainConfig

DECODE_S_PER_CLIP = 4.3e-3
"""One core, 12 MJPEG frames of 224 px from memory (measured; proportional to frames and pixels)."""
BYTES_PER_CLIP = 430_000
"""MJPEG at 224 px and 3 frames a second, mean clip of 13.4 s (measured between 355 and 500 KB)."""


@dataclass(frozen=True)
class Plan:
    """The figures of one run on `num_gpus` GPUs."""

    parameters: int
    work: ClipWork
    clips: float
    gpu: Gpu
    num_gpus: int
    mfu: float
    clips_per_gpu: float
    checkpointing: bool
    micro_batches: int
    frame_cost: float
    """Decoding and storing, relative to 12 frames of 224 px."""

    @property
    def clips_per_s(self) -> float:
        """Over all GPUs."""
        return self.num_gpus * self.gpu.bf16_flops * self.mfu / (self.work.training_flops * self.extra_forward)

    @property
    def extra_forward(self) -> float:
        """Time over one forward and backward: a forward pass more for each way of recomputing."""
        return 1 + (int(self.checkpointing) + int(self.micro_batches > 1)) / 3

    @property
    def hours(self) -> float:
        """Of the run."""
        return self.clips / self.clips_per_s / 3600

    def states_gb(self, stage: int) -> float:
        """Parameters, gradients, optimizer and DeepSpeed's buffers per GPU."""
        states = self.parameters * state_bytes_per_parameter(stage, self.num_gpus)
        return (states + buffer_bytes(stage, self.num_gpus, self.parameters)) / 1e9

    @property
    def activations_gb(self) -> float:
        """Per GPU, in bf16, and the bf16 copies of the weights; with checkpointing only the input of each layer."""
        per_clip = self.work.activation_bytes(2)
        if self.checkpointing:
            per_clip = sum(4 * each.tokens * each.width * each.layers for each in self.work.sequences)
        return (per_clip * self.clips_per_gpu / self.micro_batches + 2 * self.parameters) / 1e9


def state_bytes_per_parameter(stage: int, world_size: int) -> float:
    """fp32 parameters, gradients and two moments at the fullest moment of a step.

    ZeRO 1 and 2 have a master copy as well, and part all but the parameters: a gradient goes into its partition as soon
    as it is reduced. Under ZeRO 3 either the parameters are whole, when forward turns to backward, or the update has
    its partition of the gradient twice.

    >>> state_bytes_per_parameter(0, 8), state_bytes_per_parameter(1, 4), state_bytes_per_parameter(3, 10)
    (16.0, 8.0, 6.0)
    """
    return (16.0, 4 + 16 / world_size, 4 + 16 / world_size, max(4 + 20 / world_size, 24 / world_size))[stage]


def buffer_bytes(stage: int, world_size: int, parameters: int) -> int:
    """What reducing takes beside the gradients: ZeRO 0 all of them once more, else a bucket and what waits for it."""
    waiting = min(REDUCE_BUCKET_ELEMENTS, parameters) if stage in (1, 2) else 0
    elements = REDUCE_BUCKET_ELEMENTS + waiting if stage > 0 else parameters * (world_size > 1)
    return 4 * elements


def make_plan(config: TrainConfig, *, gpu: str, num_gpus: int, mfu: float, num_clips: int | None) -> Plan:
    """The plan of `config`. InputError for an unknown GPU, or when the number of clips cannot be known."""
    if gpu not in GPUS:
        raise InputError(f"--gpu {gpu!r} is unknown; known are {', '.join(sorted(GPUS))}")
    data = config.data
    if config.steps is not None:
        clips: float = config.steps * config.batch.global_batch_size
    else:
        clips = (config.epochs or 0.0) * (num_clips if num_clips is not None else _clips_of(data.sources[0].shards))
    with torch.device("meta"):
        model = CLIPViP(config.model)
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        work=ClipWork.of(
            config.model,
            num_frames=data.num_frames,
            num_text_tokens=data.num_text_tokens,
            loss_name=config.loss.name,
        ),
        clips=clips,
        gpu=GPUS[gpu],
        num_gpus=num_gpus,
        mfu=mfu,
        clips_per_gpu=config.batch.global_batch_size / num_gpus,
        checkpointing=config.model.checkpoint_activations,
        micro_batches=config.batch.micro_batches,
        frame_cost=data.num_frames / 12 * (model.image_size_px / 224) ** 2,
    )


def _clips_of(shards: str) -> int:
    try:
        return Manifest.open(shards).num_samples
    except (InputError, OSError):
        raise InputError(f"there is no shard set at {shards} to count clips in; give --clips, e.g. 92000000") from None


def render(plan: Plan, config: TrainConfig, gpu: str) -> str:
    """The plan for people."""
    per_gpu = plan.clips_per_s / plan.num_gpus
    clip_ms, clip_bytes = DECODE_S_PER_CLIP * plan.frame_cost * 1e3, BYTES_PER_CLIP * plan.frame_cost
    steps = math.ceil(plan.clips / config.batch.global_batch_size)
    set_tb = plan.clips / max(config.epochs or 1, 1) * clip_bytes / 1e12
    recomputed = f", times {plan.extra_forward:.2f} with recomputation" if plan.extra_forward > 1 else ""
    batch = f"batch {config.batch.global_batch_size}"
    rows = {
        "parameters": f"{plan.parameters / 1e6:,.1f} M",
        "tokens per clip": f"{plan.work.vision_tokens:,} vision, {plan.work.text_tokens} text",
        "operations per clip": f"{plan.work.training_flops / 1e9:,.0f} GFLOP forward and backward{recomputed}",
        "clips in the run": f"{plan.clips:,.0f} ({steps:,} steps)",
        "GPUs": f"{plan.num_gpus} x {gpu} at {plan.mfu:.0%} of the bf16 peak (assumed; --mfu)",
        "speed": f"{plan.clips_per_s:,.0f} clips/s, {per_gpu:,.0f} per GPU",
        "time": f"{plan.hours:,.1f} hours, {plan.hours * plan.num_gpus:,.0f} GPU-hours",
        "loader": f"{per_gpu * clip_ms / 1e3:.1f} cores per GPU at {clip_ms:.1f} ms a clip",
        "storage": f"{set_tb:,.1f} TB of shards at {clip_bytes / 1e3:,.0f} KB a clip",
        "reading": f"{plan.clips_per_s * clip_bytes / 1e9:,.2f} GB/s, {per_gpu * clip_bytes / 1e6:,.0f} MB/s per GPU",
    } | {f"memory, ZeRO {stage}": _memory(plan, stage) for stage in range(4)}
    title = f"{config.name}: {config.model.name}, {config.data.num_frames} frames, loss {config.loss.name}, {batch}"
    return "\n".join([title, *(f"  {name:<22}{value}" for name, value in rows.items())])


def _memory(plan: Plan, stage: int) -> str:
    states, activations = plan.states_gb(stage), plan.activations_gb
    total = states + activations
    fits = "" if total < 0.9 * plan.gpu.memory_gb else "; too much: raise batch.micro_batches"
    parts = (
        f"states {states:,.1f} + activations of {plan.clips_per_gpu / plan.micro_batches:g} clips {activations:,.1f}"
    )
    return f"{total:,.1f} of {plan.gpu.memory_gb:.0f} GB per GPU = {parts}{fits}"


def main(argv: list[str]) -> int:
    """Print the plan."""
    if any(word in ("-h", "--help") for word in argv):
        print(__doc__)
        return 0
    options = {"--gpus": "64", "--gpu": "h100", "--mfu": "0.45", "--clips": ""}
    rest = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in options:
            options[name] = value if equals else next(words, "")
        else:
            rest.append(word)
    files, overrides = split_arguments(rest, program="python -m pipeline.plan")
    config = load_config(TrainConfig, files, overrides)
    try:
        num_gpus, mfu = int(options["--gpus"]), float(options["--mfu"])
        num_clips = int(float(options["--clips"])) if options["--clips"] else None
    except ValueError as error:
        raise InputError(f"--gpus, --mfu and --clips take numbers: {error}") from None
    if num_gpus < 1 or not 0 < mfu <= 1:
        raise InputError(f"--gpus must be at least 1 and --mfu in (0, 1], got {num_gpus} and {mfu}")
    plan = make_plan(config, gpu=options["--gpu"], num_gpus=num_gpus, mfu=mfu, num_clips=num_clips)
    print(render(plan, config, options["--gpu"]))
    return 0


if __name__ == "__main__":
    run_command(main)
