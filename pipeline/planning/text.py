"""A plan as lines for people, every figure with its unit and with what is assumed about it.

print(render(plan, config, "h100"))
"""

from pipeline.planning.figures import Plan
from pipeline.planning.units import bytes_text, cores_text, count_text, duration_text, si_text
from pipeline.train_config import TrainConfig

DECODE_S_PER_CLIP = 4.3e-3
"""One core, 12 MJPEG frames of 224 px from memory (measured; proportional to frames and pixels)."""
BYTES_PER_CLIP = 430_000
"""MJPEG at 224 px and 3 frames a second, mean clip of 13.4 s (measured between 355 and 500 KB)."""


def render(plan: Plan, config: TrainConfig, gpu: str) -> str:
    """The plan for people."""
    per_gpu = plan.clips_per_s / plan.num_gpus
    clip_s, clip_bytes = DECODE_S_PER_CLIP * plan.frame_cost, BYTES_PER_CLIP * plan.frame_cost
    length = plan.length
    stored = f"{bytes_text(length.stored_clips * clip_bytes)} of shards" if length.stored_clips else "not known"
    mfu = per_gpu * plan.work.training_flops / plan.gpu.bf16_flops
    peak = plan.gpu.bf16_flops / 1e12
    mfu_text = "under 0.1%" if mfu < 1e-3 else f"{mfu:.1%}"
    rows = {
        "parameters": f"{plan.parameters / 1e6:,.1f} M",
        "tokens per clip": f"{plan.work.vision_tokens:,} vision, {plan.work.text_tokens} text",
        "operations per clip": f"{si_text(plan.work.training_flops)}FLOP forward and backward{_recomputed(plan)}",
        "clips in the run": length.unknown or f"{length.clips:,.0f} ({length.steps:,} steps){length.condition}",
        "GPUs": f"{plan.num_gpus} x {gpu} at {peak:,.0f} TFLOP/s (dense bf16 peak), {plan.gpu.memory_gb:g} GB",
        "step": f"{_milliseconds(plan.step_s)} of {plan.clips_per_gpu:g} clips per GPU, {mfu_text} MFU",
        "computing": _computing(plan),
        "communication": _communication(plan),
        "speed": f"{count_text(plan.clips_per_s)} clips/s, {count_text(per_gpu)} per GPU",
        "time": _time(plan),
        "loader": f"{cores_text(per_gpu * clip_s)} per GPU at {_milliseconds(clip_s)} a clip",
        "storage": f"{stored} at {bytes_text(clip_bytes)} a clip",
        "reading": f"{bytes_text(plan.clips_per_s * clip_bytes)}/s, {bytes_text(per_gpu * clip_bytes)}/s per GPU",
    } | {f"memory, ZeRO {stage}": _memory(plan, stage) for stage in range(4)}
    model = config.model.name if config.model.architecture is None else "model.architecture"
    batch = f"batch {config.batch.global_batch_size}"
    title = f"{config.name}: {model}, {config.data.num_frames} frames, loss {config.loss.name}, {batch}"
    return "\n".join([title, *(f"  {name:<22}{value}" for name, value in rows.items())])


def _recomputed(plan: Plan) -> str:
    return f", times {plan.extra_forward:.2f} with recomputation" if plan.extra_forward > 1 else ""


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return "under 0.01 ms" if value < 0.01 else f"{count_text(value)} ms"


def _computing(plan: Plan) -> str:
    seconds = plan.micro_batches * plan.micro_step.seconds * plan.extra_forward
    parts = f" in {plan.micro_batches} micro-batches" if plan.micro_batches > 1 else ""
    return f"{_milliseconds(seconds)}{parts}, {plan.micro_step.basis}"


def _communication(plan: Plan) -> str:
    if plan.num_gpus == 1:
        return "none on one GPU"
    links, spans = plan.links, plan.num_gpus > plan.links.gpus_per_node
    where = "between nodes, --network-gb-s" if spans else "inside a node, --node-gb-s"
    return (
        f"{_milliseconds(plan.traffic_s)} for {bytes_text(plan.traffic_bytes)} per GPU at "
        f"{links.gb_per_s(plan.num_gpus):g} GB/s (assumed; {where}), {links.overlap:.0%} of it hidden "
        f"(assumed; --overlap): {_milliseconds(plan.traffic_s * (1 - links.overlap))} a step"
    )


def _time(plan: Plan) -> str:
    if not plan.length.steps:
        return "not known"
    seconds = plan.hours * 3600
    gpu_hours = plan.hours * plan.num_gpus
    return f"{duration_text(seconds)}, {'under 0.1' if gpu_hours < 0.1 else count_text(gpu_hours)} GPU-hours"


def _memory(plan: Plan, stage: int) -> str:
    total, activations = plan.peak_gb(stage), plan.activations_gb
    num_clips = plan.clips_per_gpu / plan.micro_batches
    clips = f"{num_clips:g} clip{'s' * (num_clips != 1)}"
    kept_gb = bytes_text(activations * 1e9)
    kept = "measured" if plan.kept.is_measured else "assumed"
    if total > plan.resident_gb(stage) + activations:
        parts = f"at the update; activations of {clips}, {kept_gb}, before"
    else:
        parts = f"states {bytes_text(plan.resident_gb(stage) * 1e9)} + activations of {clips} {kept_gb} ({kept})"
    fits = "" if total < 0.9 * plan.gpu.memory_gb else "; too much: raise batch.micro_batches"
    return f"{bytes_text(total * 1e9)} of {plan.gpu.memory_gb:g} GB per GPU = {parts}{fits}"
