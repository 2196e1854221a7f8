"""How long a save holds training up, against copying the same state within memory and against the whole save.

    python -m benchmarks.checkpoint_stall [ROUNDS] [ZERO_STAGE]

A CLIP-ViP of 43 M parameters after one step, one rank, fp32, on the CPU; the folder is a temporary one. `copy` clones
weights and moments, as the least that a snapshot can cost; `stall` is what `Saver.save` takes before it returns;
`whole` ends when the checkpoint is hashed, on the disk and published, as a save that is not asynchronous would.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.trainer_overhead import make_batch
from pipeline.checkpoint.save import CheckpointConfig, Saver
from pipeline.engine import Engine, start_distributed
from pipeline.engine_config import EngineConfig
from pipeline.gradient import Objective, backward_batch
from pipeline.log import quiet
from pipeline.losses import LossConfig
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.weights import save_model
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups

ARCHITECTURE = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 4, "width": 512, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 448, "heads": 8, "layers": 3},
}


def trained_engine(stage: int) -> tuple[Engine, ModelConfig]:
    """An engine whose optimizer has its moments."""
    torch.manual_seed(0)
    model = CLIPViP.from_config(
        ModelConfig.model_validate({"name": "wide", "architecture": ARCHITECTURE, "num_temporal": 2})
    )
    optim = OptimConfig()
    config = EngineConfig.model_validate({"zero_stage": stage, "precision": "fp32", "device": "cpu"})
    with quiet():
        device = start_distributed(config)
        groups = parameter_groups(model.named_parameters(), optim)
        engine = Engine(
            model,
            make_optimizer(groups, optim),
            config,
            device,
            clip_norm=0.0,
            rows_per_rank=2,
            passthrough={},
        )
    engine.train()
    backward_batch(engine, Objective(LossConfig()), make_batch(2, 2), micro_batches=1, accumulation="exact")
    engine.step()
    return engine, model.config


def copy_s(engine: Engine) -> float:
    """Seconds to clone what a checkpoint holds: moments, and the model's tensors for us and for DeepSpeed."""
    tensors = list(engine.module.state_dict().values()) * 2
    for state in engine.base_optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    started = time.perf_counter()
    copies = [tensor.clone() for tensor in tensors]
    elapsed = time.perf_counter() - started
    del copies
    return elapsed


def main() -> None:
    """Print medians and ratios."""
    rounds, stage = (int(word) for word in [*sys.argv[1:], *["5", "0"][len(sys.argv) - 1 :]])
    torch.set_num_threads(1)
    engine, model_config = trained_engine(stage)
    found: dict[str, list[float]] = {"copy": [], "stall": [], "whole": []}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "checkpoints").mkdir()
        saver = Saver(
            Path(name),
            CheckpointConfig(keep_last=1),
            "",
            lambda folder, weights: save_model(folder, weights, model_config),
            lambda: None,
        )
        for step in range(1, rounds + 2):
            copied = copy_s(engine)
            started = time.perf_counter()
            saver.save(engine, step, {}, wait=False)
            stalled = time.perf_counter() - started
            saver.settle()
            if step > 1:  # the first round warms up
                for key, value in zip(found, (copied, stalled, time.perf_counter() - started), strict=True):
                    found[key].append(value)
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()) / 1e9
    medians = {key: statistics.median(values) for key, values in found.items()}
    print(f"{sum(p.numel() for p in engine.module.parameters()) / 1e6:.0f} M parameters, {size:.2f} GB, ZeRO {stage}")
    print("  ".join(f"{key} {seconds:.2f} s" for key, seconds in medians.items()))
    copy, stall, whole = medians.values()
    print(f"stall / copy {stall / copy:.2f}, stall / whole {stall / whole:.2f}")


if __name__ == "__main__":
    main()
