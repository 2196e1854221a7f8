"""A histogram of similarities as SVG: those of true pairs over those of all other pairs, each scaled to its own height.

svg = similarity_histogram(true_scores, other_scores)
"""

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 60
WIDTH, HEIGHT, BASE = 760, 172, 150
TRUE_COLOUR, OTHER_COLOUR = "#1f8a4c", "#9aa4b2"
NUM_TICKS = 7


def similarity_histogram(true: NDArray[np.floating], other: NDArray[np.floating]) -> str:
    """The SVG with axis and legend; `other` may be empty (a gallery of one video)."""
    everything = np.concatenate([true, other])
    low, high = float(everything.min()), float(everything.max()) + 1e-6
    bars = [_bars(other, low, high, OTHER_COLOUR, 0.75), _bars(true, low, high, TRUE_COLOUR, 0.6)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="similarities of true and of other pairs">'
        f"{''.join(bars)}{_axis(low, high)}{_legend(0, OTHER_COLOUR, 'other pairs', other)}"
        f"{_legend(1, TRUE_COLOUR, 'true pairs', true)}</svg>"
    )


def _bars(scores: NDArray[np.floating], low: float, high: float, colour: str, opacity: float) -> str:
    counts = np.histogram(scores, bins=NUM_BINS, range=(low, high))[0]
    width, top = WIDTH / NUM_BINS, max(int(counts.max()), 1)
    heights = [(BASE - 10) * count / top for count in counts.tolist()]
    return "".join(
        f'<rect x="{number * width:.1f}" y="{BASE - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}" '
        f'fill="{colour}" fill-opacity="{opacity}"/>'
        for number, height in enumerate(heights)
        if height
    )


def _axis(low: float, high: float) -> str:
    """The base line with round values below it."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > NUM_TICKS:
        step *= 2
    ticks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    marks = [(WIDTH * (tick - low) / (high - low), f"{tick + 0.0:.3g}") for tick in ticks.tolist()]
    labels = "".join(
        f'<line x1="{x:.1f}" y1="{BASE}" x2="{x:.1f}" y2="{BASE + 5}" stroke="#555"/>'
        f'<text x="{x:.1f}" y="{BASE + 19}" font-size="12" text-anchor="middle" fill="#555">{label}</text>'
        for x, label in marks
        if 12 < x < WIDTH - 12
    )
    return f'<line x1="0" y1="{BASE}" x2="{WIDTH}" y2="{BASE}" stroke="#555"/>{labels}'


def _legend(line: int, colour: str, name: str, scores: NDArray[np.floating]) -> str:
    mean = f", mean {float(np.mean(scores)):.2f}" if len(scores) else ""
    y = 12 + 18 * line
    return (
        f'<rect x="4" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        f'<text x="20" y="{y}" font-size="12" fill="#222">{len(scores):,} {name}{mean}</text>'
    )
