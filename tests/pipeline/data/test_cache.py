"""Object stores: by range, or through a local cache that stays within its bound."""

import os
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from pipeline.data import storage
from pipeline.data.cache import CacheConfig, CachedFolder, open_folder
from pipeline.data.sources import SourceConfig
from pipeline.data.storage import DamagedSample, RemoteFolder
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import InputError, RunError

MakeSet = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """An object store in memory with two shards of 1,000 and 2,000 bytes."""
    fs = fsspec.filesystem("memory")
    fs.pipe({"/bucket/shards/a.tar": bytes(range(250)) * 4, "/bucket/shards/b.tar": b"b" * 2000})
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


@pytest.mark.parametrize("cached", [False, True])
def test_a_read_by_offset_brings_the_same_bytes(store: str, tmp_path: Path, cached: bool) -> None:
    folder = open_folder(store, CacheConfig(folder=tmp_path) if cached else None, "v1")
    assert folder.read("shards/a.tar", 10, 5) == bytes(range(10, 15))
    with pytest.raises(DamagedSample, match="shard_missing"):
        folder.read("shards/none.tar", 0, 1)
    with pytest.raises(DamagedSample, match="shard_truncated"):
        folder.read("shards/a.tar", 990, 20)


def test_the_cache_stays_within_its_bound_and_keeps_the_last_used(store: str, tmp_path: Path) -> None:
    for name in "cde":
        fsspec.filesystem("memory").pipe(f"/bucket/shards/{name}.tar", name.encode() * 1000)
    folder = CachedFolder(store, CacheConfig(folder=tmp_path, max_gb=3.1e-6), "v1")
    for number, name in enumerate(["a", "c", "d", "a", "e"]):
        folder.read(f"shards/{name}.tar", 0, 10)
        # The clock of a file system is coarse; the test is about the order.
        os.utime(tmp_path / f"bucket_v1/shards/{name}.tar", (number, number))
    assert sorted(path.stem for path in tmp_path.rglob("*.tar")) == ["a", "d", "e"]
    assert not list(tmp_path.rglob("*.part"))
    assert folder.read("shards/c.tar", 0, 3) == b"ccc"


def test_prefetch_brings_shards_in_the_background(store: str, tmp_path: Path) -> None:
    folder = CachedFolder(store, CacheConfig(folder=tmp_path), "v1")
    folder.prefetch(["shards/a.tar", "shards/b.tar"])
    arrived = threading.Event()
    watched = tmp_path / "bucket_v1/shards/b.tar"
    for _ in range(500):
        if watched.exists():
            break
        arrived.wait(0.02)
    assert sorted(path.stem for path in tmp_path.rglob("*.tar")) == ["a", "b"]


def test_another_manifest_has_its_own_copies(store: str, tmp_path: Path) -> None:
    cache = CacheConfig(folder=tmp_path)
    CachedFolder(store, cache, "v1").read("shards/b.tar", 0, 1)
    fsspec.filesystem("memory").pipe("/bucket/shards/b.tar", b"B" * 2000)
    assert CachedFolder(store, cache, "v2").read("shards/b.tar", 0, 3) == b"BBB"


def test_a_store_that_fails_is_fatal_and_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class ThrottlingError(Exception):
        """What a store's own library raises."""

    def refuse(*_: Any, **__: Any) -> bytes:
        raise ThrottlingError("slow down")

    monkeypatch.setattr(storage, "READ_RETRY_PAUSES_S", (0.0,))
    folder = RemoteFolder(store)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(
        RunError, match=r"cannot read memory://bucket/shards/a\.tar: ThrottlingError: slow down \(tried 2"
    ):
        folder.read("shards/a.tar", 0, 1)


def test_an_unknown_protocol_is_wrong_input() -> None:
    with pytest.raises(InputError, match="cannot open nosuch://x: Protocol not known"):
        RemoteFolder("nosuch://x").read("a", 0, 1)


@pytest.mark.parametrize("cached", [False, True])
def test_the_stream_from_a_store_equals_the_local_one(make_set: MakeSet, tmp_path: Path, cached: bool) -> None:
    written = make_set([4, 3, 5])
    cache = {"cache": CacheConfig(folder=tmp_path / "cache")} if cached else {}
    batches = []
    for where, options in ((str(written.folder), {}), (f"file://{written.folder}", cache)):
        config = DataConfig(
            sources=[SourceConfig(shards=where)],
            num_frames=2,
            num_text_tokens=6,
            num_workers=0,
            shuffle_window_shards=2,
            index_folder=tmp_path / "index",
            **options,
        )
        stream = Stream(config, global_batch_size=4, image_size_px=32, tokenize=_ones, seed=7)
        batches.append(list(islice(stream, 5)))
    assert [batch.keys for batch in batches[0]] == [batch.keys for batch in batches[1]]
    pairs = zip(*batches, strict=True)
    assert all(torch.equal(local.video_BTCHW, remote.video_BTCHW) for local, remote in pairs)


def _ones(texts: list[str]) -> torch.Tensor:
    return torch.ones(len(texts), 6, dtype=torch.int64)
