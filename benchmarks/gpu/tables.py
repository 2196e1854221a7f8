"""A results file as the tables of RESULTS.md, and the plot of two trainings.

print(render(json.loads(path.read_text())))
plot_losses(results, Path("losses.png"))          # needs matplotlib
"""

from pathlib import Path
from typing import Any

Results = dict[str, Any]
_NAMES = {
    "engine": "engine, batch on the device",
    "train": "`pipeline.train`, Motion JPEG shards",
    "reference": "reference (`benchmarks.gpu_reference`)",
    "dense": "official mathematics, dense and eager",
    "encode": "encoding, video tower alone",
}


def render(results: Results) -> str:
    """Markdown: the machine, a row per case, the trainer beside reference and engine, what was left out."""
    machine, records = results["machine"], results["cases"]
    versions = f"torch {machine['torch']}, Python {machine['python']}, {machine['cpu_cores']} CPU cores"
    task = "final loss, 12 frames of 224 px, texts up to 70 tokens, bf16 (`python3 -m benchmarks.gpu`)"
    lines = [
        f"{machine['date']}, {machine['device']}, {versions}; {task}.",
        "",
        "| case | clips | ms a step (quartiles) | clips/s | MFU | peak GiB | first step |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(name, record) for name, record in records.items() if "step_s" in record and record["kind"] != "loss"]
    lines += ["", *_ratios(records)]
    for name, record in records.items():
        if record["kind"] == "loss" and "step_s" in record:
            beyond = record["beyond_features_gib"]
            memory = "" if beyond is None else f", {beyond * 1024:.0f} MiB beyond the features"
            lines.append(f"Loss of {record['clips']:,} clips ({name}): {record['step_s'] * 1e3:.1f} ms{memory}.")
    lines += [f"{name}: failed, {record['error']}" for name, record in records.items() if "error" in record]
    if results["left_out"]:
        lines.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in results["left_out"].items()) + ".")
    return "\n".join(lines) + "\n"


def _row(name: str, record: Results) -> str:
    base = {"b32": "B/32", "b16": "B/16"}.get(record["base"], record["base"])
    spread = f" ({record['step_low_s'] * 1e3:.1f}-{record['step_high_s'] * 1e3:.1f})" if "step_low_s" in record else ""
    cells = [
        f"{base}, {_NAMES.get(record['kind'], record['kind'])}, {name}",
        str(record["clips"]),
        f"{record['step_s'] * 1e3:.1f}{spread}",
        f"{record['clips_per_s']:.0f}",
        _shown(record.get("mfu"), "{:.1%}"),
        _shown(record.get("peak_gib"), "{:.1f}"),
        _shown(record.get("first_s"), "{:.1f} s"),
    ]
    return "| " + " | ".join(cells) + " |"


def _shown(value: float | None, template: str) -> str:
    return "" if value is None else template.format(value)


def _ratios(records: Results) -> list[str]:
    """The trainer against the reference and against its own engine, where all were measured."""
    lines = ["| trainer | clips/s | of the reference | of its engine |", "|---|---:|---:|---:|"]
    for name, record in records.items():
        if record["kind"] != "train" or "clips_per_s" not in record:
            continue
        others = [records.get(name.replace("_train", end), {}) for end in ("_reference", "_fast")]
        shares = [record["clips_per_s"] / other["clips_per_s"] if "clips_per_s" in other else None for other in others]
        cells = [name, f"{record['clips_per_s']:.0f}", *(_shown(share, "{:.2f}") for share in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""] if len(lines) > 2 else []


def plot_losses(results: Results, path: Path) -> None:
    """The losses of `losses_fast` and `losses_eager` in one plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, record in results["cases"].items():
        if record["kind"] == "losses" and "losses" in record:
            pyplot.plot(range(1, len(record["losses"]) + 1), record["losses"], label=name.removeprefix("losses_"))
    pyplot.xlabel("step")
    pyplot.ylabel("loss")
    pyplot.legend()
    pyplot.savefig(path, dpi=120)
    pyplot.close()
