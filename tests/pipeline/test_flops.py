"""Operations and activation memory from shapes against a measured run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.flops import ClipWork, gpu_label
from pipeline.gradient import Objective
from pipeline.losses import LossConfig
from tests.pipeline.tiny import FRAMES, TOKENS, architecture, make_batch, make_model, model_config

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


def test_a_driver_s_name_is_a_known_gpu():
    names = {"NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100-PCIE-40GB": "a100-40"}
    names |= {"NVIDIA L40S": "l40s", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A10G": "a10", "Radeon VII": "radeon vii"}
    assert {name: gpu_label(name) for name in names} == names
