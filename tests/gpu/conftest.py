"""One process, one process group: what the tests on a GPU share.

python3 -m pytest -p no:cacheprovider tests/gpu            # torch, pytest and what a run needs; no index, no ffmpeg
REHEARSE_ON_CPU=1 python3 -m pytest tests/gpu/test_step.py # the same code with the stand-in for captured graphs
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

REHEARSAL = os.environ.get("REHEARSE_ON_CPU") == "1"
DEVICE = torch.device("cpu") if REHEARSAL or not torch.cuda.is_available() else torch.device("cuda", 0)
SIZE_PX, FRAMES = 32, 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need a GPU, but in a rehearsal."""
    for item in items:
        if Path(str(item.path)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            if DEVICE.type == "cpu" and not REHEARSAL:
                item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """float32 as it is; a test that wants TF32 or determinism sets it, and the next one has it as it was."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(scope="session", autouse=True)
def _process_group() -> None:
    """One group for all tests: a run that made its own would end it, and DeepSpeed goes on with the one it met first."""
    if DEVICE.type == "cuda" or REHEARSAL:
        from pipeline.engine import start_distributed
        from pipeline.engine_config import EngineConfig

        start_distributed(EngineConfig.model_validate({"device": DEVICE.type, "precision": "fp32", "tf32": False}))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Motion JPEG clips, written without ffmpeg."""
    from benchmarks.gpu.shards import write_shards

    folder = tmp_path_factory.mktemp("gpu") / "shards"
    write_shards(folder, num_clips=96, size_px=SIZE_PX)
    return folder


def small_model() -> dict[str, Any]:
    """A `model` section."""
    return {
        "architecture": {
            "embed_dim": 64,
            "quick_gelu": True,
            "vision_cfg": {"image_size": SIZE_PX, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
            "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        },
        "num_temporal": FRAMES,
    }
