"""Damage is masked, counted by reason and named; a failing file system is retried, then fatal, never a bad sample."""

import io
import os
import tarfile
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline.data import read_ahead, storage
from pipeline.data.sample import tar_members
from pipeline.data.sources import SourceConfig
from pipeline.data.storage import DamagedSample
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import RunError
from pipeline.log import logger

MakeSet = Callable[..., Any]


@pytest.fixture(autouse=True, params=["one by one", "ahead"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an error means is the same where threads read ahead: here from the second read on."""
    if request.param == "ahead":
        monkeypatch.setattr(read_ahead, "_LONG_S", -1.0)


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.ones(len(texts), 6, dtype=torch.int64)


def stream_of(written: Any, batch: int = 7, rank: int = 0, world_size: int = 1, **options: Any) -> Stream:
    source = SourceConfig(shards=str(written.folder))
    config = DataConfig(sources=[source], num_frames=2, num_text_tokens=6, **{"num_workers": 0, **options})
    return Stream(
        config, global_batch_size=batch, image_size_px=32, tokenize=tokenize, seed=7, rank=rank, world_size=world_size
    )


def overwrite(written: Any, shard: int, offset: int, content: bytes) -> None:
    with open(written.tar(shard), "r+b") as tar:
        tar.seek(offset)
        tar.write(content)


def flip_a_bit(written: Any) -> str:
    member = written.members(0)[1]
    at = member["media_offset"] + member["media_size"] // 2
    content = written.tar(0).read_bytes()[at]
    overwrite(written, 0, at, bytes([content ^ 0x10]))
    return str(member["key"])


def cut_the_shard(written: Any) -> str:
    member = written.members(0)[3]
    os.truncate(written.tar(0), member["offset"] + 700)
    return str(member["key"])


def break_the_json(written: Any) -> str:
    member = written.members(0)[2]
    overwrite(written, 0, member["json_offset"], b"<")
    return str(member["key"])


def lose_the_media(written: Any) -> str:
    """The media member becomes another kind of file, under a valid header."""
    member = written.members(0)[2]
    info = tarfile.TarInfo(f"{member['key']}.lost")
    info.size = member["media_size"]
    overwrite(written, 0, member["offset"], info.tobuf(tarfile.USTAR_FORMAT)[:512])
    return str(member["key"])


def garble_a_header(written: Any) -> str:
    member = written.members(0)[0]
    overwrite(written, 0, member["offset"] + 10, b"\xff")
    return str(member["key"])


def rename_a_sample(written: Any) -> str:
    member = written.members(0)[0]
    info = tarfile.TarInfo("another.mp4")
    info.size = member["media_size"]
    overwrite(written, 0, member["offset"], info.tobuf(tarfile.USTAR_FORMAT)[:512])
    return str(member["key"])


def blank_a_sample(written: Any) -> str:
    """What lies there now is the padding at the end of another tar."""
    member = written.members(0)[2]
    overwrite(written, 0, member["offset"], bytes(member["size"]))
    return str(member["key"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "media_changed"),
        (cut_the_shard, "shard_truncated"),
        (break_the_json, "json_invalid"),
        (lose_the_media, "media_missing"),
        (garble_a_header, "tar_invalid"),
        (rename_a_sample, "shard_changed"),
        (blank_a_sample, "shard_changed"),
    ],
)
def test_a_damaged_sample_is_a_masked_row_with_a_name(
    make_set: MakeSet,
    damage: Callable[[Any], str],
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    written = make_set([4, 3])
    key = damage(written)
    stream = stream_of(written)
    (batch, _) = islice(stream, 2)
    shard = f"{written.folder}/shards/000000.tar"
    assert [record.message for record in caplog.records] == [f"bad sample {key} of {shard}: {reason}; masked"]
    assert [(bad.key, bad.reason) for bad in batch.bad] == [(key, reason)]
    assert batch.bad[0].shard == f"{written.folder}/shards/000000.tar"
    row = batch.keys.index(key)
    assert batch.valid_B.tolist() == [number != row for number in range(7)]
    assert not batch.video_BTCHW[row].any() and not batch.has_subtitle_B[row] and not batch.has_caption_B[row]
    assert stream.bad_by_reason == {reason: 1}
    assert stream.state_dict()["bad"] == [[key, batch.bad[0].shard, reason]]


def test_a_deleted_shard_is_masked_clip_by_clip(make_set: MakeSet) -> None:
    written = make_set([4, 3])
    stream = stream_of(written)
    written.tar(1).unlink()
    (batch,) = islice(stream, 1)
    assert {bad.key for bad in batch.bad} == set(written.keys[4:])
    assert stream.bad_by_reason == {"shard_missing": 3}


def test_a_shard_that_was_replaced_before_it_was_opened_is_seen(make_set: MakeSet) -> None:
    written, other = make_set([4, 4]), make_set([3], "other")
    batches = iter(stream := stream_of(written, batch=4, shuffle=False))
    assert next(batches).valid_B.all()
    other.tar(0).replace(written.tar(1))
    assert [bad.key for bad in next(batches).bad] == list(written.keys[4:])
    assert stream.bad_by_reason.keys() <= {"shard_changed", "shard_truncated", "tar_invalid"}


@pytest.mark.heavy
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_may_be_deleted_or_replaced_while_workers_read(make_set: MakeSet, num_workers: int) -> None:
    """A worker that has a shard open goes on reading it as it was; one that has not masks it, clip by clip."""
    written, other = make_set([4] * 8), make_set([3], "other")
    stream = stream_of(written, batch=4, shuffle=False, num_workers=num_workers, prefetch_batches=1)
    batches = iter(stream)
    assert all(next(batches).valid_B.all() for _ in range(2))
    # Asked for by now are shards 0 to 3, by the worker that will also come back to shard 0.
    written.tar(0).unlink()
    written.tar(6).unlink()
    other.tar(0).replace(written.tar(5))
    late = [next(batches) for _ in range(7)]
    assert [len(batch) for batch in late] == [4] * 7
    masked = [key for batch in late for key, valid in zip(batch.keys, batch.valid_B, strict=True) if not valid]
    assert masked == list(written.keys[20:28])
    assert stream.bad_by_reason["shard_missing"] == 4
    assert stream.bad_by_reason.keys() <= {"shard_missing", "shard_changed", "shard_truncated", "tar_invalid"}
    batches.close()  # type: ignore[attr-defined]


def test_damage_is_the_same_at_every_world_size(make_set: MakeSet) -> None:
    written = make_set([4, 3])
    key = flip_a_bit(written)
    ranks = [stream_of(written, rank=rank, world_size=3) for rank in range(3)]
    parts = [next(iter(stream)) for stream in ranks]
    masked = [key for part in parts for key, valid in zip(part.keys, part.valid_B, strict=True) if key and not valid]
    assert masked == [key]
    assert [name for stream in ranks for name, _, _ in stream.state_dict()["bad"]] == [key]


def test_past_the_tolerance_the_run_fails_and_names_a_sample(make_set: MakeSet) -> None:
    written = make_set([4, 3])
    written.tar(1).unlink()
    with pytest.raises(RunError, match=r"3 bad samples in 7 \(\{'shard_missing': 3\}\), the last one v\d\+\d of "):
        next(iter(stream_of(written, max_bad_grace=2, max_bad_fraction=0.0)))
    next(iter(stream_of(written, max_bad_grace=0, max_bad_fraction=0.5)))


def test_an_error_of_the_file_system_is_retried(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    written = make_set([4, 3])
    failures = iter([OSError(5, "Input/output error")] * 2)
    real = os.pread

    def flaky(*arguments: int) -> bytes:
        for error in failures:
            raise error
        return real(*arguments)

    monkeypatch.setattr(storage, "READ_RETRY_PAUSES_S", (0.0, 0.0))
    stream = stream_of(written)
    monkeypatch.setattr(os, "pread", flaky)
    (batch,) = islice(stream, 1)
    assert batch.valid_B.all() and not batch.bad


def test_an_error_that_stays_is_fatal_and_never_a_bad_sample(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = make_set([4, 3])

    def broken(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "READ_RETRY_PAUSES_S", (0.0,))
    stream = stream_of(written)
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(RunError, match=r"cannot read .*\.tar: Input/output error \(tried 2 times\)"):
        next(iter(stream))
    assert stream.bad_by_reason == {}


def test_short_reads_are_put_together(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    written = make_set([3])
    stream = stream_of(written, batch=3)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: real(file, min(size, 1000), offset))
    assert next(iter(stream)).valid_B.all()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_long_names_are_found_in_every_tar_form(form: int) -> None:
    names = ["plain.mp4", "folder" * 15 + "/" + "long" * 20 + ".json"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    assert list(tar_members(buffer.getvalue())) == [(name, name.encode()) for name in names]


def test_a_tar_of_noise_is_damage() -> None:
    with pytest.raises(DamagedSample, match="tar_invalid"):
        list(tar_members(bytes(range(256)) * 4))
