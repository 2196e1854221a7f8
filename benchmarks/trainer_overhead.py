"""What the trainer costs beyond forward, backward and optimizer: the real loop against a bare one, in turns.

    python -m benchmarks.trainer_overhead [ROUNDS] [CLIPS] [FRAMES] [ZERO_STAGE]

Both train the tiny CLIP-ViP on the same batches in memory with the same AdamW and clipping. The bare loop is nine lines
of torch; the real one is `pipeline.trainer.train` under DeepSpeed (one rank), with checks, votes and a log line every
20 steps. A round is 20 steps of each, the one that begins changes every round; CPU seconds per step are compared within
a round, since other processes may share the machine.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.checkpoint.save import CheckpointConfig, Saver
from pipeline.engine import Engine, start_distributed
from pipeline.engine_config import EngineConfig
from pipeline.gradient import Objective
from pipeline.log import MetricsFile, quiet
from pipeline.losses import LossConfig
from pipeline.meters import StepClock, Work
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.optim import OptimConfig, make_optimizer, parameter_groups, set_learning_rate
from pipeline.signals import StopRequest
from pipeline.train_config import TrainConfig
from pipeline.trainer import Progress, Run, train
from pipeline.wandb_mirror import WandbMirror

STEPS = 20
DEFAULTS = ["15", "64", "6", "0"]

ARCHITECTURE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 3, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def make_model(num_frames: int) -> CLIPViP:
    """The model of the demo, the same weights every time."""
    torch.manual_seed(0)
    config = {"name": "tiny", "architecture": ARCHITECTURE, "num_temporal": num_frames}
    return CLIPViP.from_config(ModelConfig.model_validate(config))


def make_batch(num_clips: int, num_frames: int) -> Any:
    """Random pixels and words."""
    from pipeline.data.batch import Batch

    video = torch.randint(0, 256, (num_clips, num_frames, 3, 32, 32), dtype=torch.uint8)
    texts = torch.randint(1, 49000, (2, num_clips, 32))
    texts[:, :, -1] = 49407
    there = torch.ones(num_clips, dtype=torch.bool)
    return Batch(
        video_BTCHW=video,
        middle_BCHW=video[:, 0].contiguous(),
        subtitle_BL=texts[0],
        caption_BL=texts[1],
        valid_B=there,
        has_subtitle_B=there,
        has_caption_B=there,
        keys=tuple(map(str, range(num_clips))),
        epoch=0,
        index=0,
    )


class SameBatch:
    """A stream that costs nothing."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.bad_by_reason: dict[str, int] = {}
        self.composition = [len(batch)]
        self.waited_s = 0.0

    def __iter__(self) -> Any:
        while True:
            yield replace(self.batch)


def bare_loop(
    model: nn.Module, optimizer: Any, objective: Objective, batch: Any, optim: OptimConfig, steps: int
) -> None:
    """Forward, backward, clip, update."""
    inputs = objective.inputs(batch)
    for step in range(1, steps + 1):
        loss, _ = objective(model(**inputs), batch.has_subtitle_B, batch.has_caption_B)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        set_learning_rate(optimizer.param_groups, optim.lr_at(step, steps))
        optimizer.step()
        optimizer.zero_grad()


def real_loop(
    folder: Path, engine: Engine, objective: Objective, batch: Any, optim: OptimConfig, progress: Progress
) -> None:
    """`pipeline.trainer.train` for 20 steps, without saving at the end."""
    until = progress.step + STEPS
    config = TrainConfig.model_validate(
        {
            "name": "overhead",
            "runs_dir": folder,
            "steps": 10**6,
            "stop_at_step": until,
            "data": {"sources": [{"shards": "none"}]},
            "batch": {"global_batch_size": len(batch)},
            "optim": optim,
        }
    )
    saver = Saver(
        folder,
        CheckpointConfig(every_steps=0),
        "",
        lambda *_: None,
        lambda: None,
        last_step=until,
        saved_step=until,
    )
    stream: Any = SameBatch(batch)
    stream.state_dict = dict
    with StopRequest() as stop:
        run = Run(
            config=config,
            total_steps=10**6,
            engine=engine,
            stream=stream,
            objective=objective,
            evaluate=lambda _: {},
            saver=saver,
            metrics=MetricsFile(folder / "metrics.jsonl", progress.step),
            stop=stop,
            progress=progress,
            clock=StepClock(engine.device),
            work=Work(1, 1.0, None),
            mirror=WandbMirror(None),
        )
        train(run)


def main() -> None:
    """Print the ratio."""
    rounds, num_clips, num_frames, stage = (int(word) for word in [*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]])
    torch.set_num_threads(1)
    optim = OptimConfig(lr=1e-4)
    objective, batch = Objective(LossConfig()), make_batch(num_clips, num_frames)
    bare = make_model(num_frames)
    bare_optimizer = make_optimizer(parameter_groups(bare.named_parameters(), optim), optim)
    config = EngineConfig.model_validate({"zero_stage": stage, "precision": "fp32", "device": "cpu"})
    with quiet():
        device = start_distributed(config)
        model = make_model(num_frames)
        engine = Engine(
            model,
            make_optimizer(parameter_groups(model.named_parameters(), optim), optim),
            config,
            device,
            clip_norm=optim.clip_norm,
            rows_per_rank=num_clips,
            passthrough={},
        )
    spent: dict[str, list[float]] = {"bare": [], "trainer": []}
    progress = Progress()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name in sorted(spent, reverse=number % 2 == 1):
                start = time.process_time()
                if name == "bare":
                    bare_loop(bare, bare_optimizer, objective, batch, optim, STEPS)
                else:
                    real_loop(Path(folder), engine, objective, batch, optim, progress)
                if number > 0:  # the first round warms up
                    spent[name].append((time.process_time() - start) / STEPS)
    for name, seconds in spent.items():
        median = statistics.median(seconds) * 1e3
        print(f"{name:8} {median:8.2f} ms of CPU per step of {num_clips} clips x {num_frames} frames")
    ratios = [ours / theirs for ours, theirs in zip(spent["trainer"], spent["bare"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"trainer / bare, ZeRO {stage}, {rounds} rounds: median {middle:.4f}, quartiles {low:.4f} to {high:.4f}")


if __name__ == "__main__":
    main()
