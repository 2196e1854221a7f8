"""Plan a run: `python -m pipeline.plan FILE.yaml... [--gpus 64] [--gpu h100] [--mfu 0.45] [--clips N] [key=value...]`.

Answers before anything is spent: parameters, operations per clip, memory per GPU under every ZeRO stage, loader cores,
storage and bandwidth, hours and GPU-hours. Operations and memory follow from shapes; the share of the peak that is
reached (--mfu) and what a clip costs to store and decode are assumptions, printed beside the results. So is the size of
the shard set while it is not there to be counted: HD-VILA-100M, unless --clips says otherwise.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import load_config, split_arguments
from pipeline.errors import InputError, run_command
from pipeline.log import quiet

with quiet():
    import torch

    from pipeline.data.manifest_file import manifest_facts
    from pipeline.data.schedule import Schedule
    from pipeline.data.stream import DataConfig, Stream
    from pipeline.engine_config import REDUCE_BUCKET_ELEMENTS
    from pipeline.flops import GPUS, ClipWork, Gpu
    from pipeline.model.clip_vip import CLIPViP
    from pipeline.train_config import TrainConfig

DECODE_S_PER_CLIP = 4.3e-3
"""One core, 12 MJPEG frames of 224 px from memory (measured; proportional to frames and pixels)."""
BYTES_PER_CLIP = 430_000
"""MJPEG at 224 px and 3 frames a second, mean clip of 13.4 s (measured between 355 and 500 KB)."""
HDVILA_CLIPS = 92_000_000
"""Usable clips of HD-VILA-100M."""


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps: int
    clips: float
    """Of all steps."""
    stored_clips: int | None
    """Of the shard sets; None where they are not there and no other figure depends on them."""
    condition: str
    """What the figures rest on where the data could not be counted, in words that go on a sentence."""


@dataclass(frozen=True)
class Plan:
    """The figures of one run on `num_gpus` GPUs."""

    parameters: int
    work: ClipWork
    length: Length
    gpu: Gpu
    num_gpus: int
    mfu: float
    clips_per_gpu: float
    checkpointing: bool
    micro_batches: int
    encodes_twice: bool
    """Exact accumulation: features first, then each part again."""
    bytes_per_value: int
    """Of an activation: 2 in bf16 and fp16."""
    frame_cost: float
    """Decoding and storing, relative to 12 frames of 224 px."""

    @property
    def clips_per_s(self) -> float:
        """Over all GPUs."""
        return self.num_gpus * self.gpu.bf16_flops * self.mfu / (self.work.training_flops * self.extra_forward)

    @property
    def extra_forward(self) -> float:
        """Time over one forward and backward: a forward pass more for each way of recomputing."""
        return 1 + (int(self.checkpointing) + int(self.encodes_twice)) / 3

    @property
    def hours(self) -> float:
        """Of the run."""
        return self.length.clips / self.clips_per_s / 3600

    def states_gb(self, stage: int) -> float:
        """Parameters, gradients, optimizer and DeepSpeed's buffers per GPU."""
        states = self.parameters * state_bytes_per_parameter(stage, self.num_gpus)
        return (states + buffer_bytes(stage, self.num_gpus, self.parameters)) / 1e9

    @property
    def activations_gb(self) -> float:
        """Per GPU, and copies of the weights in half precision; with checkpointing only the input of each layer."""
        per_clip = self.work.activation_bytes(self.bytes_per_value)
        if self.checkpointing:
            per_clip = sum(4 * each.tokens * each.width * each.layers for each in self.work.sequences)
        copies = 2 * self.parameters if self.bytes_per_value == 2 else 0
        return (per_clip * self.clips_per_gpu / self.micro_batches + copies) / 1e9


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
    """What reducing takes beside the gradients: ZeRO 0 all of them once more, else a bucket and what waits for it.

    ZeRO 1 and 2 fill a second bucket while the first is reduced.
    """
    waiting = min(REDUCE_BUCKET_ELEMENTS, parameters) if stage in (1, 2) else 0
    buckets = (1 + (stage < 3)) * REDUCE_BUCKET_ELEMENTS
    elements = buckets + waiting if stage > 0 else parameters * (world_size > 1)
    return 4 * elements


def make_plan(config: TrainConfig, *, gpu: str, num_gpus: int, mfu: float, num_clips: int | None) -> Plan:
    """The plan of `config`. InputError for an unknown GPU, or when the number of clips cannot be known."""
    if gpu not in GPUS:
        raise InputError(f"--gpu {gpu!r} is unknown; known are {', '.join(sorted(GPUS))}")
    data = config.data
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
        length=length_of(config, num_clips),
        gpu=GPUS[gpu],
        num_gpus=num_gpus,
        mfu=mfu,
        clips_per_gpu=config.batch.global_batch_size / num_gpus,
        checkpointing=config.model.checkpoint_activations,
        micro_batches=config.batch.micro_batches,
        encodes_twice=config.batch.micro_batches > 1 and config.batch.accumulation == "exact",
        bytes_per_value=4 if config.engine.precision == "fp32" else 2,
        frame_cost=data.num_frames / 12 * (model.image_size_px / 224) ** 2,
    )


def length_of(config: TrainConfig, num_clips: int | None) -> Length:
    """Steps and clips of the run: of the shard sets as the stream counts them, or of one set of `num_clips`."""
    batch_size = config.batch.global_batch_size
    stored, condition = num_clips, ""
    if num_clips is None and _are_here(config.data):
        stored = sum(manifest_facts(source.shards)["num_samples"] for source in config.data.sources)
        in_epochs = _stream(config).batches_in(config.epochs) if config.epochs else 0
    else:
        schedule = Schedule([num_clips or HDVILA_CLIPS], [1.0], config.data.epoch_end)
        in_epochs = schedule.batches_in(config.epochs or 0, batch_size)
        if num_clips is None and config.epochs:
            missing = ", ".join(source.shards for source in config.data.sources)
            stored = HDVILA_CLIPS
            condition = f", if an epoch has the {HDVILA_CLIPS:,} clips of HD-VILA-100M: {missing} cannot be counted yet"
    steps = config.steps or in_epochs
    return Length(steps, steps * batch_size, stored, condition)


def _are_here(data: DataConfig) -> bool:
    """Whether every shard set can be counted; object stores are asked, not listed."""
    return all("://" in source.shards or (Path(source.shards) / "manifest.parquet").exists() for source in data.sources)


def _stream(config: TrainConfig) -> Stream:
    """The stream of the run, for its counts alone."""
    return Stream(
        config.data, global_batch_size=config.batch.global_batch_size, image_size_px=1, tokenize=_no_tokens, seed=0
    )


def _no_tokens(texts: list[str]) -> torch.Tensor:
    raise AssertionError("a plan reads no text")


def render(plan: Plan, config: TrainConfig, gpu: str) -> str:
    """The plan for people."""
    per_gpu = plan.clips_per_s / plan.num_gpus
    clip_ms, clip_bytes = DECODE_S_PER_CLIP * plan.frame_cost * 1e3, BYTES_PER_CLIP * plan.frame_cost
    length = plan.length
    stored = f"{_scaled(length.stored_clips * clip_bytes)}B of shards" if length.stored_clips else "not known"
    recomputed = f", times {plan.extra_forward:.2f} with recomputation" if plan.extra_forward > 1 else ""
    batch = f"batch {config.batch.global_batch_size}"
    rows = {
        "parameters": f"{plan.parameters / 1e6:,.1f} M",
        "tokens per clip": f"{plan.work.vision_tokens:,} vision, {plan.work.text_tokens} text",
        "operations per clip": f"{_scaled(plan.work.training_flops)}FLOP forward and backward{recomputed}",
        "clips in the run": f"{length.clips:,.0f} ({length.steps:,} steps){length.condition}",
        "GPUs": f"{plan.num_gpus} x {gpu} at {plan.mfu:.0%} of the bf16 peak (assumed; --mfu)",
        "speed": f"{plan.clips_per_s:,.0f} clips/s, {per_gpu:,.0f} per GPU",
        "time": f"{_hours(plan.hours)} hours, {_hours(plan.hours * plan.num_gpus)} GPU-hours",
        "loader": f"{per_gpu * clip_ms / 1e3:.1f} cores per GPU at {clip_ms:.1f} ms a clip",
        "storage": f"{stored} at {_scaled(clip_bytes)}B a clip",
        "reading": f"{_scaled(plan.clips_per_s * clip_bytes)}B/s, {_scaled(per_gpu * clip_bytes)}B/s per GPU",
    } | {f"memory, ZeRO {stage}": _memory(plan, stage) for stage in range(4)}
    model = config.model.name if config.model.architecture is None else "model.architecture"
    title = f"{config.name}: {model}, {config.data.num_frames} frames, loss {config.loss.name}, {batch}"
    return "\n".join([title, *(f"  {name:<22}{value}" for name, value in rows.items())])


def _scaled(value: float) -> str:
    """Three digits and a decimal prefix.

    >>> _scaled(39.56e12), _scaled(430_000), _scaled(7), _scaled(1402e9)
    ('39.6 T', '430 K', '7 ', '1,402 G')
    """
    for size, prefix in ((1e13, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            size = min(size, 1e12)
            return f"{value / size:,.{1 if value < 100 * size else 0}f} {prefix}"
    return f"{value:.0f} "


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2g}"


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
