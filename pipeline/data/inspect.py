"""Look at a shard set as training would see it: `python -m pipeline.data.inspect SHARDS [key=value ...]`.

Prints a line per sample with its texts, writes a contact sheet (a row per clip: its frames, then the middle frame), and
measures the clips per second that one process delivers. Options are those of `data:` in a training config.

    python -m pipeline.data.inspect data/shards/sample_train num_samples=8 data.jitter=false
"""

import time
from pathlib import Path

import PIL.Image
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Section, load_config, render_help
from pipeline.data.batch import Batch
from pipeline.data.index import Manifest
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import InputError, RunError, run_command

PROGRAM = "python -m pipeline.data.inspect SHARDS"


class InspectConfig(Section):
    """What to look at."""

    data: DataConfig
    """As in a training config; `data.sources` is the set named on the command line."""
    num_samples: int = Field(default=8, ge=1)
    """Samples to print and to draw."""
    image_size_px: int = Field(default=224, ge=8)
    """Side of the training square."""
    sheet: Path = Path("contact_sheet.png")
    """Where the contact sheet is written."""
    seconds: float = Field(default=3.0, ge=0)
    """How long to measure the speed; 0: do not measure."""
    seed: int = 42
    """Seed of the order and of the jitter."""


def main(argv: list[str]) -> int:
    """Print, draw, measure."""
    if not argv or argv[0] in ("-h", "--help"):
        print(render_help(InspectConfig, program=PROGRAM, about="Look at a shard set as training would see it."))
        return 0 if argv else 2
    shards, overrides = argv[0], argv[1:]
    if "=" in shards or shards.startswith("-"):
        raise InputError(f"the first argument must be a shard set, got {shards!r}; usage: {PROGRAM} [key=value ...]")
    folder = shards.removesuffix("/manifest.parquet").rstrip("/")
    config = load_config(
        InspectConfig, [], [f"data.sources=[{{shards: '{folder}'}}]", "data.num_workers=0", *overrides]
    )
    num_samples = min(config.num_samples, Manifest.open(folder, index_folder=config.data.index_folder).num_samples)
    texts = TextTable(config.data.num_text_tokens)
    printed = config.data.model_copy(update={"num_workers": 0})
    stream = _stream(printed, config, num_samples, texts)
    print(f"{folder}: {stream.samples_per_epoch} samples an epoch")
    batch = next(iter(stream))
    for row in range(len(batch)):
        print(_line(batch, row, texts))
    _write_sheet(batch, config.sheet)
    print(f"contact sheet: {config.sheet} (a row per clip: its {config.data.num_frames} frames, then the middle frame)")
    if not batch.valid_B.any():
        raise RunError(
            f"none of these {len(batch)} samples can be read: {stream.bad_by_reason}; python -m preprocess.audit"
        )
    if config.seconds:
        speed = _clips_per_s(_stream(config.data, config, num_samples, texts), config.seconds)
        print(f"speed: {speed:.1f} clips/s with data.num_workers={config.data.num_workers}, tokenizer not counted")
    return 0


class TextTable:
    """Stands in for the tokenizer: a text's one id is its number in a table, so that a batch's texts can be printed."""

    def __init__(self, num_text_tokens: int) -> None:
        self._num_text_tokens = num_text_tokens
        self._texts: list[str] = []

    def __call__(self, texts: list[str]) -> Tensor:
        ids_BL = torch.zeros(len(texts), self._num_text_tokens, dtype=torch.int64)
        ids_BL[:, 0] = torch.arange(len(self._texts), len(self._texts) + len(texts))
        self._texts += texts
        return ids_BL

    def text(self, ids_L: Tensor) -> str:
        """The text behind a row of ids."""
        return self._texts[int(ids_L[0])]


def _stream(data: DataConfig, config: InspectConfig, batch_size: int, texts: TextTable) -> Stream:
    return Stream(
        data,
        global_batch_size=batch_size,
        image_size_px=config.image_size_px,
        tokenize=texts,
        seed=config.seed,
    )


def _line(batch: Batch, row: int, texts: TextTable) -> str:
    if not batch.valid_B[row]:
        reasons = {sample.key: sample.reason for sample in batch.bad}
        return f"{batch.keys[row]}  BAD: {reasons[batch.keys[row]]}"
    subtitle = repr(texts.text(batch.subtitle_BL[row])) if batch.has_subtitle_B[row] else "none"
    caption = repr(texts.text(batch.caption_BL[row])) if batch.has_caption_B[row] else "none"
    return f"{batch.keys[row]}  subtitle: {subtitle}  caption: {caption}"


def _write_sheet(batch: Batch, path: Path) -> None:
    frames_BTHWC = torch.cat([batch.video_BTCHW, batch.middle_BCHW.unsqueeze(1)], dim=1).permute(0, 1, 3, 4, 2)
    rows, columns, height, width, _ = frames_BTHWC.shape
    sheet_HWC = frames_BTHWC.permute(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(sheet_HWC.contiguous().numpy()).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the contact sheet {path}: {error}; give another sheet=PATH.png") from None


def _clips_per_s(stream: Stream, seconds: float) -> float:
    batches = iter(stream)
    next(batches)  # opening files and starting workers is not counted
    started, num_clips = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or not num_clips:
        num_clips += len(next(batches))
    return num_clips / elapsed


if __name__ == "__main__":
    run_command(main)
