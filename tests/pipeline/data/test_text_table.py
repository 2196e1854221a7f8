"""Several texts per clip: every pair once per epoch, captions of one clip in different rounds, any number of ranks."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import InputError

TEXTS = {0: 3, 1: 3, 2: 1, 3: 2, 4: 3, 5: 3}
"""Clip -> how many texts it has; clip 6 of the set has none."""


def tokenize(texts: list[str]) -> Tensor:
    """ "5 2" -> ids [6, 3]: clip and text number, each plus one."""
    return torch.tensor([[*(int(word) + 1 for word in text.split()), 0] for text in texts])


def write_texts(path: Path) -> Path:
    rows = [{"clip_id": f"v0.{clip}.mp4", "text": f"{clip} {n}"} for n in range(3) for clip in TEXTS if n < TEXTS[clip]]
    rows.append({"clip_id": "not_here.mp4", "text": "9 9"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(make_set: Any, tmp_path: Path) -> DataConfig:
    shards = make_set([4, 3], videos=1)
    source = SourceConfig(shards=str(shards.folder), texts=write_texts(tmp_path / "texts.jsonl"), caption_from="")
    return DataConfig(sources=[source], num_frames=2, num_text_tokens=3, num_workers=0, epoch_end="carry")


def pairs_of(config: DataConfig, count: int, *, batch: int = 5, rank: int = 0, world_size: int = 1) -> list[Any]:
    stream = Stream(
        config,
        global_batch_size=batch,
        image_size_px=32,
        tokenize=tokenize,
        seed=1,
        rank=rank,
        world_size=world_size,
    )
    found: list[Any] = []
    for got in stream:
        found += [tuple(row[:2]) for row, ok in zip(got.subtitle_BL.tolist(), got.valid_B.tolist(), strict=True) if ok]
        # The text belongs to the clip that is shown: red tells the clip.
        red = got.video_BTCHW[:, 0, 0, 16, 16].tolist()
        shown = [round((value - 40) / 8) for value, ok in zip(red, got.valid_B.tolist(), strict=True) if ok]
        assert shown == [clip - 1 for clip, _ in found[-len(shown) :]]
        if len(found) * world_size >= count:
            return found
    return found


def test_every_pair_once_per_epoch(config: DataConfig) -> None:
    epochs = pairs_of(config, 30)
    expected = Counter({(clip + 1, n + 1): 1 for clip, count in TEXTS.items() for n in range(count)})
    assert Counter(epochs[:15]) == Counter(epochs[15:]) == expected
    assert epochs[:15] != epochs[15:]


def test_a_round_shows_each_clip_once(config: DataConfig) -> None:
    """6 clips have a first text, 5 a second, 4 a third: no clip meets itself within a round."""
    clips = [clip for clip, _ in pairs_of(config, 15)]
    assert [len(set(clips[a:b])) for a, b in ((0, 6), (6, 11), (11, 15))] == [6, 5, 4]


def test_ranks_share_the_same_batches_and_resume_goes_on(config: DataConfig) -> None:
    whole = pairs_of(config, 30, batch=6)
    halves = [pairs_of(config, 30, batch=6, rank=rank, world_size=2) for rank in range(2)]
    joined = [pair for b in range(5) for half in halves for pair in half[3 * b : 3 * b + 3]]
    assert joined == whole


def test_a_changed_table_is_refused_at_resume(config: DataConfig) -> None:
    def open_stream() -> Stream:
        return Stream(config, global_batch_size=5, image_size_px=32, tokenize=tokenize, seed=1)

    stream = open_stream()
    assert stream.samples_per_epoch == 15
    state = stream.state_dict()
    open_stream().load_state_dict(state)
    path = config.sources[0].texts
    assert path is not None
    path.write_text(path.read_text() + json.dumps({"clip_id": "v0.6.mp4", "text": "6 0"}) + "\n")
    with pytest.raises(InputError, match="texts"):
        open_stream().load_state_dict(state)


def test_the_state_names_what_the_run_started_with_whatever_becomes_of_the_file(config: DataConfig) -> None:
    stream = Stream(config, global_batch_size=5, image_size_px=32, tokenize=tokenize, seed=1)
    state = stream.state_dict()
    path = config.sources[0].texts
    assert path is not None
    path.unlink()
    assert stream.state_dict() == state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no row"),
        ('{"clip_id": "a", "text": ""}', "not empty"),
        ('{"clip_id": "a", "text": "b"}', "no text for"),
    ],
)
def test_wrong_tables_are_named(config: DataConfig, content: str, message: str) -> None:
    path = config.sources[0].texts
    assert path is not None
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Stream(config, global_batch_size=5, image_size_px=32, tokenize=tokenize, seed=1)


def test_settings_that_would_do_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts gives the subtitles"):
        SourceConfig(shards="x", texts=tmp_path, subtitle_from="txt")
