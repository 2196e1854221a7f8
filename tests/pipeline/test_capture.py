"""Captured towers by their stand-in: fixed places with NaN in them, in which every mistake of reuse shows."""

import gc
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline import capture
from pipeline.acceleration import Way, choose_way
from pipeline.capture import CapturedTower, StandInPass
from pipeline.engine_config import EngineConfig
from pipeline.errors import InputError
from pipeline.flat_gradients import FlatGradients
from pipeline.log import logger
from tests.pipeline.tiny import make_batch, make_model


class Pair(nn.Module):
    """Two towers whose gradients can be told by hand: the output is the input times a weight, summed over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Scale(), Scale()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.tensor(5.0))

    def forward(self, rows_BN: Tensor) -> Tensor:
        return (rows_BN * self.weight).sum(1, keepdim=True)


@pytest.fixture(params=[True, False], ids=["flat", "handed_over"])
def towers(request: pytest.FixtureRequest) -> tuple[Pair, CapturedTower]:
    """ZeRO 0, where a pass adds to the flat gradients, and ZeRO 1 and 2, where autograd gets them."""
    pair = Pair()
    gradients = FlatGradients(pair, torch.float32) if request.param else None
    return pair, CapturedTower("first", pair.first, StandInPass, gradients)


def rows(value: float, num_rows: int = 1) -> Tensor:
    return torch.full((num_rows, 1), value)


def test_gradients_add_up_over_backward_passes(towers):
    """Kept by reference they would be 20, 40, 60: the places of the last pass, as often as there were passes."""
    pair, _ = towers
    seen = []
    for value in (11.0, 11.0, 11.0):
        pair.first(rows(value)).sum().backward()
        seen.append(pair.first.weight.grad.item())
    assert seen == [11.0, 22.0, 33.0]
    assert not pair.first.unused.grad  # a parameter without a part in the output: zero, not what lay in its place


def test_a_use_in_flight_is_not_overwritten_by_the_next(towers):
    pair, tower = towers
    one, other = pair.first(rows(3.0)), pair.first(rows(5.0))
    assert (one.item(), other.item()) == (6.0, 10.0)
    assert tower.num_in_flight == 2
    (one * 10).sum().backward()
    assert pair.first.weight.grad.item() == 30.0
    other.sum().backward()
    assert pair.first.weight.grad.item() == 35.0
    assert (one.item(), other.item()) == (6.0, 10.0)  # features are the caller's
    assert (tower.num_in_flight, tower.num_passes) == (0, 2)
    for _ in range(3):
        (pair.first(rows(1.0)) + pair.first(rows(1.0))).sum().backward()
    assert tower.num_passes == 2


def test_a_graph_that_is_dropped_gives_its_pass_back(towers):
    pair, tower = towers
    for _ in range(3):
        features = pair.first(rows(3.0))
        del features
        gc.collect()
    assert (tower.num_in_flight, tower.num_passes) == (0, 1)


def test_another_shape_is_another_pass_and_never_a_broadcast(towers):
    pair, tower = towers
    pair.first(rows(1.0, 4)).sum().backward()
    assert pair.first(rows(7.0)).shape == (1, 1)
    assert torch.equal(pair.first(torch.ones(4, 2)), torch.full((4, 1), 4.0))
    gc.collect()
    assert tower.num_passes == 3


def test_shapes_beyond_the_limit_run_eagerly_and_count(towers, monkeypatch, caplog):
    pair, tower = towers
    monkeypatch.setattr(capture, "MAX_PASSES", 2)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO):
        for number in range(1, 6):
            pair.first(rows(1.0, number)).sum().backward()
    assert pair.first.weight.grad.item() == 15.0
    assert tower.num_passes == 2
    assert len(caplog.records) == 1


def test_evaluation_runs_eagerly_and_leaves_what_is_in_flight(towers):
    pair, tower = towers
    features = pair.first(rows(3.0))
    pair.first.eval()
    with torch.no_grad():
        assert pair.first(rows(9.0, 6)).sum().item() == 108.0
    pair.first.train()
    with torch.no_grad():  # the features of a step in parts: another pass, for the first is in flight
        assert pair.first(rows(4.0)).item() == 8.0
    features.sum().backward()
    assert pair.first.weight.grad.item() == 3.0
    assert tower.num_in_flight == 0


def test_inputs_with_a_gradient_run_eagerly(towers):
    pair, tower = towers
    leaf = rows(3.0).requires_grad_()
    pair.first(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.item() == 2.0
    assert tower.num_passes == 0


def test_what_cannot_be_captured_runs_eagerly_unless_it_must(monkeypatch, caplog):
    class Broken(StandInPass):
        def __init__(self, *arguments: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(logger, "propagate", True)
    pair = Pair()
    CapturedTower("first", pair.first, Broken, FlatGradients(pair, torch.float32))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            pair.first(rows(3.0)).sum().backward()
    assert pair.first.weight.grad.item() == 6.0
    assert [record.message for record in caplog.records] == [
        "first runs without a captured graph: operation not permitted when stream is capturing"
    ]
    CapturedTower("second", pair.second, Broken, None, must=True)
    with pytest.raises(RuntimeError, match="not permitted"):
        pair.second(rows(3.0))


def test_weights_that_change_in_place_and_a_reset_are_seen(towers):
    pair, tower = towers
    assert pair.first(rows(1.0)).item() == 2.0
    gc.collect()
    with torch.no_grad():
        pair.first.weight.fill_(4.0)
    assert pair.first(rows(1.0)).item() == 4.0
    gc.collect()
    tower.reset()
    pair.first.weight = nn.Parameter(torch.tensor(8.0))
    assert pair.first(rows(1.0)).item() == 8.0


def test_a_capture_draws_no_random_numbers():
    model, batch = make_model(patch_dropout=0.5).train(), make_batch(4)
    torch.manual_seed(3)
    expected = model(video=batch.video_BTCHW).video_BD
    drawn = torch.rand(1)
    CapturedTower("visual", model.visual, StandInPass, FlatGradients(model, torch.float32))
    for _ in range(2):
        torch.manual_seed(3)
        torch.testing.assert_close(model(video=batch.video_BTCHW).video_BD, expected)
        assert torch.equal(torch.rand(1), drawn)


def test_auto_leaves_a_cpu_as_it_is_and_true_insists():
    model, cpu, gpu = make_model(), torch.device("cpu"), torch.device("cuda", 0)
    assert choose_way(EngineConfig(), cpu, model) == Way(False, False)
    assert choose_way(EngineConfig(compile=False, capture=False), gpu, model) == Way(False, False)
    recomputing = make_model(checkpoint_activations=True)
    way = choose_way(EngineConfig(compile=False), gpu, recomputing)
    assert not way.captures and "checkpoint_activations" in way.describe()
    assert "ZeRO 3" in choose_way(EngineConfig(zero_stage=3), gpu, model).describe()
    with pytest.raises(InputError, match=r"engine\.capture is true, but model\.checkpoint_activations"):
        choose_way(EngineConfig(capture=True), cpu, recomputing)


def test_without_a_c_compiler_blocks_stay_eager(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    way = choose_way(EngineConfig(), torch.device("cuda", 0), make_model())
    assert not way.compiles and way.captures
    assert "no C compiler" in way.describe()
    with pytest.raises(InputError, match="no C compiler"):
        choose_way(EngineConfig(compile=True), torch.device("cpu"), make_model())


@pytest.mark.parametrize("value", ["auto", True, False])
def test_configs_of_older_runs_are_read(value: Any):
    """`compile` was true or false."""
    assert EngineConfig.model_validate({"compile": value}).compile == value
    with pytest.raises(ValueError, match="capture works with ZeRO 0 to 2"):
        EngineConfig(capture=True, zero_stage=3)
