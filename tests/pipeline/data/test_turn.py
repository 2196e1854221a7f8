"""Display matrices: all eight ways to lay a rectangle, and what ffmpeg makes of the others."""

import math

import numpy as np
import pytest

from pipeline.data.turn import UPRIGHT, Turn, turn_from_matrix

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def matrix(a: float, b: float, c: float, d: float) -> tuple[int, ...]:
    return (*(round(number * 65536) for number in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)


@pytest.mark.parametrize("scale", [1, 0.5, 3])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("swap", [False, True])
def test_each_pixel_goes_where_the_matrix_says(swap: bool, signs: tuple[int, int], scale: float) -> None:
    first, second = (scale * sign for sign in signs)
    a, b, c, d = (0, first, second, 0) if swap else (first, 0, 0, second)
    shown = turn_from_matrix(matrix(a, b, c, d)).apply(PICTURE)
    places = {
        (y, x): (np.sign(a) * x + np.sign(c) * y, np.sign(b) * x + np.sign(d) * y) for y in range(2) for x in range(3)
    }
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    for (y, x), (shown_x, shown_y) in places.items():
        assert np.array_equal(shown[int(shown_y - top), int(shown_x - left)], PICTURE[y, x])
    assert shown.flags.c_contiguous


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)])
def test_a_matrix_that_says_nothing_turns_nothing(numbers: tuple[int, int, int, int]) -> None:
    assert turn_from_matrix(matrix(*numbers)) == UPRIGHT


@pytest.mark.parametrize(
    ("degrees", "turn"), [(1, UPRIGHT), (45, Turn(degrees=45)), (-10, Turn(degrees=-10)), (90.3, Turn(True, True))]
)
def test_angles_count_in_whole_degrees(degrees: float, turn: Turn) -> None:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    assert turn_from_matrix(matrix(cosine, sine, -sine, cosine)) == turn
