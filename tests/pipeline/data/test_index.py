"""The index: built once, kept for its manifest, refused when it does not fit."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import index
from pipeline.data.index import Manifest, name_hash
from pipeline.errors import InputError

MakeSet = Callable[..., Any]


def test_rows_are_found_where_the_sidecars_say(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_CHUNK_BITS", 2)  # several Arrow batches, of which one spans two shards
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
        assert index.read_table(content, columns).num_rows == 3
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
    (folder / f".building_{index.socket.gethostname()}_old").mkdir()
    written.add_shard([type(written.clips[0])(number) for number in (8, 9)])
    second = Manifest.open(written.folder)
    assert len(second) == 5 and len(Manifest.open(written.folder, pinned=first.hash)) == 3
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted([first.hash, second.hash])


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
