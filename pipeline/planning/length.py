"""How long a run is: counted from its shard sets, or from their published sizes while they are not there.

length_of(config, num_clips=None).steps
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.manifest_file import manifest_facts
from pipeline.data.schedule import Schedule
from pipeline.data.stream import DataConfig, Stream
from pipeline.planning.published_sets import published_set
from pipeline.train_config import TrainConfig


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps: int
    """0 where that cannot be known."""
    clips: float
    """Of all steps."""
    stored_clips: int | None
    """Of the shard sets; None where they are not there and no other figure depends on them."""
    condition: str
    """What the figures rest on where the data could not be counted, in words that go on a sentence."""
    unknown: str = ""
    """What must be given before the length can be known."""


def length_of(config: TrainConfig, num_clips: int | None) -> Length:
    """Steps and clips of the run: of the shard sets as the stream counts them, or of `num_clips` in an epoch."""
    batch_size = config.batch.global_batch_size
    samples, stored, condition, unknown = num_clips, num_clips, "", ""
    epochs = config.epochs or 0
    if num_clips is None and _are_here(config.data):
        stored = sum(manifest_facts(source.shards)["num_samples"] for source in config.data.sources)
        in_epochs = _stream(config).batches_in(epochs) if epochs else 0
    else:
        if num_clips is None:
            samples, stored, condition, unknown = _published(config)
        in_epochs = Schedule([samples], [1.0], config.data.epoch_end).batches_in(epochs, batch_size) if samples else 0
    steps = config.steps or in_epochs
    return Length(steps, steps * batch_size, stored, condition, "" if config.steps else unknown)


def _published(config: TrainConfig) -> tuple[int | None, int | None, str, str]:
    """Samples of an epoch and stored clips by the published sizes of the sets; the condition; what is unknown."""
    missing = ", ".join(source.shards for source in config.data.sources)
    sets = [published_set(source.shards) for source in config.data.sources]
    known = [found for found in sets if found is not None]
    if len(known) < len(sets):
        return None, None, "", f"{missing} cannot be counted yet; give the clips of an epoch: clips=N or --clips N"
    pairs = [source.texts is not None for source in config.data.sources]
    samples = sum(found.samples if texts else found.clips for found, texts in zip(known, pairs, strict=True))
    stored = sum(found.clips for found in known)
    if config.steps:
        return samples, stored, "", ""
    names = " and ".join(found.name for found in known)
    of = f"the {samples:,} samples" if samples != stored else f"the {samples:,} clips"
    return samples, stored, f", if an epoch has {of} of {names}: {missing} cannot be counted yet", ""


def _are_here(data: DataConfig) -> bool:
    """Whether every shard set can be counted; object stores are asked, not listed."""
    return all("://" in source.shards or (Path(source.shards) / "manifest.parquet").exists() for source in data.sources)


def _stream(config: TrainConfig) -> Stream:
    """The stream of the run, for its counts alone."""
    return Stream(
        config.data, global_batch_size=config.batch.global_batch_size, image_size_px=1, tokenize=_no_tokens, seed=0
    )


def _no_tokens(texts: list[str]) -> torch.Tensor:
    raise AssertionError("a plan reads no text")
