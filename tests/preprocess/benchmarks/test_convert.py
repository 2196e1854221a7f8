"""From miniatures to shards: N of N, missing and unreadable videos by name, the time limit, running again."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.data.clips import ClipReader
from pipeline.errors import InputError
from preprocess.benchmarks import didemo, plain
from tests.preprocess.benchmarks import miniatures


def convert(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """Write the miniature and convert it; returns report.json."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    getattr(miniatures, f"write_{name}")(raw)
    words = [f"annotations={raw}", f"videos={raw / 'videos'}", f"output={folder / 'out'}", "workers=1", "size_px=32"]
    assert import_module(f"preprocess.benchmarks.{name}").main([*words, "accept_counts=true", *options]) == 0
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.heavy
def test_msrvtt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = convert("msrvtt", tmp_path)
    out = tmp_path / "out"
    assert len(rows(out / "train_9k" / "texts.jsonl")) == 120
    queries = rows(out / "test_1ka" / "queries.jsonl")
    assert [row["query_id"] for row in queries] == ["000000", "000001", "000002", "000003"]
    reader = ClipReader(out / "test_1ka" / "shards", num_frames=3, image_size_px=32)
    assert sorted(reader.clip_ids) == sorted(row["clip_id"] for row in queries)
    assert report["splits"]["train_9k"]["delivered"] == 6
    assert "test_1ka: 4 of 4 videos (published: 1,000)" in capsys.readouterr().out
    again = convert("msrvtt", tmp_path)
    assert again == report


@pytest.mark.heavy
def test_didemo_uses_the_first_30_seconds(tmp_path: Path) -> None:
    convert("didemo", tmp_path, "splits=[test]", "fps=2")
    sidecar = pq.read_table(tmp_path / "out" / "test" / "shards" / "shards" / "000000.parquet")
    assert sidecar.column("num_frames").to_pylist() == [60, 60]
    assert not (tmp_path / "out" / "train").exists()


@pytest.mark.heavy
def test_lsmdc_lists_what_is_missing(tmp_path: Path) -> None:
    report = convert("lsmdc", tmp_path, "splits=[train]")
    train = report["splits"]["train"]
    assert (train["delivered"], train["videos"]["annotated"], train["texts_with_video"]) == (3, 4, 3)
    assert "video_missing" in train["not_delivered"]["1012_Unbreakable_00.07.16.065-00.07.21.941"]
    assert report["leakage"][0]["splits"] == ["train", "test"]
    assert "1012_Unbreakable_00.07.16.065" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.heavy
def test_activitynet_lists_what_is_unreadable(tmp_path: Path) -> None:
    report = convert("activitynet", tmp_path, "splits=[val_1]")
    assert report["splits"]["val_1"]["delivered"] == 2
    assert "video_unreadable" in report["splits"]["val_1"]["not_delivered"]["v_fff"]


@pytest.mark.heavy
def test_videos_that_came_later_are_delivered_by_the_same_command(tmp_path: Path) -> None:
    """One was missing, one no video; a third still is none after the second call, and is not tried a third time."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a", "b", "c", "d"):
        miniatures.write_video(raw / f"{name}.mp4", "red")
    (tmp_path / "rows.csv").write_text("video,caption\n" + "".join(f"{name},text {name}\n" for name in "abcd"))
    words = ["name=mine", f"test={tmp_path / 'rows.csv'}", f"videos={raw}", f"output={tmp_path / 'out'}", "workers=1"]
    whole = (raw / "b.mp4").read_bytes()
    (raw / "a.mp4").rename(tmp_path / "a.mp4")
    (raw / "b.mp4").write_bytes(whole[:100])
    (raw / "d.mp4").write_bytes(b"no video")

    def split() -> dict[str, Any]:
        assert plain.main([*words, "size_px=32"]) == 0
        report: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text())
        return dict(report["splits"]["test"])

    assert (split()["delivered"], sorted(split()["not_delivered"])) == (1, ["a", "b", "d"])
    (tmp_path / "a.mp4").rename(raw / "a.mp4")
    (raw / "b.mp4").write_bytes(whole)
    after = split()
    assert (after["delivered"], after["texts_with_video"], list(after["not_delivered"])) == (3, 3, ["d"])
    shards = tmp_path / "out" / "test" / "shards"
    assert sorted(ClipReader(shards, num_frames=3, image_size_px=32).clip_ids) == ["a", "b", "c"]
    assert split() == after
    assert len(list((shards / "plan").glob("retry_*"))) == 1


@pytest.mark.heavy
def test_other_annotations_leave_a_converted_set_as_it_is(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    miniatures.write_video(raw / "a.mp4", "red")
    table = tmp_path / "rows.csv"
    words = ["name=mine", f"test={table}", f"videos={raw}", f"output={tmp_path / 'out'}", "workers=1", "size_px=32"]
    table.write_text("video,caption\na,text a\na,text b\n")
    assert plain.main(words) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    table.write_text("video,caption\na,text a\na,text c\n")
    with pytest.raises(InputError, match=r"converted from other annotation files \(queries.jsonl would change\)"):
        plain.main(words)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_wrong_counts_stop_before_any_video_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train_9k has 6 videos, but 9,000 are published.*accept_counts=true"):
        convert("msrvtt", tmp_path, "accept_counts=false")
    assert not (tmp_path / "out").exists()


def test_a_video_that_is_listed_twice_stops_before_any_is_decoded(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    miniatures.write_didemo(raw)
    (raw / "val_list.txt").write_text("56@N02_4_d.avi\n56@N02_4_d.avi\n")
    words = [f"annotations={raw}", f"videos={raw / 'videos'}", f"output={tmp_path / 'out'}", "accept_counts=true"]
    with pytest.raises(InputError, match="split val lists 56@N02_4_d 2 times"):
        didemo.main(words)
    assert not (tmp_path / "out").exists()


def test_a_wrong_folder_or_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of its 6 videos is below .*empty, video0 for one"):
        convert("msrvtt", tmp_path, f"videos={tmp_path / 'empty'}")
    with pytest.raises(InputError, match="splits: test not in msrvtt; it has train_9k, test_1ka"):
        convert("msrvtt", tmp_path, "splits=[test]")
