"""What the clock says, on a clock of our own."""

import pytest
import torch

from pipeline import meters
from pipeline.meters import ForwardTimer, OwnTime, StepClock, Work, console_line


@pytest.fixture
def now(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: time[0])
    return time


def test_rates_median_worst_and_wait(now):
    clock = StepClock(torch.device("cpu"))
    for data_s, work_s in ((1.0, 1.0), (0.0, 3.0), (0.0, 5.0)):
        clock.start()
        now[0] += data_s
        clock.mark("data")
        now[0] += work_s
        clock.mark("gradient")
        clock.stop()
        now[0] += 100.0  # an evaluation between two steps is no part of them
    mine = OwnTime(data_s=1.0, forward_s=0.0)
    found = clock.summary(20, Work(tokens_per_clip=7, flops_per_clip=3.0, peak_flops=60.0), [mine])
    assert found["speed/clips_per_s"] == pytest.approx(6.0)
    assert found["speed/tokens_per_s"] == pytest.approx(42.0)
    assert found["speed/mfu"] == pytest.approx(0.3)
    assert found["speed/step_median_s"] == 3.0
    assert found["speed/step_worst_s"] == 5.0
    assert found["speed/data_wait"] == pytest.approx(0.1)
    assert found["time/gradient_s"] == pytest.approx(3.0)
    assert found["memory/peak_gb"] > 0
    assert "speed/slowest_rank" not in found, "there is one rank"
    assert clock.summary(20, Work(7, 3.0, None), [mine]) == {}


def test_the_slowest_rank_is_named_and_the_longest_wait_for_data_is_shown(now):
    clock, timer = StepClock(torch.device("cpu")), ForwardTimer(torch.device("cpu"))
    clock.start()
    now[0] += 1.0
    clock.mark("data")
    with timer:
        now[0] += 2.0
    now[0] += 5.0  # waiting for the others
    clock.mark("gradient")
    clock.stop()
    mine = OwnTime(data_s=1.0, forward_s=timer.take())
    assert mine.forward_s == 2.0
    assert timer.take() == 0.0, "taken once"
    found = clock.summary(20, Work(7, 3.0, None), [mine, OwnTime(0.5, 2.5), OwnTime(4.0, 2.0), mine])
    assert (found["speed/slowest_rank"], found["speed/slowest_ratio"]) == (2, 2.0)
    assert found["speed/data_wait"] == pytest.approx(4.0 / 8.0)


def test_the_console_line_shows_what_there_is():
    line = console_line(20, 900, {"train/loss": 12.5, "train/lr": 1e-3, "speed/clips_per_s": 260.4, "other": 1.0})
    assert line == "step 20/900  loss 12.5000  lr 1.00e-03  260 clips/s"
