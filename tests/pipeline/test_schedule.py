"""The schedule against the official values, and its properties."""

import json
from pathlib import Path

import pytest

from pipeline.schedule import learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "data/golden/lr_schedule.json").read_text())


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_equals_the_official_schedule(shape):
    for step, expected in enumerate(GOLDEN[shape]):
        actual = learning_rate(step, total_steps=100, peak=1.0, shape=shape, warmup=0.1, floor=1e-8)
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_without_warmup_the_first_step_is_near_the_peak():
    assert learning_rate(1, total_steps=1000, peak=2.0, shape="cosine", warmup=0.0, floor=0.0) > 1.999


def test_constant_stays_at_the_peak():
    assert learning_rate(100, total_steps=100, peak=2.0, shape="constant", warmup=0.5, floor=0.0) == 2.0


def test_beyond_the_end_stays_at_the_floor():
    assert learning_rate(250, total_steps=100, peak=1.0, shape="linear", warmup=0.1, floor=1e-8) == 1e-8
