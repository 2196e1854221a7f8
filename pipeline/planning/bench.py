"""Measured steps out of a results file of `python -m benchmarks.gpu`, so that a plan can rest on a card of one's own.

{"machine": {"device": "NVIDIA H100", "date": ..., "torch": ...},
 "cases": {"b32_32_fast": {"kind": "engine", "base": "b32", "clips": 32, "words": [...], "clips_per_s": ...}}}

points_of(results)      # as entries of measured_speeds.yaml
"""

from typing import Any

MODELS = {"b32": "ViT-B-32-quickgelu", "b16": "ViT-B-16-quickgelu"}
SOURCES = {"engine": "engine", "train": "pipeline.train"}
"""Kinds of cases that run the trainer's own step."""


def points_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The training steps among the cases; what failed, was left out or is no step of the trainer is passed over."""
    machine = results["machine"]
    records = [
        record
        for record in results["cases"].values()
        if record["kind"] in SOURCES and record["base"] in MODELS and "clips_per_s" in record
    ]
    default = next((r["zero_stage"] for r in records if "zero_stage" in r and _stage_of(r) is None), None)
    points = []
    for record in records:
        asked = _stage_of(record)
        points.append(
            {
                "gpu": machine["device"],
                "date": machine["date"],
                "torch": machine["torch"],
                "model": MODELS[record["base"]],
                "clips_per_gpu": record["clips"],
                "precision": "bf16",
                "zero_stage": record.get("zero_stage", default if asked is None else asked),
                "mode": _mode_of(record),
                "clips_per_s": record["clips_per_s"],
                "step_ms": 1e3 * record["step_s"],
                "peak_gib": record.get("peak_gib"),
                "source": SOURCES[record["kind"]],
            }
        )
    return points


def _stage_of(record: dict[str, Any]) -> int | None:
    """The ZeRO stage that a case asks for."""
    stages = [word.partition("=")[2] for word in record["words"] if word.startswith("engine.zero_stage=")]
    return int(stages[-1]) if stages else None


def _mode_of(record: dict[str, Any]) -> str:
    words = record["words"]
    if "engine.capture=false" not in words:
        return "fast"
    return "eager" if "engine.compile=false" in words else "compiled"
