"""Foreign tars become a source without being copied, and nothing in them is trusted."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.format import METADATA_KEY, SIDECAR_COLUMNS
from pipeline.errors import InputError
from preprocess.index import index_folder, main


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def foreign(painted: Callable[..., Path], tmp_path: Path) -> Path:
    video = painted(tmp_path / "x.mp4", num_frames=20).read_bytes()
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture, format="JPEG")
    folder = tmp_path / "foreign"
    (folder / "part1").mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        # video2dataset: numbered keys, caption as txt, facts as json.
        add(tar, "000000000_00000.mp4", video)
        add(tar, "000000000_00000.txt", b"a video caption")
        add(tar, "000000000_00000.json", json.dumps({"videoID": "abc", "clips": [[0, 1]]}).encode())
        add(tar, "000000001.json", b"{}")
        add(tar, "000000001.txt", b"without media")
        add(tar, "000000002.mp4", b"no video")
    with tarfile.open(folder / "part1" / "00001.tar", "w") as tar:
        # img2dataset.
        add(tar, "a/000010.jpg", picture.getvalue())
        add(tar, "a/000010.json", json.dumps({"caption": "an image", "subtitle": None}).encode())
        add(tar, "a/000011.png", picture.getvalue())
        add(tar, "a/000011.pyd", pickle.dumps(print))
    return folder


def test_samples_are_found_where_they_lie(foreign: Path, tmp_path: Path) -> None:
    stats = index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")
    assert (stats["num_delivered"], stats["num_failed"]) == (3, 2)
    assert stats["reasons"] == {"no_video_stream": 1, "video_unreadable": 1}
    manifest = pq.read_table(tmp_path / "out" / "manifest.parquet")
    facts = json.loads(manifest.schema.metadata[METADATA_KEY])
    assert (facts["caption_from"], facts["subtitle_from"], facts["num_samples"]) == ("txt", "", 3)
    assert manifest["shard"].to_pylist() == ["shards/00000", "shards/part1-00001"]
    found = {}
    for shard in manifest["shard"].to_pylist():
        sidecar = pq.read_table(tmp_path / "out" / f"{shard}.parquet")
        assert sidecar.column_names == list(SIDECAR_COLUMNS)
        data = (tmp_path / "out" / f"{shard}.tar").read_bytes()
        for row in sidecar.to_pylist():
            found[row["key"]] = row
            assert data[row["offset"] : row["offset"] + 512].startswith(row["key"].encode())
            assert row["offset"] < row["media_offset"] < row["offset"] + row["size"]
    video = found["000000000_00000"]
    assert (video["media_ext"], video["num_frames"], video["caption_chars"], video["video_id"]) == (
        "mp4",
        20,
        15,
        "abc",
    )
    assert (found["a/000010"]["media_ext"], found["a/000010"]["num_frames"], found["a/000010"]["txt_offset"]) == (
        "jpg",
        1,
        -1,
    )


def test_texts_from_json(foreign: Path, tmp_path: Path) -> None:
    stats = index_folder(foreign, tmp_path / "out", caption_from="json:caption", subtitle_from="json:subtitle")
    assert (stats["num_captions"], stats["num_subtitles"]) == (1, 0)


def test_command_line(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(foreign), str(tmp_path / "out")]) == 0
    assert "3 samples in 2 shards" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds no"):
        main([str(tmp_path / "videos"), str(tmp_path / "out")])
    with pytest.raises(InputError, match="json:FIELD"):
        main([str(foreign), str(tmp_path / "out"), "--caption-from", "caption"])
    (foreign / "00002.tar").write_bytes(b"x" * 2000)
    assert main([str(foreign), str(tmp_path / "out2")]) == 0
    assert "3 samples in 3 shards, 3 not usable" in capsys.readouterr().out


def test_a_tar_that_is_cut_short_gives_its_whole_samples(foreign: Path, tmp_path: Path) -> None:
    """video2dataset leaves such tars under their final names."""
    path = foreign / "part1" / "00001.tar"
    content = path.read_bytes()
    second = content.index(b"a/000011.png")
    for length, delivered in ((len(content), 2), (second, 1), (second + 600, 1), (600, 0)):
        path.write_bytes(content[:length])
        stats = index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")
        assert stats["num_delivered"] == 1 + delivered
        rows = pq.read_table(tmp_path / "out/failures/part1-00001.parquet").to_pylist()
        assert [row["reason"] for row in rows] == (["video_unreadable"] if length < len(content) else [])
        assert all("cut short" in row["detail"] for row in rows)


def test_a_key_that_comes_twice_counts_once(foreign: Path, tmp_path: Path) -> None:
    """Adjacent or not: training finds a sample by its key."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="JPEG")
    with tarfile.open(foreign / "00002.tar", "w") as tar:
        for key, text in (("k", b"one"), ("k", b"two"), ("other", b"three"), ("k", b"four")):
            add(tar, f"{key}.jpg", picture.getvalue())
            add(tar, f"{key}.txt", text)
    index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")
    kept = pq.read_table(tmp_path / "out/shards/00002.parquet").to_pylist()
    assert [(row["key"], row["caption_chars"]) for row in kept] == [("k", 3), ("other", 5)]
    lost = pq.read_table(tmp_path / "out/failures/00002.parquet").to_pylist()
    assert [(row["clip_id"], row["reason"]) for row in lost] == [("k", "duplicate_clip")] * 2


def test_a_second_index_follows_the_folder_and_never_enters_a_set_of_ours(foreign: Path, tmp_path: Path) -> None:
    index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")
    (foreign / "00000.tar").unlink()
    stats = index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")
    assert (stats["num_shards"], stats["num_delivered"]) == (1, 2)
    assert [path.name for path in sorted((tmp_path / "out/shards").iterdir())] == [
        "part1-00001.parquet",
        "part1-00001.tar",
    ]
    (tmp_path / "ours" / "plan").mkdir(parents=True)
    with pytest.raises(InputError, match="another folder"):
        index_folder(foreign, tmp_path / "ours", caption_from="txt", subtitle_from="")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_links_never_take_the_place_of_the_tars_they_lead_to(foreign: Path, tmp_path: Path) -> None:
    """OUTPUT/shards is the foreign folder, lies in it, or holds it; by whatever name."""
    shards = foreign.rename(tmp_path / "shards")
    before = contents(shards)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "shards").symlink_to(shards)
    for start, output in (
        (shards, tmp_path),
        (shards, tmp_path / "other"),
        (shards, shards / "index"),
        (shards / "part1", tmp_path),
    ):
        with pytest.raises(InputError, match="lie in one another"):
            index_folder(start, output, caption_from="txt", subtitle_from="")
    assert contents(shards) == before


def test_an_output_with_tars_of_its_own_is_refused(foreign: Path, tmp_path: Path) -> None:
    """video2dataset lays a parquet file beside each tar, as we do."""
    for name, files in {"both": ["a.tar", "a.parquet"], "tar": ["a.tar"], "table": ["a.parquet"]}.items():
        shards = tmp_path / name / "shards"
        shards.mkdir(parents=True)
        for file in files:
            (shards / file).write_bytes(b"somebody's")
        with pytest.raises(InputError, match="made by no index"):
            index_folder(foreign, tmp_path / name, caption_from="txt", subtitle_from="")
        assert contents(shards) == dict.fromkeys(files, b"somebody's")


def test_two_tars_never_share_a_name(foreign: Path, tmp_path: Path) -> None:
    (foreign / "part1-00001.tar").write_bytes((foreign / "00000.tar").read_bytes())
    with pytest.raises(InputError, match=r"part1/00001\.tar and .*part1-00001\.tar would share the name"):
        index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), b"{}"),
        ("z.jpg", b'{"clip_id": "\\ud83d", "video_id": "\\ud83d"}'),
        ("z.jpg", b'{"start_s": 0, "end_s": 1' + b"0" * 400 + b"}"),
        ("z.jpg", b'{"start_s": 0, "end_s": NaN}'),
        ("z.jpg", b'{"start_s": 0, "end_s": 1e999}'),
    ],
    ids=["stray byte in a name", "half a character in an id", "400 digits", "NaN", "infinity"],
)
def test_odd_facts_harm_nothing(foreign: Path, tmp_path: Path, name: str, facts: bytes) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="JPEG")
    with tarfile.open(foreign / "00002.tar", "w") as tar:
        add(tar, name, picture.getvalue())
        add(tar, "z.json", facts)
    stats = index_folder(foreign, tmp_path / "out", caption_from="txt", subtitle_from="")
    assert (stats["num_delivered"], stats["hours"]) == (4, 0)
    json.loads((tmp_path / "out" / "stats.json").read_text(), parse_constant=pytest.fail)
