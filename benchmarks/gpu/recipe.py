"""The recipe of a case and its parts: the shipped configs, at this case's batch, with random weights.

config = recipe(case, device)                 # configs/pretrain/b32.yaml (and b16.yaml), overrides of the case
stage = Stage(config, case.clips, device)     # model, engine, objective, a batch that lies on the device
stage.step()
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case
from pipeline.config import load_config
from pipeline.data.batch import Batch
from pipeline.engine import Engine, start_distributed
from pipeline.flops import ClipWork
from pipeline.gradient import Objective, backward_batch
from pipeline.model.clip_vip import CLIPViP
from pipeline.optim import make_optimizer, parameter_groups, set_learning_rate
from pipeline.train_config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
START_ID, END_ID = 49406, 49407
TINY = (
    "data.num_frames=3",
    "data.num_text_tokens=16",
    "data.num_workers=0",
    "model.num_proxies=3",
    "model.num_temporal=3",
    "model.architecture.embed_dim=16",
    "model.architecture.quick_gelu=true",
    "model.architecture.vision_cfg={image_size: 32, patch_size: 8, layers: 2, width: 32, head_width: 16}",
    "model.architecture.text_cfg={context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 2}",
)


def recipe(case: Case, device: torch.device, *words: str) -> TrainConfig:
    """The config of a case: recipe, then what the case changes, then `words`."""
    return load_config(TrainConfig, *recipe_words(case, device, *words))


def recipe_words(case: Case, device: torch.device, *words: str) -> tuple[list[str], list[str]]:
    """Files and overrides."""
    files = [str(CONFIGS / "b32.yaml")] + ([str(CONFIGS / "b16.yaml")] if case.base == "b16" else [])
    small = TINY if case.base == "tiny" else ()
    common = ("model.pretrained=null", f"engine.device={device.type}", f"batch.global_batch_size={case.clips}")
    return files, [*common, *small, *case.words, *words]


def clip_flops(config: TrainConfig, model: CLIPViP) -> float:
    """Operations of a clip, forward and backward, as the trainer counts them for its MFU."""
    return ClipWork.of(
        model.config,
        num_frames=config.data.num_frames,
        num_text_tokens=config.data.num_text_tokens,
        loss_name=config.loss.name,
    ).training_flops


def random_batch(config: TrainConfig, model: CLIPViP, clips: int, *, seed: int = 0) -> Batch:
    """Random pixels; subtitles of 20 tokens to the full length, captions of 12 to 21, as the tokenizer writes them."""
    draw = torch.Generator().manual_seed(seed)
    side, length = model.image_size_px, config.data.num_text_tokens
    size = (clips, config.data.num_frames, side, side, 3)
    video = torch.randint(0, 256, size, dtype=torch.uint8, generator=draw).permute(0, 1, 4, 2, 3)
    present = torch.ones(clips, dtype=torch.bool)
    return Batch(
        video_BTCHW=video,
        middle_BCHW=video[:, config.data.num_frames // 2].clone(),
        subtitle_BL=_texts(clips, length, min(20, length), length, draw),
        caption_BL=_texts(clips, length, min(12, length), min(21, length), draw),
        valid_B=present,
        has_subtitle_B=present,
        has_caption_B=present,
        keys=tuple(map(str, range(clips))),
        epoch=0,
        index=0,
    )


def _texts(clips: int, length: int, shortest: int, longest: int, draw: torch.Generator) -> Tensor:
    ids = torch.randint(1, 40000, (clips, length), generator=draw)
    ends = torch.randint(shortest - 1, longest, (clips,), generator=draw)
    ends[0] = longest - 1
    places = torch.arange(length)
    ids[:, 0] = START_ID
    ids[torch.arange(clips), ends] = END_ID
    return ids.masked_fill(places > ends.unsqueeze(1), 0)


class Stage:
    """A training step without trainer and data: what `pipeline.trainer` does between two batches."""

    def __init__(self, config: TrainConfig, clips: int, device: torch.device) -> None:
        start_distributed(config.engine)
        torch.manual_seed(0)
        self.config, self.clips = config, clips
        self.model = CLIPViP.from_config(config.model)
        groups = parameter_groups(self.model.named_parameters(), config.optim)
        self.engine = Engine(
            self.model,
            make_optimizer(groups, config.optim),
            config.engine,
            device,
            clip_norm=config.optim.clip_norm,
            rows_per_rank=clips,
            passthrough=config.deepspeed,
        )
        self.objective = Objective(config.loss)
        self.batch = random_batch(config, self.model, clips).trimmed().to(device)
        self.engine.train()

    def step(self, lr: float = 1e-6) -> tuple[float, float]:
        """Gradient, read, update: loss and gradient norm."""
        loss, _ = backward_batch(self.engine, self.objective, self.batch, micro_batches=1, accumulation="exact")
        read = self.engine.read(loss)
        set_learning_rate(self.engine.param_groups, lr)
        self.engine.step()
        return read

    def close(self) -> None:
        """Let go of hooks and buffers."""
        self.engine.forward_timer.take()
        destroy: Any = getattr(self.engine.deepspeed, "destroy", None)
        if destroy is not None:
            destroy()
