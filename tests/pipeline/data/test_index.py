"""The index: built once, kept for its manifest, refused when it does not fit."""

import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import index, index_build
from pipeline.data.clips import ClipReader
from pipeline.data.format import name_hash
from pipeline.data.index import Manifest
from pipeline.data.manifest_file import manifest_facts, read_table
from pipeline.errors import InputError, RunError

MakeSet = Callable[..., Any]


def other_table() -> bytes:
    """A Parquet file that is none of ours."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["x"], "key": [1]}), buffer)
    return buffer.getvalue()


FILE_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) * 2 // 3],
    "zeros": lambda content: bytes(len(content)),
    "no table": lambda content: b"<html>not found</html>" * 40,
    "another table": lambda content: other_table(),
}


@pytest.mark.parametrize("damage", FILE_DAMAGES)
@pytest.mark.parametrize("name", ["shards.arrow", "samples.arrow"])
def test_a_damaged_index_is_built_again(make_set: MakeSet, name: str, damage: str) -> None:
    written = make_set([3, 2])
    first = Manifest.open(written.folder)
    content = (first.index / name).read_bytes()
    whole = first.places(np.arange(5))
    (first.index / name).unlink()  # a new file: the old one is mapped
    (first.index / name).write_bytes(FILE_DAMAGES[damage](content))
    again = Manifest.open(written.folder)
    assert again.places(np.arange(5)) == whole
    assert (again.index / name).read_bytes() == content
    assert [path.name for path in again.index.parent.iterdir()] == [again.hash]
    # Of a manifest that is no more nothing says how it was: an error that names it, and nothing is removed.
    (again.index / name).unlink()
    (again.index / name).write_bytes(FILE_DAMAGES[damage](content))
    written.add_shard(written.shards[0])
    with pytest.raises(RunError, match=rf"the index .*/{again.hash} is damaged .*; remove it"):
        Manifest.open(written.folder, pinned=again.hash)
    assert (again.index / name).exists()


@pytest.mark.parametrize("damage", FILE_DAMAGES)
@pytest.mark.parametrize("name", ["manifest.parquet", "shards/000001.parquet"])
def test_a_damaged_table_of_a_set_is_named_with_the_way_out(make_set: MakeSet, name: str, damage: str) -> None:
    written = make_set([3, 2])
    path = written.folder / name
    path.write_bytes(FILE_DAMAGES[damage](path.read_bytes()))
    way_out = "write .* again" if "manifest" in name else "write the (shard and the )?manifest again"
    with pytest.raises(InputError, match=f"{name}.*{way_out}"):
        Manifest.open(written.folder)
    with pytest.raises(InputError, match=f"{name}.*{way_out}"):
        ClipReader(written.folder, num_frames=1, image_size_px=8)


def test_a_manifest_with_other_rows_than_its_hash_says_is_refused(make_set: MakeSet) -> None:
    written = make_set([3, 2])
    path = written.folder / "manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(InputError, match="does not carry the hash of its own rows"):
        Manifest.open(written.folder)
    pq.write_table(table.drop_columns(["num_samples"]), path)
    with pytest.raises(InputError, match="has no column num_samples"):
        Manifest.open(written.folder)


def test_rows_are_found_where_the_sidecars_say(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (index, index_build):
        monkeypatch.setattr(module, "CHUNK_BITS", 2)  # several Arrow batches, of which one spans two shards
    written = make_set([3, 5, 1, 4])
    manifest = Manifest.open(written.folder)
    expected = [
        (f"shards/{shard:06d}", row["offset"], row["size"], name_hash(row["key"]))
        for shard in range(4)
        for row in written.members(shard)
    ]
    places = manifest.places(np.arange(13))
    assert [(place.shard, place.offset, place.size, place.key_hash) for place in places] == expected
    assert (len(manifest), manifest.num_shards, manifest.shard_sizes.tolist()) == (13, 4, [3, 5, 1, 4])
    videos = [name_hash(f"v{clip.video}") for clip in written.clips]
    assert manifest.video_hashes(np.arange(13)).tolist() == videos


def test_what_was_read_is_let_go_of_at_once(make_set: MakeSet) -> None:
    """A thread that still holds it when the interpreter ends would abort the process: exit code 134 for any error."""
    content = Path(make_set([3]).folder, "shards/000000.parquet").read_bytes()
    before = sys.getrefcount(content)
    for columns in (["key"], None) * 50:
        assert read_table(content, columns).num_rows == 3
        assert sys.getrefcount(content) == before


def test_names_select_rows_by_key_clip_and_video(make_set: MakeSet) -> None:
    manifest = Manifest.open(make_set([3, 5], videos=3).folder)
    assert manifest.rows_named(["v1", "v0.3.mp4", "v2+2", "x"]).tolist() == [1, 2, 3, 4, 7]


def test_the_index_is_built_once_and_a_killed_build_is_swept_away(make_set: MakeSet) -> None:
    written = make_set([3])
    first = Manifest.open(written.folder)
    folder = written.folder / "index"
    made = (folder / first.hash / "samples.arrow").stat().st_mtime_ns
    Manifest.open(written.folder)
    assert (folder / first.hash / "samples.arrow").stat().st_mtime_ns == made
    (folder / f".building_{first.hash}_left").mkdir()
    written.add_shard([type(written.clips[0])(number) for number in (8, 9)])
    second = Manifest.open(written.folder)
    assert len(second) == 5 and len(Manifest.open(written.folder, pinned=first.hash)) == 3
    assert sorted(path.name for path in folder.iterdir()) == sorted([first.hash, second.hash])


def test_the_index_may_lie_elsewhere(make_set: MakeSet, tmp_path: Path) -> None:
    written = make_set([3])
    Manifest.open(written.folder, index_folder=tmp_path / "elsewhere")
    assert not (written.folder / "index").exists()


def test_a_sidecar_that_the_manifest_does_not_name_is_wrong_input(make_set: MakeSet) -> None:
    written = make_set([3, 2])
    sidecar = written.folder / "shards/000001.parquet"
    sidecar.write_bytes(sidecar.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"000001\.parquet is not the file that the manifest names"):
        Manifest.open(written.folder)


def test_a_set_without_samples_is_wrong_input(make_set: MakeSet) -> None:
    written = make_set([])
    written.folder.mkdir()
    written.write_manifest()
    with pytest.raises(InputError, match="has no samples"):
        Manifest.open(written.folder)


def test_others_wait_for_the_one_that_builds_and_say_so(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index_build.logger, "propagate", True)
    written = make_set([3, 2])
    started, go_on = threading.Event(), threading.Event()
    builds: list[str] = []
    real = index_build.write_index

    def slow(target: Path, *arguments: Any, **options: Any) -> None:
        builds.append(target.name)
        started.set()
        assert go_on.wait(60)
        real(target, *arguments, **options)

    monkeypatch.setattr(index_build, "write_index", slow)
    monkeypatch.setattr(index_build, "_REPORT_S", 0.0)
    monkeypatch.setattr(index_build, "_POLL_S", 0.01)
    with ThreadPoolExecutor(3) as pool, caplog.at_level("INFO", "clip_vip"):
        first = pool.submit(Manifest.open, written.folder)
        assert started.wait(60)
        others = [pool.submit(Manifest.open, written.folder) for _ in range(2)]
        while not any("waits for the index" in record.message for record in caplog.records):
            time.sleep(0.01)
        assert not any(other.done() for other in others)
        go_on.set()
        assert [len(one.result()) for one in (first, *others)] == [5, 5, 5]
    assert len(builds) == 1


@pytest.mark.parametrize("holder", ["process 0 on another", "process 4194305 on {host}"])
def test_a_builder_that_is_dead_is_followed_by_another(make_set: MakeSet, holder: str) -> None:
    written = make_set([3])
    root = written.folder / "index"
    root.mkdir()
    lease = root / f".builder_{manifest_facts(str(written.folder))['manifest_hash']}"
    lease.write_text(holder.format(host=socket.gethostname()))
    os.utime(lease, (time.time() - 1000,) * 2)
    manifest = Manifest.open(written.folder)
    assert [path.name for path in root.iterdir()] == [manifest.hash]


def test_an_index_that_came_with_the_lease_is_not_built_again(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = make_set([3])
    real = index_build._take

    def late(lease: Path) -> bool:
        monkeypatch.setattr(index_build, "_take", real)
        Manifest.open(written.folder)
        monkeypatch.setattr(index_build, "_build", lambda *_: pytest.fail("it is there already"))
        return real(lease)

    monkeypatch.setattr(index_build, "_take", late)
    assert len(Manifest.open(written.folder)) == 3


def test_a_builder_whose_lease_was_taken_does_no_harm(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood still for long: another took the lease, swept its folder away, and was first."""
    written = make_set([3])
    real = index_build.write_index

    def overtaken(target: Path, *arguments: Any, **options: Any) -> None:
        real(target, *arguments, **options)
        monkeypatch.setattr(index_build, "write_index", real)
        (target.parent / f".builder_{target.name.split('_')[1]}").unlink()
        assert len(Manifest.open(written.folder)) == 3

    monkeypatch.setattr(index_build, "write_index", overtaken)
    assert len(Manifest.open(written.folder)) == 3
    assert len(list((written.folder / "index").iterdir())) == 1


@pytest.mark.heavy
def test_processes_build_what_one_process_builds(make_set: MakeSet, tmp_path: Path, monkeypatch: Any) -> None:
    written = make_set([1] * 9, videos=2)
    alone = Manifest.open(written.folder, index_folder=tmp_path / "alone")
    monkeypatch.setattr(index_build, "_RUN", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    shared = Manifest.open(written.folder, index_folder=tmp_path / "shared")
    for name in ("samples.arrow", "shards.arrow"):
        assert (alone.index / name).read_bytes() == (shared.index / name).read_bytes()


def test_the_command_builds_the_index(make_set: MakeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = make_set([3, 2])
    assert index.main([str(written.folder), f"index_folder={tmp_path / 'here'}"]) == 0
    assert "5 samples in 2 shards" in capsys.readouterr().out
    with pytest.raises(InputError, match="the first argument must be a shard set"):
        index.main(["index_folder=x"])
