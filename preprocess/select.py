"""Which source frames a set of spans needs, as one ffmpeg filter expression.

The source is put on a fine grid first: slot i shows the frame that is on the screen at i / grid_fps (`fps` filter with
round=up). The grid is a whole multiple of the output rate and at least MIN_GRID_FPS, so a clip of n frames takes the
slots a, a+m, ..., a+(n-1)m, and its start is met within half a slot (10 ms): far inside half an output frame interval.

    grid = Grid.for_fps(3.0)                       # 51 slots a second, every 17th one for a clip
    spans = [grid.slots(clip) for clip in clips]
    expression = select_expression(spans)          # 'between(...)*not(mod(...))+...' on the slot number
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from preprocess.records import Clip

MIN_GRID_FPS = 50
_LEAF_SPANS = 8
OPEN_END = 10**12
"""Slot count of a clip that goes to the end of the video."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots first, first+stride, ... (count of them) of one clip."""

    first: int
    stride: int
    count: int

    @property
    def last(self) -> int:
        return self.first + (self.count - 1) * self.stride

    def __contains__(self, slot: int) -> bool:
        return self.first <= slot <= self.last and (slot - self.first) % self.stride == 0


@dataclass(frozen=True, slots=True)
class Grid:
    """A constant-rate clock of `fps * stride` slots a second."""

    fps: Fraction
    """Output frames a second."""
    stride: int
    """Slots from one output frame to the next."""

    @classmethod
    def for_fps(cls, fps: float) -> "Grid":
        rate = Fraction(fps).limit_denominator(1001)
        return cls(rate, max(1, math.ceil(MIN_GRID_FPS / rate)))

    @property
    def grid_fps(self) -> Fraction:
        return self.fps * self.stride

    def slots(self, clip: Clip) -> Slots:
        """The slots of `clip`: round(length * fps) of them, at least one."""
        first = round(clip.start_s * self.grid_fps)
        if clip.end_s is None:
            return Slots(first, self.stride, OPEN_END)
        return Slots(first, self.stride, max(1, round((clip.end_s - clip.start_s) * self.fps)))


def select_expression(spans: Sequence[Slots], grid: Grid) -> str:
    """An expression for ffmpeg's `select` that is non-zero on every slot of `spans`.

    A balanced tree of ifs, so that a video with hundreds of clips costs each frame a few comparisons only.
    """
    slot = f"round(t*{grid.grid_fps.numerator}/{grid.grid_fps.denominator})"
    return f"st(0,{slot})*0+{_tree(sorted(spans, key=lambda span: (span.first, span.last)))}"


def _tree(spans: list[Slots]) -> str:
    if len(spans) > _LEAF_SPANS:
        middle = spans[len(spans) // 2].first
        left = [span for span in spans if span.first < middle]
        right = [span for span in spans if span.last >= middle]
        # Spans that overlap go to both sides: no split that would make the expression longer than it is deep.
        if len(left) + len(right) <= 1.5 * len(spans) and max(len(left), len(right)) <= 0.75 * len(spans):
            return f"if(lt(ld(0),{middle}),{_tree(left)},{_tree(right)})"
    return _sum(
        [f"between(ld(0),{span.first},{span.last})*not(mod(ld(0)-{span.first},{span.stride}))" for span in spans]
    )


def _sum(terms: list[str]) -> str:
    """A balanced sum: ffmpeg's parser nests a plain one by one level a term, and stops at 100."""
    if len(terms) <= _LEAF_SPANS:
        return "+".join(terms)
    half = len(terms) // 2
    return f"({_sum(terms[:half])})+({_sum(terms[half:])})"
