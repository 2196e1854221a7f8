"""Parameter groups, both forms of AdamW, the clamp."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.optim import (
    OptimConfig,
    is_decayed,
    make_optimizer,
    parameter_groups,
    set_hyperparameters,
    set_learning_rate,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "data/golden/expected.json").read_text())


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.position = nn.Parameter(torch.ones(2, 3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))


def groups_of(**settings):
    return {group["name"]: group for group in parameter_groups(Toy().named_parameters(), OptimConfig(**settings))}


def test_official_decay_groups_are_those_of_the_released_code():
    named = {name: is_decayed(name, 1, "official") for name in GOLDEN["grad_norms"]["NCELearnableTempLoss_vsc_fc"]}
    assert sorted(name for name, decayed in named.items() if decayed) == GOLDEN["weight_decay_groups"]["decayed"]


def test_clean_groups_spare_vectors_and_give_the_logit_scale_its_own():
    groups = groups_of(preset="clean")
    assert groups["decay"]["param_names"] == ["position", "linear.weight"]
    assert groups["no_decay"]["param_names"] == ["linear.bias", "norm.weight", "norm.bias"]
    assert groups["logit_scale"]["param_names"] == ["logit_scale"]
    assert groups["logit_scale"]["weight_decay"] == 0.0
    assert "norm.weight" in groups_of(preset="official")["decay"]["param_names"]


def test_multipliers_split_groups_and_scale_the_rate():
    groups = groups_of(lr=1.0, lr_multipliers={"^logit_scale$": 10, r"^linear\.": 0.5})
    assert groups["logit_scale_lr_x10"]["lr"] == 10.0
    assert groups["decay_lr_x0.5"]["param_names"] == ["linear.weight"]
    set_learning_rate(list(groups.values()), 0.2)
    assert groups["no_decay_lr_x0.5"]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(("patterns", "message"), [({"nowhere": 2}, "match no"), ({"l": 2, "lin": 3}, "all match")])
def test_patterns_that_miss_or_overlap_are_errors(patterns, message):
    with pytest.raises(InputError, match=message):
        groups_of(lr_multipliers=patterns)


def test_a_broken_pattern_is_a_config_error():
    with pytest.raises(ValueError, match="not a regular expression"):
        OptimConfig(lr_multipliers={"(": 2.0})


@pytest.mark.parametrize("preset", ["clean", "official"])
def test_the_clamp_is_part_of_the_update(preset):
    model = Toy()
    config = OptimConfig(preset=preset, lr=1.0, clip_norm=0)
    optimizer = make_optimizer(parameter_groups(model.named_parameters(), config), config)
    for direction, bound in ((-1.0, math.log(200)), (1.0, 0.0)):
        for _ in range(20):
            (direction * model.logit_scale + 0 * model.linear.weight.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert model.logit_scale.item() == pytest.approx(bound, abs=1e-6)


def test_official_update_by_hand():
    weight = nn.Parameter(torch.tensor([[2.0, -3.0]], dtype=torch.float64))
    config = OptimConfig(preset="official", lr=0.1, eps=0.5, weight_decay=0.2, betas=(0.9, 0.98))
    optimizer = make_optimizer(parameter_groups([("w", weight)], config), config)
    expected, mean, square = weight.detach().clone(), 0.0, 0.0
    for step in (1, 2, 3):
        gradient = 3 * expected
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        size = 0.1 * math.sqrt(1 - 0.98**step) / (1 - 0.9**step)
        expected = expected - size * mean / (square**0.5 + 0.5)
        expected = expected - 0.1 * 0.2 * expected
        weight.grad = 3 * weight.detach()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=0)


def test_hyperparameters_follow_the_config_not_the_checkpoint():
    config = OptimConfig(lr_multipliers={"^logit_scale$": 10})
    wanted = parameter_groups(Toy().named_parameters(), config)
    optimizer = make_optimizer(wanted, config)
    for group in optimizer.param_groups:
        group.update(optimizer.param_groups[0] | {"params": group["params"]})
    set_hyperparameters(optimizer.param_groups, wanted)
    for group, source in zip(optimizer.param_groups, wanted, strict=True):
        assert {key: group[key] for key in ("name", "lr_multiplier", "weight_decay", "clamp")} == {
            key: source[key] for key in ("name", "lr_multiplier", "weight_decay", "clamp")
        }
