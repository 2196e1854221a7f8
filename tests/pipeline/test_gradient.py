"""W ranks under any ZeRO stage, in one pass or in exact parts, give the one-process gradient of the whole batch."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.gradient import Objective, row_slices
from pipeline.losses import LossConfig
from tests.pipeline import cases
from tests.pipeline.ranks import RankPool
from tests.pipeline.tiny import make_batch, make_model

NUM_CLIPS = 16
LOSSES = ("vs", "vsc_fc")
MATRIX = list(itertools.product((0, 1, 2, 3), (1, 2, 4), LOSSES))
PAIRWISE = [(0, 1, "vs"), (0, 4, "vsc_fc"), (1, 2, "vsc_fc"), (1, 4, "vs"), (2, 1, "vsc_fc"), (2, 2, "vs"),
            (3, 4, "vsc_fc"), (3, 2, "vs"), (3, 1, "vsc_fc")]  # fmt: skip


@pytest.fixture(scope="module")
def references() -> dict[str, tuple[float, dict[str, Tensor]]]:
    """Loss and gradients in one process, without DeepSpeed."""
    found = {}
    for loss in LOSSES:
        model, batch = make_model(), make_batch(NUM_CLIPS)
        objective = Objective(LossConfig.model_validate({"name": loss}))
        value, _ = objective(model(**objective.inputs(batch)), batch.has_subtitle_B, batch.has_caption_B)
        value.backward()
        found[loss] = (
            value.item(),
            {
                name: torch.zeros(0) if parameter.grad is None else parameter.grad
                for name, parameter in model.named_parameters()
            },
        )
    return found


@pytest.fixture(scope="module", params=[1, 2])
def small_pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(request.param) as pool:
        yield pool


@pytest.fixture(scope="module", params=[1, 2, 4])
def any_pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(request.param) as pool:
        yield pool


@pytest.mark.heavy
@pytest.mark.parametrize(("stage", "parts", "loss"), PAIRWISE)
def test_gradient_equals_one_process(small_pool, references, stage, parts, loss):
    check(small_pool, references, stage, parts, loss)


@pytest.mark.heavy
@pytest.mark.parametrize(("stage", "parts", "loss"), [(0, 1, "vsc_fc"), (0, 4, "vs"), (1, 2, "vsc_fc"), (2, 3, "vs")])
def test_captured_towers_give_the_gradient_of_one_process(small_pool, references, stage, parts, loss):
    check(small_pool, references, stage, parts, loss, capture=True)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "parts", "loss"), MATRIX)
def test_gradient_equals_one_process_everywhere(any_pool, references, stage, parts, loss):
    check(any_pool, references, stage, parts, loss)


@pytest.mark.heavy
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_activation_checkpointing_leaves_the_gradient_as_it_is(small_pool, references, stage):
    check(small_pool, references, stage, 1 + stage % 2, "vsc_fc", checkpoint_activations=True)


@pytest.mark.heavy
@pytest.mark.parametrize(("stage", "parts"), [(1, 2), (2, 1), (3, 2)])
def test_gradient_through_small_buckets(small_pool, references, stage, parts):
    """Several buckets, and parameters that are larger than one."""
    check(small_pool, references, stage, parts, "vsc_fc", bucket=3000)


@pytest.mark.heavy
@pytest.mark.parametrize("small_pool", [1], indirect=True)
@pytest.mark.parametrize(("stage", "capture"), [(0, False), (1, False), (3, False), (0, True), (1, True)])
def test_exact_parts_repeat_the_random_draws(small_pool, stage, capture):
    """One process with graphs of all parts at once, each part drawn after the one before, is what it must equal."""
    model, batch, objective = make_model(patch_dropout=0.5).train(), make_batch(8), Objective(LossConfig(name="vsc_fc"))
    torch.manual_seed(5)
    parts = [model(**{k: v[rows] for k, v in objective.inputs(batch).items()}) for rows in row_slices(8, 3)]
    features = [torch.cat(pieces) for pieces in list(zip(*parts, strict=True))[:4]]
    scale = torch.stack([part.logit_scale for part in parts]).mean(0)
    value, _ = objective((*features, scale), batch.has_subtitle_B, batch.has_caption_B)
    value.backward()
    case = functools.partial(cases.captured, cases.thinned_case) if capture else cases.thinned_case
    ((found, gradients, drawn),) = small_pool.run(case, stage, 3)
    assert found == pytest.approx(value.item(), rel=1e-6)
    assert drawn == torch.rand(1).item(), "the random state goes on behind the last part"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            error = (gradients[name].view_as(parameter) - parameter.grad).norm()
            assert error <= 1e-5 * parameter.grad.norm() + 1e-6, name


def check(
    pool: RankPool, references: dict, stage: int, parts: int, loss: str, *, capture: bool = False, **changes: Any
) -> None:
    case = functools.partial(cases.gradient_case, stage, parts, loss, NUM_CLIPS, **changes)
    case = functools.partial(cases.captured, case) if capture else case
    value, gradients, norm = pool.run(case)[0]
    expected_value, expected = references[loss]
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert norm == pytest.approx(total, rel=1e-5)
    for name, gradient in expected.items():
        if gradient.numel() == 0:
            assert gradients[name].numel() == 0 or gradients[name].abs().max() == 0, name
            continue
        error = (gradients[name].view_as(gradient) - gradient).norm().item()
        assert error <= 1e-5 * gradient.norm().item() + 1e-6 * total, f"{name}: {error}"


@pytest.mark.parametrize(("rows", "parts"), [(16, 4), (7, 3), (2, 4), (1, 1)])
def test_row_slices_cover_every_row_once(rows, parts):
    covered = [row for part in row_slices(rows, parts) for row in range(rows)[part]]
    assert covered == list(range(rows))
