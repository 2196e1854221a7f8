"""Plan a run: `python -m pipeline.plan FILE.yaml... [options] [key=value...]`.

    --gpus 64                 GPUs in all
    --gpu h100                a100, a100-40, a10, l40s, h100, h200, b200, or another by --tflops and --memory-gb
    --tflops N --memory-gb N  dense bf16 peak and memory of the card, by hand
    --mode fast               how the step runs, where it shall not be as the config says: eager, compiled, fast
    --mfu 0.45                share of the peak that is reached, in place of measured steps
    --clips N                 clips of an epoch, where the shards are not there to be counted
    --gpus-per-node 8 --node-gb-s 450 --network-gb-s 50 --overlap 0.5
                              links of a GPU inside a node and between nodes, one way; hidden share of the traffic
    --speeds FILE             further measured steps: results of `python -m benchmarks.gpu`, or `points` as in
                              pipeline/planning/measured_speeds.yaml

Answers before anything is spent: parameters, operations, time of a step, memory under every ZeRO stage, traffic between
GPUs, loader cores, storage and bandwidth, hours and GPU-hours. Steps were measured on named hardware at a named date;
what was not is called assumed. Shard sets that are not there yet count by their published sizes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import load_config, split_arguments
from pipeline.errors import InputError, run_command
from pipeline.log import quiet

with quiet():
    import torch

    from pipeline.engine_config import EngineConfig
    from pipeline.flops import GPUS, ClipWork, Gpu
    from pipeline.losses.terms import TERMS, TEXTS, kinds_of
    from pipeline.model.clip_vip import CLIPViP
    from pipeline.planning.activations import kept_memory
    from pipeline.planning.communication import Links, feature_traffic_bytes, gradient_traffic_bytes
    from pipeline.planning.figures import Plan
    from pipeline.planning.length import length_of
    from pipeline.planning.memory import buffer_bytes, state_bytes_per_parameter
    from pipeline.planning.published_sets import PUBLISHED_SETS
    from pipeline.planning.speeds import Speed, Speeds, Wanted, estimate, read_speeds
    from pipeline.planning.text import BYTES_PER_CLIP, render
    from pipeline.train_config import TrainConfig

__all__ = [
    "BYTES_PER_CLIP",
    "HDVILA_CLIPS",
    "Options",
    "buffer_bytes",
    "make_plan",
    "render",
    "state_bytes_per_parameter",
]

HDVILA_CLIPS = PUBLISHED_SETS["hdvila"].clips
"""Usable clips of HD-VILA-100M."""


@dataclass(frozen=True)
class Options:
    """What a plan is made for, beside the config of the run."""

    gpu: str = "h100"
    num_gpus: int = 64
    tflops: float | None = None
    """Of the card, dense bf16; None: by its name."""
    memory_gb: float | None = None
    mode: str | None = None
    """None: as the config says."""
    mfu: float | None = None
    """None: by measured steps."""
    num_clips: int | None = None
    """None: as the shards have, or the published size of the set."""
    links: Links = field(default_factory=Links)
    speeds: Path | None = None

    @property
    def card(self) -> Gpu:
        """InputError for a name that is unknown, unless both of its figures are given."""
        known = GPUS.get(self.gpu)
        if known is None and (self.tflops is None or self.memory_gb is None):
            raise InputError(
                f"--gpu {self.gpu!r} is unknown; known are {', '.join(sorted(GPUS))}; "
                "plan for another with --tflops (dense bf16) and --memory-gb"
            )
        flops = self.tflops * 1e12 if self.tflops is not None else known.bf16_flops if known else 0.0
        memory_gb = self.memory_gb if self.memory_gb is not None else known.memory_gb if known else 0.0
        return Gpu(flops, memory_gb)


def make_plan(
    config: TrainConfig,
    *,
    gpu: str,
    num_gpus: int,
    mfu: float | None = None,
    num_clips: int | None = None,
    options: Options | None = None,
) -> Plan:
    """The plan of `config`; `options` in place of the four before it. InputError for a GPU that is not known."""
    chosen = options or Options(gpu=gpu, num_gpus=num_gpus, mfu=mfu, num_clips=num_clips)
    data, card = config.data, chosen.card
    with torch.device("meta"):
        model = CLIPViP(config.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    work = ClipWork.of(
        config.model, num_frames=data.num_frames, num_text_tokens=data.num_text_tokens, loss_name=config.loss.name
    )
    clips_per_gpu = config.batch.global_batch_size / chosen.num_gpus
    bytes_per_value = 4 if config.engine.precision == "fp32" else 2
    speeds = read_speeds(chosen.speeds)
    wanted = Wanted(
        gpu=chosen.gpu,
        card=card,
        model=config.model,
        work=work,
        precision=config.engine.precision,
        tf32=config.engine.tf32,
        zero_stage=config.engine.zero_stage,
        mode=chosen.mode or mode_on_gpu(config.engine, model),
    )
    num_texts = sum(kind in TEXTS for kind in kinds_of(TERMS[config.loss.name]))
    traffic = gradient_traffic_bytes(
        parameters,
        num_gpus=chosen.num_gpus,
        zero_stage=config.engine.zero_stage,
        gradient_bytes=2 if config.engine.reduce_dtype == "bf16" else 4,
    ) + feature_traffic_bytes(clips_per_gpu, model.architecture.embed_dim, num_texts, num_gpus=chosen.num_gpus)
    return Plan(
        parameters=parameters,
        work=work,
        length=length_of(config, chosen.num_clips),
        gpu=card,
        num_gpus=chosen.num_gpus,
        clips_per_gpu=clips_per_gpu,
        micro_batches=config.batch.micro_batches,
        micro_step=_micro_step(wanted, clips_per_gpu / config.batch.micro_batches, chosen.mfu, speeds),
        checkpointing=config.model.checkpoint_activations,
        encodes_twice=config.batch.micro_batches > 1 and config.batch.accumulation == "exact",
        traffic_bytes=traffic,
        links=chosen.links,
        bytes_per_value=bytes_per_value,
        kept=kept_memory(wanted, speeds),
        frame_cost=data.num_frames / 12 * (model.image_size_px / 224) ** 2,
    )


def mode_on_gpu(engine: EngineConfig, model: CLIPViP) -> str:
    """How the step of a config runs on a GPU that lacks nothing: eager, compiled or fast."""
    can_gather = engine.zero_stage < 3
    if engine.capture is not False and can_gather and model.why_not_captured() is None:
        return "fast"
    return "compiled" if engine.compile is not False and can_gather else "eager"


def _micro_step(wanted: Wanted, clips: float, mfu: float | None, speeds: Speeds) -> Speed:
    if mfu is None:
        return estimate(wanted, clips, speeds)
    seconds = clips * wanted.work.training_flops / (wanted.card.bf16_flops * mfu)
    return Speed(seconds, False, f"assumed: {mfu:.0%} of the bf16 peak (--mfu)")


def _positive(value: float) -> bool:
    return value > 0


def _count(value: float) -> bool:
    return value >= 1 and value == int(value)


NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "gpus": (_count, "a whole number of at least 1"),
    "clips": (_count, "a whole number of at least 1"),
    "gpus-per-node": (_count, "a whole number of at least 1"),
    "mfu": (lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "overlap": (lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    "tflops": (_positive, "a number above 0"),
    "memory-gb": (_positive, "a number above 0"),
    "node-gb-s": (_positive, "a number above 0"),
    "network-gb-s": (_positive, "a number above 0"),
}
"""Options that take a number: whether it is one of those, and the same in words."""
WORDS = ("gpu", "mode", "speeds")


def main(argv: list[str]) -> int:
    """Print the plan."""
    if any(word in ("-h", "--help") for word in argv):
        print(__doc__)
        return 0
    given, rest = _options(argv)
    files, overrides = split_arguments(rest, program="python -m pipeline.plan")
    config = load_config(TrainConfig, files, overrides)
    options = _parsed(given)
    plan = make_plan(config, gpu=options.gpu, num_gpus=options.num_gpus, options=options)
    if plan.length.unknown:
        raise InputError(plan.length.unknown)
    print(render(plan, config, options.gpu))
    return 0


def _options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """What belongs to the plan, with two dashes or as clips=N, and the rest of the command line."""
    given: dict[str, str] = {}
    rest = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name.removeprefix("--") in (*NUMBERS, *WORDS) and (name.startswith("--") or equals):
            given[name.removeprefix("--")] = value if equals else next(words, "")
        else:
            rest.append(word)
    return given, rest


def _parsed(given: dict[str, str]) -> Options:
    values = {name: _number(name, text) for name, text in given.items() if name in NUMBERS}
    links = Links(
        gpus_per_node=int(values.get("gpus-per-node", Links.gpus_per_node)),
        node_gb_per_s=values.get("node-gb-s", Links.node_gb_per_s),
        network_gb_per_s=values.get("network-gb-s", Links.network_gb_per_s),
        overlap=values.get("overlap", Links.overlap),
    )
    clips = values.get("clips")
    return Options(
        gpu=given.get("gpu", Options.gpu),
        num_gpus=int(values.get("gpus", Options.num_gpus)),
        tflops=values.get("tflops"),
        memory_gb=values.get("memory-gb"),
        mode=given.get("mode"),
        mfu=values.get("mfu"),
        num_clips=None if clips is None else int(clips),
        links=links,
        speeds=Path(given["speeds"]) if "speeds" in given else None,
    )


def _number(name: str, text: str) -> float:
    is_right, words = NUMBERS[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and is_right(value)):
        raise InputError(f"--{name} takes {words}, got {text!r}")
    return value


if __name__ == "__main__":
    run_command(main)
