"""The scale of a loss in fp16, as a function of what came before. That ranks share it is shown in test_engine."""

import pytest

from pipeline import loss_scale as module
from pipeline.loss_scale import LossScale


def test_it_halves_at_once_and_doubles_after_a_long_good_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS_UNTIL_GROWTH", 3)
    scale, found = LossScale(value=8.0), []
    for fine in (True, True, False, True, True, True, True, True, True):
        scale.update(fine)
        found.append(scale.value)
    assert found == [8, 8, 4, 4, 4, 8, 8, 8, 16]


def test_it_has_an_end_on_both_sides() -> None:
    scale = LossScale()
    for _ in range(100):
        scale.update(False)
    assert scale.value == 1.0
    assert not scale.can_shrink, "a gradient that is still no number does not come from the scale"
    largest = LossScale(value=module.LARGEST, good_steps=module.STEPS_UNTIL_GROWTH - 1)
    largest.update(True)
    assert largest.value == module.LARGEST
