"""Blended sources, image sources, exclude lists, pinned manifests and additions to them."""

import io
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import InputError

MakeSet = Callable[..., Any]


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.ones(len(texts), 6, dtype=torch.int64)


def stream_of(*sources: SourceConfig, batch: int = 4, **options: Any) -> Stream:
    config = DataConfig(sources=list(sources), num_frames=2, num_text_tokens=6, num_workers=0, **options)
    return Stream(config, global_batch_size=batch, image_size_px=32, tokenize=tokenize, seed=7)


def source(written: Any, **options: Any) -> SourceConfig:
    return SourceConfig(shards=str(written.folder), **options)


def keys_of(stream: Stream, count: int) -> list[str]:
    return [key for batch in islice(stream, count) for key in batch.keys]


def test_sources_share_every_batch_by_weight_and_each_has_its_own_epochs(make_set: MakeSet) -> None:
    videos, others = make_set([6, 6], "videos"), make_set([5], "others")
    stream = stream_of(source(videos, weight=2), source(others, weight=1), batch=6)
    assert (stream.samples_per_epoch, stream.batches_per_epoch) == (18, 3)
    batches = list(islice(stream, 5))
    assert [Counter(batch.sources) for batch in batches] == [{0: 4, 1: 2}] * 5
    first = [key for batch in batches[:3] for key, number in zip(batch.keys, batch.sources, strict=True) if number == 0]
    assert sorted(first) == sorted(videos.keys)
    second = [key for batch in batches for key, number in zip(batch.keys, batch.sources, strict=True) if number == 1]
    assert sorted(second[:5]) == sorted(second[5:]) == sorted(others.keys)
    assert stream.composition == [4, 2]
    assert stream.composition_of_epoch == [8, 4]


def test_images_are_videos_of_one_frame_with_captions_only(make_set: MakeSet) -> None:
    def picture(clip: Any) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (64, 32), (clip.number * 10, 0, 0)).save(buffer, "JPEG", quality=95)
        return "jpg", buffer.getvalue()

    written = make_set([1], "images")
    clips = [type(written.clips[0])(number) for number in range(5, 9)]
    written.add_shard(clips, picture)
    (batch,) = islice(stream_of(source(written, kind="image"), batch=5, shuffle=False), 1)
    assert batch.video_BTCHW.shape == (5, 2, 3, 32, 32)
    assert batch.has_caption_B.all() and not batch.has_subtitle_B.any() and not batch.subtitle_BL.any()
    reds = batch.video_BTCHW[1:, :, 0].float().mean(dim=(2, 3))
    assert reds.tolist() == [pytest.approx([10 * number] * 2, abs=3) for number in range(5, 9)]
    assert torch.equal(batch.middle_BCHW[1:], batch.video_BTCHW[1:, 0])


def test_a_missing_text_is_masked(make_set: MakeSet) -> None:
    (batch,) = islice(stream_of(source(make_set([3], caption=None)), batch=3), 1)
    assert batch.valid_B.all() and batch.has_subtitle_B.all()
    assert not batch.has_caption_B.any() and not batch.caption_BL.any()


def test_texts_come_from_where_the_config_says(make_set: MakeSet) -> None:
    written = make_set([3], subtitle=None)
    (batch,) = islice(stream_of(source(written, subtitle_from="json:caption", caption_from=""), batch=3), 1)
    assert batch.has_subtitle_B.all() and not batch.has_caption_B.any()


def test_excluded_clips_and_videos_never_come(make_set: MakeSet, tmp_path: Path) -> None:
    written = make_set([5, 4, 4])
    (tmp_path / "no.txt").write_text("# test videos\nv1\n\nv0.4.mp4\nnot-in-the-set\n")
    kept = {clip.key for clip in written.clips if clip.video != 1 and clip.number != 4}
    stream = stream_of(source(written), batch=3, exclude=[tmp_path / "no.txt"])
    assert stream.samples_per_epoch == len(kept) == 9
    assert sorted(keys_of(stream, 3)) == sorted(kept)
    windowed = stream_of(source(written), batch=3, exclude=[tmp_path / "no.txt"], shuffle_window_shards=2)
    assert sorted(keys_of(windowed, 3)) == sorted(kept)


def test_an_exclude_list_that_takes_everything_or_is_missing_is_wrong_input(make_set: MakeSet, tmp_path: Path) -> None:
    written = make_set([2], videos=1)
    (tmp_path / "no.txt").write_text("v0\n")
    with pytest.raises(InputError, match="no sample left"):
        stream_of(source(written), exclude=[tmp_path / "no.txt"])
    with pytest.raises(InputError, match=r"cannot read exclude list .*lost\.txt"):
        stream_of(source(written), exclude=[tmp_path / "lost.txt"])


def test_a_resumed_run_keeps_the_manifest_that_it_pinned(make_set: MakeSet) -> None:
    written = make_set([4, 4])
    whole = keys_of(stream_of(source(written), batch=4), 6)
    first = stream_of(source(written), batch=4)
    assert keys_of(first, 1) == whole[:4]
    written.add_shard([type(written.clips[0])(number) for number in range(8, 12)])
    resumed = stream_of(source(written), batch=4)
    assert resumed.samples_per_epoch == 12
    resumed.load_state_dict(first.state_dict())
    assert resumed.samples_per_epoch == 8
    assert keys_of(resumed, 5) == whole[4:]


def test_additions_are_taken_up_at_the_next_epoch_when_told_to(make_set: MakeSet) -> None:
    written = make_set([4, 4])
    stream = stream_of(source(written), batch=4, follow_manifest=True)
    batches = iter(stream)
    early = [next(batches)]
    written.add_shard([type(written.clips[0])(number) for number in range(8, 12)])
    early.append(next(batches))
    assert sorted(key for batch in early for key in batch.keys) == sorted(written.keys[:8])
    late = list(islice(batches, 3))
    assert {batch.epoch for batch in late} == {1}
    assert sorted(key for batch in late for key in batch.keys) == sorted(written.keys)

    resumed = stream_of(source(written), batch=4, follow_manifest=True)
    resumed.load_state_dict(stream.state_dict())
    assert [batch.keys for batch in islice(resumed, 3)] == [batch.keys for batch in islice(stream, 3)]


def test_a_resume_that_would_change_the_order_is_refused(make_set: MakeSet) -> None:
    written = make_set([4, 4])
    state = stream_of(source(written)).state_dict()
    with pytest.raises(InputError, match="has shuffle=True, this config has False"):
        stream_of(source(written), shuffle=False).load_state_dict(state)


def test_excluded_clips_may_join_the_set_between_runs(make_set: MakeSet, tmp_path: Path) -> None:
    written = make_set([4, 4])
    (tmp_path / "no.txt").write_text("v0.9.mp4\nv1\n")
    first = stream_of(source(written), batch=2, exclude=[tmp_path / "no.txt"])
    whole = keys_of(first, 3)
    written.add_shard([type(written.clips[0])(number) for number in (8, 9)])
    resumed = stream_of(source(written), batch=2, exclude=[tmp_path / "no.txt"])
    resumed.load_state_dict(first.state_dict())
    assert sorted(whole) == sorted(keys_of(resumed, 3))
    (tmp_path / "no.txt").write_text("v1\n")
    with pytest.raises(InputError, match="the run to resume has exclude='2 names"):
        stream_of(source(written), exclude=[tmp_path / "no.txt"]).load_state_dict(first.state_dict())


def test_a_pinned_manifest_that_is_gone_is_named(make_set: MakeSet) -> None:
    written = make_set([4])
    stream = stream_of(source(written))
    state = {**stream.state_dict(), "manifests": ["0123456789abcdef"]}
    with pytest.raises(InputError, match="has changed: this run is pinned to manifest 0123456789abcdef"):
        stream.load_state_dict(state)


def test_fewer_samples_than_a_batch_is_wrong_input(make_set: MakeSet) -> None:
    written = make_set([3])
    with pytest.raises(InputError, match="an epoch has 3 samples, fewer than one global batch of 4"):
        next(iter(stream_of(source(written))))
    assert len(keys_of(stream_of(source(written), epoch_end="carry"), 3)) == 12


def test_a_folder_without_a_manifest_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest\.parquet; write the shards first"):
        stream_of(SourceConfig(shards=str(tmp_path)))


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False, "shuffle_window_shards": 2},
        {"follow_manifest": True, "epoch_end": "carry"},
        {"cache": {"folder": "/c"}},
    ],
)
def test_settings_that_would_do_nothing_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"nothing|needs"):
        DataConfig(sources=[SourceConfig(shards="x")], **options)
