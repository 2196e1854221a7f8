"""What holds under every ZeRO stage: the clamp reaches the master weight, the official run is followed."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline import engine as module
from pipeline.engine import Engine
from pipeline.engine_config import REDUCE_BUCKET_ELEMENTS, EngineConfig, deepspeed_config, resolve_device
from pipeline.errors import InputError
from pipeline.plan import buffer_bytes, state_bytes_per_parameter
from tests.pipeline import cases
from tests.pipeline.model import golden
from tests.pipeline.ranks import RankPool


@pytest.fixture(scope="module")
def pair() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def single() -> Iterator[RankPool]:
    with RankPool(1) as pool:
        yield pool


@pytest.mark.heavy
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_logit_scale_is_clamped_on_the_master_weight(pair, stage):
    for rank, found in enumerate(pair.run(cases.clamp_case, stage)):
        for direction, bound in ((-1.0, math.log(200)), (1.0, 0.0)):
            master, module, saved = found[direction]
            assert master == pytest.approx(bound, abs=1e-6)
            assert module == pytest.approx(bound, abs=1e-6)
            if rank == 0:
                assert saved == pytest.approx(bound, abs=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("ranks", "stage"),
    [(1, 0), (2, 3)]
    + [pytest.param(r, s, marks=pytest.mark.slow) for r, s in ((1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2))],
)
def test_twenty_official_steps_follow_the_golden_trajectory(request, ranks, stage):
    """float32 against float64: rounding grows with every step, by less than this."""
    pool = request.getfixturevalue("single" if ranks == 1 else "pair")
    for row, expected in zip(pool.run(cases.trajectory_case, stage)[0], golden.expected()["trajectory"], strict=True):
        assert row["lr"] == pytest.approx(expected["lr"], rel=1e-9)
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-3, abs=2e-4), row["step"]
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-3, abs=1e-2), row["step"]
        assert row["logit_scale"] == pytest.approx(expected["logit_scale"], abs=2e-6), row["step"]


@pytest.mark.heavy
def test_captured_towers_follow_the_golden_trajectory(single):
    (rows,) = single.run(cases.captured, cases.trajectory_case, 0)
    for row, expected in zip(rows, golden.expected()["trajectory"], strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-3, abs=2e-4), row["step"]
        assert row["logit_scale"] == pytest.approx(expected["logit_scale"], abs=2e-6), row["step"]


@pytest.mark.heavy
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_the_plan_knows_the_memory_of_a_step(request, ranks, stage):
    """All tensors that live at the turns of a step; a bucket is released at these moments but under ZeRO 3."""
    pool = request.getfixturevalue("single" if ranks == 1 else "pair")
    for parameters, measured in pool.run(cases.memory_case, stage):
        expected = state_bytes_per_parameter(stage, ranks) * parameters
        expected += buffer_bytes(stage, ranks, parameters) if stage == 3 else 0
        assert measured == pytest.approx(expected, rel=0.05)


OFFLOADED = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


@pytest.mark.heavy
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_offloaded_optimizer_makes_the_same_steps(pair, stage):
    check_same_steps(pair.run(cases.steps_case, stage, {}, {}), pair.run(cases.steps_case, stage, OFFLOADED, {}))


@pytest.mark.heavy
def test_offloaded_parameters_make_the_same_steps(pair):
    offloaded = {"zero_optimization": OFFLOADED["zero_optimization"] | {"offload_param": {"device": "cpu"}}}
    check_same_steps(pair.run(cases.steps_case, 3, {}, {}), pair.run(cases.steps_case, 3, offloaded, {}))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("captures", [False, True])
def test_compiled_blocks_make_the_same_steps(pair, stage, captures):
    settings = {"compile": True, "capture": captures}
    check_same_steps(pair.run(cases.steps_case, stage, {}, {}), pair.run(cases.steps_case, stage, {}, settings))


@pytest.mark.heavy
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_captured_towers_make_the_same_steps(pair, stage):
    expected = pair.run(cases.steps_case, stage, {}, {})
    check_same_steps(expected, pair.run(cases.steps_case, stage, {}, {"capture": True}))


@pytest.mark.heavy
@pytest.mark.parametrize("stage", [0, 1])
def test_captured_towers_survive_an_overflow_in_fp16(pair, stage):
    rows, others = pair.run(cases.captured, cases.overflow_case, stage, {})
    assert str([(norm, scale) for norm, *_, scale in rows]) == str([(norm, scale) for norm, *_, scale in others])
    assert [changed for *_, changed, _ in rows] == [math.isfinite(norm) for norm, *_ in rows]


@pytest.mark.heavy
def test_a_step_dispatches_few_operations_whatever_the_number_of_parameters(single):
    """On a GPU a step of 32 clips is bound by the host: what is not captured must be little. DeepSpeed's own share
    under ZeRO 1 grows with the parameters, that of norm, clipping and update does not."""
    ((total, of_update),) = single.run(cases.operations_case, 0, 2)
    assert total <= 600
    assert of_update <= 40
    assert single.run(cases.operations_case, 0, 5) == [(total, of_update)]
    ((_, of_update),) = single.run(cases.operations_case, 1, 2)
    ((_, of_deep_update),) = single.run(cases.operations_case, 1, 5)
    assert of_deep_update == of_update


@pytest.mark.heavy
def test_texts_are_reduced_while_the_frames_are_in_their_backward_pass(pair, single):
    """Two ranks give the gradient of one; in bf16 its rounding and no more."""
    ((_, loss, expected),) = single.run(cases.reduction_case, "fp32")
    for reduce_dtype, tolerance in (("fp32", 1e-5), ("bf16", 2e-2)):
        for events, value, gradients in pair.run(cases.reduction_case, reduce_dtype):
            assert events == [
                "text",
                "send text",
                "video of 1 frames",
                "video of 3 frames",
                "send visual",
                "send the rest",
            ]
            assert value == pytest.approx(loss, rel=1e-5)
            for name, gradient in expected.items():
                error = (gradients[name] - gradient).norm()
                assert error <= tolerance * gradient.norm() + 1e-4 * tolerance, name


def check_same_steps(expected, found):
    """Losses, norms and weights agree but for rounding; AdamW's first steps magnify it where gradients are tiny."""
    for (values, weights), (other_values, other_weights) in zip(expected, found, strict=True):
        assert other_values == pytest.approx(values, rel=1e-4)
        for name, tensor in weights.items():
            assert (other_weights[name] - tensor).norm() <= 2e-3 * (1 + tensor.norm()), name


@pytest.mark.heavy
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_whole_weights_are_the_masters(pair, stage):
    assert pair.run(cases.masters_case, stage) == [True, True]


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("stage", "parts"), [(0, 2), (1, 1), (2, 2), (3, 1)])
def test_half_precision_is_autocast_over_fp32_parameters(pair, stage, parts, precision):
    for loss, norm, half_loss, half_norm in pair.run(cases.precision_case, stage, parts, precision):
        assert half_loss == pytest.approx(loss, rel=0.02)
        assert half_loss != loss
        assert half_norm == pytest.approx(norm, rel=0.1)


@pytest.mark.heavy
@pytest.mark.parametrize(("stage", "offloaded"), [(0, False), (1, False), (2, False), (2, True), (3, False), (3, True)])
def test_an_overflow_in_fp16_changes_no_weight_and_halves_the_scale_on_all_ranks(pair, stage, offloaded):
    rows, others = pair.run(cases.overflow_case, stage, OFFLOADED if offloaded else {})
    assert str([(norm, scale) for norm, *_, scale in rows]) == str([(norm, scale) for norm, *_, scale in others])
    finite = [math.isfinite(norm) for norm, *_ in rows]
    assert not finite[0] and finite[-1]
    assert [changed for *_, changed, _ in rows] == finite
    for fine, (norm, seen, *_) in zip(finite, rows, strict=True):
        assert seen == pytest.approx(min(norm, 5.0), rel=1e-5) if fine else seen == 0
    scales = [2.0**15, *(scale for *_, scale in rows)]
    assert [after / before for before, after in itertools.pairwise(scales)] == [1.0 if fine else 0.5 for fine in finite]


def test_engine_only_keys_pass_through():
    made = deepspeed_config(
        EngineConfig(zero_stage=2, precision="bf16"),
        torch.device("cpu"),
        clip_norm=1.5,
        rows_per_rank=2,
        passthrough={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "wall_clock_breakdown": True},
    )
    assert made["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
        "offload_optimizer": {"device": "cpu"},
    }
    assert made["gradient_clipping"] == 1.5
    assert made["wall_clock_breakdown"] is True
    assert made["torch_autocast"]["lower_precision_safe_modules"] == []


def test_what_is_summed_over_ranks_lies_where_the_ranks_can_reach_it(monkeypatch):
    """With the optimizer on the host, norms are computed there; NCCL takes no tensor of the host."""
    engine = Engine.__new__(Engine)
    engine.device, engine.zero_stage, engine.loss_scale, engine._flat = torch.device("meta"), 2, None, None
    monkeypatch.setattr(Engine, "local_gradients", lambda self: [torch.ones(3), torch.ones(2, device="meta")])
    monkeypatch.setattr(module, "world_size", lambda: 2)
    seen = []
    monkeypatch.setattr(module.dist, "all_reduce", lambda tensor: seen.append(tensor.device))
    with pytest.raises(RuntimeError, match="meta"):  # which holds no number to return
        engine.gradient_norm()
    assert seen == [engine.device]


@pytest.mark.parametrize(("visible", "number"), [(8, 3), (1, 0)])
def test_a_task_that_sees_only_its_own_gpu_takes_it(monkeypatch, visible, number):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert resolve_device(EngineConfig(device="cuda")) == torch.device("cuda", number)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"precision": "fp16"}, "fp16 needs a GPU"), ({"device": "cuda"}, "this machine has no CUDA device")],
)
def test_what_this_machine_lacks_is_an_error_in_one_line(settings, message):
    with pytest.raises(InputError, match=message):
        resolve_device(EngineConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("stage", "device", "overlaps"),
    [(0, "cuda", None), (1, "cuda", True), (2, "cuda", True), (3, "cuda", None), (1, "cpu", None)],
)
def test_gradients_are_reduced_during_the_backward_pass_on_gpus(stage: Any, device: str, overlaps: bool | None) -> None:
    config, kind = EngineConfig(zero_stage=stage), torch.device(device)
    made = deepspeed_config(config, kind, clip_norm=1.0, rows_per_rank=1, passthrough={})
    assert made["zero_optimization"].get("overlap_comm") is overlaps
    asked = {"zero_optimization": {"overlap_comm": False}}
    made = deepspeed_config(config, kind, clip_norm=1.0, rows_per_rank=1, passthrough=asked)
    assert made["zero_optimization"]["overlap_comm"] is False
