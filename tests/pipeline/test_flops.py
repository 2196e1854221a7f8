"""Operations and activation memory from shapes against a measured run, and the plan that they make."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import InputError
from pipeline.flops import ClipWork
from pipeline.gradient import Objective
from pipeline.losses import LossConfig
from pipeline.plan import main as plan_main
from pipeline.plan import state_bytes_per_parameter
from tests.pipeline.tiny import FRAMES, TOKENS, architecture, make_batch, make_model, model_config, write_config

NUM_CLIPS = 4


def work_of(loss: str = "vsc_fc", **changes) -> ClipWork:
    return ClipWork.of(model_config(**changes), num_frames=FRAMES, num_text_tokens=TOKENS, loss_name=loss)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("vsc_fc", {}),
        ("vs", {}),
        ("vs_vc", {"attention": "full"}),
        ("vs", {"pooling": "mean", "num_proxies": 1, "num_temporal": 0}),
    ],
)
def test_operations_equal_the_counted_ones(loss, changes):
    model, batch = make_model(**changes), make_batch(NUM_CLIPS)
    inputs = Objective(LossConfig.model_validate({"name": loss})).inputs(batch)
    with FlopCounterMode(display=False) as counter:
        features = model(**inputs)
        sum(feature.sum() for feature in features[:4] if feature is not None).backward()
    counted = counter.get_total_flops() / NUM_CLIPS
    # Attention of one proxy block over many frames is counted by what the kernel is asked to do.
    assert work_of(loss, **changes).training_flops == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("bf16", [False, True])
def test_activation_memory_is_what_autograd_keeps(bf16):
    """In bf16 the graph keeps a copy of every weight too, whatever the number of clips."""
    wide = architecture() | {"vision_cfg": architecture()["vision_cfg"] | {"width": 256, "layers": 3}}
    model, batch = make_model(architecture=wide), make_batch(NUM_CLIPS)
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    graph = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with graph, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(**Objective(LossConfig(name="vsc_fc")).inputs(batch))
    expected = work_of(architecture=wide).activation_bytes(2 if bf16 else 4) * NUM_CLIPS
    expected += 2 * sum(parameter.numel() for parameter in model.parameters()) if bf16 else 0
    assert expected == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.05)


def test_the_paper_s_models_cost_what_the_design_says():
    for name, gflops in (("ViT-B-32-quickgelu", 373), ("ViT-B-16-quickgelu", 1400)):
        config = model_config(name=name, architecture=None, num_proxies=4, num_temporal=12)
        work = ClipWork.of(config, num_frames=12, num_text_tokens=70, loss_name="vsc_fc")
        assert work.training_flops / 1e9 == pytest.approx(gflops, rel=0.01)


@pytest.mark.parametrize(("stage", "ranks", "expected"), [(0, 1, 16.0), (1, 1, 20.0), (2, 4, 8.0), (3, 4, 9.0)])
def test_states_by_stage(stage, ranks, expected):
    assert state_bytes_per_parameter(stage, ranks) == expected


def test_the_plan_answers_how_long_pretraining_takes(capsys, tmp_path):
    config = write_config(tmp_path, tmp_path / "none")
    assert plan_main([str(config), "--gpus", "8", "--gpu=a100"]) == 0
    printed = capsys.readouterr().out
    for word in ("GPU-hours", "8 x a100", "memory, ZeRO 3", "cores per GPU", "GB/s", "144 (12 steps)"):
        assert word in printed


def test_the_shipped_recipe_has_a_plan_before_there_are_data(capsys):
    """The command of the README, on a machine with nothing: three epochs of HD-VILA-100M, and it says so."""
    assert plan_main(["configs/pretrain/b32.yaml", "--gpus", "64", "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    assert "if an epoch has the 92,000,000 clips of HD-VILA-100M: data/shards/hdvila cannot be counted" in printed
    # By hand: 3 x 92 M clips x 374 GFLOP over 45% of 989 TFLOP/s.
    (hours,) = re.findall(r"([\d.]+) GPU-hours", printed)
    assert float(hours) == pytest.approx(3 * 92e6 * 374e9 / (0.45 * 989e12) / 3600, rel=0.01)


def test_given_clips_count_for_epochs_and_for_storage(capsys, tmp_path):
    config = write_config(tmp_path, tmp_path / "none", steps=None, epochs=2)
    assert plan_main([str(config), "--clips", "1e3"]) == 0
    printed = capsys.readouterr().out
    assert "1,992 (166 steps)\n" in printed, "two epochs of 83 whole batches of 12"
    assert "storage               548 KB of shards at 548 B a clip" in printed
    assert plan_main([str(config), "--clips", "1e3", "epochs=null", "steps=3"]) == 0
    printed = capsys.readouterr().out
    assert "36 (3 steps)\n" in printed
    assert "548 KB of shards" in printed


def test_only_exact_accumulation_encodes_twice(capsys, tmp_path):
    config = write_config(tmp_path, tmp_path / "none")
    for words, expected in (
        (["batch.micro_batches=2"], True),
        (["batch.micro_batches=2", "batch.accumulation=plain"], False),
    ):
        plan_main([str(config), *words])
        assert ("times 1.33 with recomputation" in capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "abacus"], "abacus"),
        (["--gpus", "many"], "take numbers"),
        (["--mfu", "2"], "in .0, 1"),
    ],
)
def test_wrong_options_are_input_errors(tmp_path, words, message):
    config = write_config(tmp_path, tmp_path / "none")
    with pytest.raises(InputError, match=message):
        plan_main([str(config), *words])
