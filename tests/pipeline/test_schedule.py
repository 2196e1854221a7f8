"""The schedule against the official values, against the official rule written down a second time, and its edges."""

import json
import math
from pathlib import Path

import pytest

from pipeline.optim import OptimConfig
from pipeline.schedule import Shape, learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "data/golden/lr_schedule.json").read_text())


def official(step: int, steps: int, ratio: float, shape: str) -> float:
    """The released code: whole steps of warm-up; 1e-8 stands for a rate that would be 0 or less."""
    warmup_steps = int(ratio * steps)
    if step < warmup_steps:
        factor = step / warmup_steps
    elif shape == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
    else:
        factor = (steps - step) / (steps - warmup_steps)
    return factor if factor > 0 else 1e-8


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_equals_the_official_schedule(shape: Shape) -> None:
    for step, expected in enumerate(GOLDEN[shape]):
        actual = learning_rate(step, total_steps=100, peak=1.0, shape=shape, warmup=0.1, floor=1e-8)
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 99, 100, 101, 997])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.05, 0.07, 0.1, 0.29, 1 / 3, 0.5, 0.999])
def test_equals_the_official_rule_where_the_ratio_does_not_divide(ratio: float, steps: int, shape: Shape) -> None:
    for step in range(steps + 1):
        actual = learning_rate(step, total_steps=steps, peak=1.0, shape=shape, warmup=ratio, floor=1e-8)
        assert actual == pytest.approx(official(step, steps, ratio, shape), rel=1e-12, abs=1e-15), step


def test_thirty_steps_with_a_warm_up_of_a_twentieth() -> None:
    """int(0.05 * 30) = 1: step 0 would be 0, step 1 is at the peak already (not at 2/3 of it)."""
    config = OptimConfig(lr=1e-3, warmup=0.05)
    assert config.lr_at(0, 30) == 1e-8
    assert config.lr_at(1, 30) == 1e-3
    assert config.lr_at(2, 30) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi / 29)), rel=1e-12)


def test_small_rates_are_left_alone() -> None:
    """Only a rate of 0 is replaced: peak 5e-6 passes below 1e-8 in its last steps, and at the start of warm-up."""
    config = OptimConfig(lr=5e-6, warmup=0.1)
    rates = [config.lr_at(step, 10_000) for step in range(1, 10_001)]
    assert 0 < rates[0] == pytest.approx(5e-9)
    assert 0 < rates[-2] < 1e-8
    assert rates[-1] == 1e-8


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_warm_up_over_all_steps_ends_at_the_peak(shape: Shape) -> None:
    rates = [learning_rate(step, total_steps=4, peak=2.0, shape=shape, warmup=1.0, floor=1e-8) for step in range(1, 6)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_run_of_one_step_is_its_last(shape: Shape) -> None:
    assert learning_rate(1, total_steps=1, peak=1.0, shape=shape, warmup=0.5, floor=1e-8) == 1e-8


def test_without_warmup_the_first_step_is_near_the_peak() -> None:
    assert learning_rate(1, total_steps=1000, peak=2.0, shape="cosine", warmup=0.0, floor=0.0) > 1.999


def test_constant_stays_at_the_peak() -> None:
    assert learning_rate(100, total_steps=100, peak=2.0, shape="constant", warmup=0.5, floor=0.0) == 2.0


def test_beyond_the_end_stays_at_the_floor() -> None:
    assert learning_rate(250, total_steps=100, peak=1.0, shape="linear", warmup=0.1, floor=1e-8) == 1e-8
