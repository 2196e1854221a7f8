"""Evaluation reading: every clip once, in the order asked for, damaged ones marked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.data.clips import ClipReader
from pipeline.errors import InputError

MakeSet = Callable[..., Any]


def test_clips_come_in_the_order_asked_for_without_padding(make_set: MakeSet) -> None:
    written = make_set([4, 3])
    asked = [f"v{clip.video}.{clip.number}.mp4" for clip in reversed(written.clips)]
    reader = ClipReader(written.folder, num_frames=3, image_size_px=16, clip_ids=asked)
    batches = list(reader.batches(1, 6, batch_size=2))
    assert [clip_id for clip_ids, _, _ in batches for clip_id in clip_ids] == asked[1:6]
    video_BTCHW = torch.cat([video for _, video, _ in batches])
    assert video_BTCHW.shape == (5, 3, 3, 16, 16)
    reds = video_BTCHW[:, 0, 0].float().mean(dim=(1, 2)).tolist()
    assert reds == pytest.approx([40 + 8 * number for number in (5, 4, 3, 2, 1)], abs=4)


def test_all_clips_in_manifest_order_and_a_damaged_one_is_marked(make_set: MakeSet) -> None:
    written = make_set([4, 3])
    member = written.members(0)[2]
    with open(written.tar(0), "r+b") as tar:
        tar.seek(member["media_offset"] + member["media_size"] // 2)
        tar.write(b"\x55\xaa")
    reader = ClipReader(written.folder, num_frames=2, image_size_px=32)
    assert len(reader) == 7
    ((_, video_BTCHW, ok_B),) = reader.batches(0, 7, batch_size=16)
    assert ok_B.tolist() == [True, True, False, True, True, True, True]
    assert not video_BTCHW[2].any()


def test_a_clip_that_the_set_lacks_is_named(make_set: MakeSet) -> None:
    written = make_set([2])
    with pytest.raises(InputError, match=r"lacks 1 of 1 clips, the first is 'nowhere\.1\.mp4'"):
        ClipReader(written.folder, num_frames=2, image_size_px=32, clip_ids=["nowhere.1.mp4"])
