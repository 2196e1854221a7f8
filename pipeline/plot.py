"""Draw the curves of one or several runs: `python -m pipeline.plot RUN... [output=FILE.png] [smooth=50]`.

A panel each for the loss, recall on every held-out set, gradient norm, learning rate, clips/s and data wait; what no
run logged has no panel. Reads `metrics.jsonl` only, also of a run that is still going.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Section, load_config, render_help
from pipeline.errors import InputError, run_command
from pipeline.log import read_metrics

PROGRAM = "python -m pipeline.plot RUN..."
ABOUT = "Draw loss, recall and speed of one or several runs as a PNG."
PANELS = {
    "train/loss": "training loss",
    "eval/*/t2v_r1": "text to video R@1, %",
    "eval/*/v2t_r1": "video to text R@1, %",
    "train/grad_norm": "gradient norm",
    "train/lr": "learning rate",
    "speed/clips_per_s": "clips/s",
    "speed/data_wait": "data wait, % of the step",
}
"""Key of the metrics file, `*` for the name of a held-out set -> title of its panel."""
PERCENT = ("_r1", "data_wait")
RUNS_FOLDER = Path("runs")


class PlotConfig(Section):
    """What is drawn."""

    output: Path | None = None
    """The PNG; null: curves.png in the folder of the first run."""
    smooth: int = Field(default=0, ge=0)
    """Logged values that a curve of the loss is averaged over; 0: a fortieth of them."""


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    steps: list[int]
    values: list[float]


def main(argv: list[str]) -> int:
    """Draw, and say where the picture lies."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(render_help(PlotConfig, program=PROGRAM, about=ABOUT))
        return 0 if argv else 2
    config = load_config(PlotConfig, [], [word for word in argv if "=" in word])
    runs = [find_run(word) for word in argv if "=" not in word]
    if not runs:
        raise InputError(f"no run is named; usage: {PROGRAM} [output=FILE.png]")
    target = config.output or runs[0] / "curves.png"
    if target.suffix.lower() != ".png":
        raise InputError(f"output={target} is no PNG; give it the suffix .png")
    draw({run.name: read_metrics(run / "metrics.jsonl") for run in runs}, target, config.smooth)
    print(f"{target}: {', '.join(run.name for run in runs)}")
    return 0


def find_run(word: str) -> Path:
    """A run folder, or the name of one below runs/, with a metrics file."""
    for folder in (Path(word), RUNS_FOLDER / word):
        if (folder / "metrics.jsonl").is_file():
            return folder
    raise InputError(f"no run at {word}: neither a run folder with a metrics.jsonl nor a name below {RUNS_FOLDER}/")


def draw(runs: dict[str, list[dict[str, Any]]], target: Path, smooth: int = 0) -> None:
    """Write the panels of all runs (name -> rows of their metrics) to `target`. InputError when nothing was logged."""
    panels = {title: curves_of(runs, key) for key, title in PANELS.items()}
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        raise InputError(f"{', '.join(runs)}: no step was logged yet, so there is nothing to draw")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5 * columns, 3.2 * lines), squeeze=False, layout="constrained"
    )
    for place, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        draw_panel(place, title, curves, smooth)
    for place in axes.flat[len(panels) :]:
        place.axis("off")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=100)
    pyplot.close(figure)


def draw_panel(axes: Any, title: str, curves: Sequence[Curve], smooth: int) -> None:
    """One quantity over the steps; a noisy loss pale, its running mean strong."""
    for number, curve in enumerate(curves):
        colour = f"C{number % 10}"
        steps, values = curve.steps, curve.values
        if title == PANELS["train/loss"]:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            steps, values = running_mean(steps, values, smooth or max(1, len(values) // 40))
        marker = "." if len(values) < 30 else ""
        axes.plot(steps, values, color=colour, marker=marker, label=curve.label)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8)


def curves_of(runs: dict[str, list[dict[str, Any]]], pattern: str) -> list[Curve]:
    """The curves of one quantity: one a run, or one a run and held-out set. NaN and Inf are left out."""
    before, _, after = pattern.partition("*")
    curves = []
    for name, rows in runs.items():
        keys = {key for row in rows for key in row if key == pattern or (after and _fits(key, before, after))}
        for key in sorted(keys):
            factor = 100.0 if key.endswith(PERCENT) else 1.0
            # A step that was logged again after a resume counts once, as it was logged last.
            found = {row["step"]: row[key] * factor for row in rows if _is_finite(row.get(key))}
            steps = sorted(found)
            label = f"{name}, {key.removeprefix(before).removesuffix(after)}" if after else name
            if steps:
                curves.append(Curve(label, steps, [found[step] for step in steps]))
    return curves


def _fits(key: str, before: str, after: str) -> bool:
    return key.startswith(before) and key.endswith(after) and len(key) > len(before) + len(after)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def running_mean(steps: list[int], values: list[float], span: int) -> tuple[list[int], list[float]]:
    """Mean of the last `span` values at each step from the first full span on; the values themselves where too few.

    >>> running_mean([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], 2)
    ([2, 3, 4], [2.0, 4.0, 6.0])
    """
    if span < 2 or len(values) < span:
        return steps, values
    means = [sum(values[end - span : end]) / span for end in range(span, len(values) + 1)]
    return steps[span - 1 :], means


if __name__ == "__main__":
    run_command(main)
