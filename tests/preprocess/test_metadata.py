"""Metadata in all its forms; every clip comes out once, as a clip or as a failure."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.metadata import MetadataConfig, parse_time, read_metadata
from preprocess.records import Clip, Failure, Video

MAX_LINE = 1 << 16


def read(*files: Path, **options: Any) -> tuple[dict[str, Clip], list[Failure]]:
    config = MetadataConfig.model_validate({"files": tuple(str(file) for file in files), **options})
    clips: dict[str, Clip] = {}
    failures = []
    for item in read_metadata(config, MAX_LINE):
        if isinstance(item, Video):
            clips |= {clip.clip_id: clip for clip in item.clips}
        else:
            failures.append(item)
    return clips, failures


def line(video_id: object, *clips: object) -> str:
    return json.dumps({"video_id": video_id, "url": "x", "clip": list(clips)}) + "\n"


def clip(clip_id: object, start: object = "00:00:01.000", end: object = "00:00:03.500") -> dict[str, object]:
    return {"clip_id": clip_id, "span": [start, end]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:17.759", 17.759),
        ("01:02:03.5", 3723.5),
        (12, 12.0),
        ("12.5", 12.5),
        ("2:03", 123.0),
        ("00:00:01,250", 1.25),
    ],
)
def test_times(text: object, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "1e400", None, True, [], "1:-2", "9" * 400])
def test_no_times(text: object) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_hdvila_lines(tmp_path: Path) -> None:
    path = tmp_path / "hdvila_part0.jsonl"
    path.write_text(line("-abc_", clip("-abc_.1.mp4", "00:00:17.759", "00:00:23.279"), clip("-abc_.7.mp4")))
    clips, failures = read(path)
    assert clips["-abc_.1.mp4"] == Clip("-abc_.1.mp4", 17.759, 23.279)
    assert not failures and set(clips) == {"-abc_.1.mp4", "-abc_.7.mp4"}


def test_compressed_parts_read_alike(tmp_path: Path) -> None:
    text = "".join(line(f"v{number}", clip(f"v{number}.0.mp4")) for number in range(50)).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(text[:1000]) + zstandard.compress(text[1000:]))
    plain = read(tmp_path / "a.jsonl")
    assert len(plain[0]) == 50
    assert read(tmp_path / "b.jsonl.gz") == plain
    assert read(tmp_path / "c.jsonl.zst") == plain


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["cut", "garbled", "another kind"])
def test_a_damaged_archive_is_wrong_input_and_loses_nothing_in_silence(suffix: str, kind: str, tmp_path: Path) -> None:
    text = "".join(line(f"v{number}", clip(f"v{number}.0.mp4")) for number in range(5000)).encode()
    packed = gzip.compress(text) if suffix == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    garbled = packed[:2000] + bytes(byte ^ 255 for byte in packed[2000:2040]) + packed[2040:]
    content = {"cut": packed[: len(packed) // 2], "garbled": garbled, "another kind": text}[kind]
    path = tmp_path / f"hdvila_part0.jsonl.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="hdvila_part0"):
        read(path)


BAD = {
    "not json": ("{oops\n", Reason.METADATA_INVALID),
    "a list": ("[1, 2]\n", Reason.METADATA_INVALID),
    "deep": ("[" * 20_000 + "\n", Reason.METADATA_INVALID),
    "gigantic line": ('{"video_id": "' + "x" * (2 * MAX_LINE) + '"}\n', Reason.METADATA_INVALID),
    "no clips": (json.dumps({"video_id": "x"}) + "\n", Reason.METADATA_INVALID),
    "clip is a word": (line("x", "word"), Reason.METADATA_INVALID),
    "video id leads out": (line("../x", clip("x.1.mp4")), Reason.METADATA_INVALID),
    "video id whose first letters lead out": (line("..x", clip("x.1.mp4")), Reason.METADATA_INVALID),
    "absolute video id": (line("/etc/x", clip("x.1.mp4")), Reason.METADATA_INVALID),
    "video id is a number": (line(7, clip("x.1.mp4")), Reason.METADATA_INVALID),
    "video id with a newline": (line("a\nb", clip("x.1.mp4")), Reason.METADATA_INVALID),
    "clip id is missing": (line("x", {"span": ["0", "1"]}), Reason.CLIP_ID_INVALID),
    "clip id is empty": (line("x", clip("")), Reason.CLIP_ID_INVALID),
    "clip id is a surrogate": (
        '{"video_id": "x", "clip": [{"clip_id": "\\ud800", "span": [0, 1]}]}\n',
        Reason.CLIP_ID_INVALID,
    ),
    "clip id of 2,000": (line("x", clip("y" * 2000)), Reason.CLIP_ID_INVALID),
    "span ends first": (line("x", clip("x.1.mp4", "00:00:03", "00:00:01")), Reason.SPAN_INVALID),
    "span is empty": (line("x", clip("x.1.mp4", "00:00:03", "00:00:03")), Reason.SPAN_INVALID),
    "span is words": (line("x", clip("x.1.mp4", "soon", "later")), Reason.SPAN_INVALID),
    "span is infinite": (line("x", clip("x.1.mp4", 0, float("inf"))), Reason.SPAN_INVALID),
    "span of three": (line("x", {"clip_id": "x.1.mp4", "span": [1, 2, 3]}), Reason.SPAN_INVALID),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_one_failure_and_harms_no_neighbour(kind: str, tmp_path: Path) -> None:
    text, reason = BAD[kind]
    path = tmp_path / "m.jsonl"
    path.write_text(line("a", clip("a.1.mp4")) + text + line("b", clip("b.1.mp4")))
    clips, failures = read(path)
    assert set(clips) == {"a.1.mp4", "b.1.mp4"}
    assert [failure.reason for failure in failures] == [reason]


def test_an_id_that_is_missing_is_no_word(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        line("x", {"span": ["0", "1"]}) + '{"clip": []}\n{"clip": [{"clip_id": "y", "span": [0, 1]}]}\n{}\n'
    )
    _, failures = read(path)
    assert [(failure.clip_id, failure.video_id) for failure in failures] == [("", "x"), ("y", ""), ("", "")]
    path.write_text('{"video_id": null, "clip_id": null}\n{"video_id": "x", "clip_id": null}\n')
    _, failures = read(path, layout="table", columns={"clip_id": "clip_id"})
    assert [(failure.clip_id, failure.video_id) for failure in failures] == [("", ""), ("", "x")]
    path.write_text('{"video_id": null}\n')
    _, failures = read(path, layout="table")
    assert [(failure.clip_id, failure.video_id) for failure in failures] == [("", "")]


def test_tables(tmp_path: Path) -> None:
    rows = [
        {"vid": "a", "n": "a.x", "t0": 1.5, "t1": 4, "say": " hello ", "alt": None},
        {"vid": "b", "n": "b.x", "t0": "0:01", "t1": "0:02", "say": "", "alt": "cap"},
    ]
    columns = {"video_id": "vid", "clip_id": "n", "start": "t0", "end": "t1", "subtitle": "say", "caption": "alt"}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "m.csv").write_text("vid,n,t0,t1,say,alt\na,a.x,1.5,4, hello ,\nb,b.x,0:01,0:02,,cap\n")
    texts = [{key: None if value is None else str(value) for key, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "m.parquet")
    answers = [read(tmp_path / name, layout="table", columns=columns) for name in ("m.jsonl", "m.csv", "m.parquet")]
    for clips, failures in answers:
        assert not failures
        assert (clips["a.x"].start_s, clips["a.x"].end_s, clips["a.x"].caption) == (1.5, 4.0, None)
        assert clips["a.x"].subtitle == "hello"
        assert (clips["b.x"].start_s, clips["b.x"].end_s, clips["b.x"].subtitle, clips["b.x"].caption) == (
            1,
            2,
            None,
            "cap",
        )


def test_texts_in_the_metadata_are_one_line_of_valid_text(tmp_path: Path) -> None:
    """Half an emoji is valid JSON, and no text that could ever be written to a shard."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"video_id": "v", "say": "so\\n \\ud83d that", "alt": "\\u0000\\n"}\n')
    clips, failures = read(path, layout="table", columns={"subtitle": "say", "caption": "alt"})
    assert not failures
    assert (clips["v.mp4"].subtitle, clips["v.mp4"].caption) == ("so \ufffd that", None)


def test_whole_videos_and_a_missing_column(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video_id,text\nmovie/one,hi\ntwo,\n")
    clips, failures = read(path, layout="table", columns={"subtitle": "text"})
    assert not failures
    assert clips["movie/one.mp4"] == Clip("movie/one.mp4", 0.0, None, "hi", None)
    _, failures = read(path, layout="table", columns={"start": "begin", "end": "end"})
    assert {failure.reason for failure in failures} == {Reason.METADATA_INVALID} and len(failures) == 2


def test_rows_without_a_clip_id_get_one_from_the_start_in_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video_id,start,end\nv,1.5,2\nv,0:01:02.25,0:01:03\nv,soon,9\n")
    clips, failures = read(path, layout="table", columns={"start": "start", "end": "end"})
    assert set(clips) == {"v.1500.mp4", "v.62250.mp4"}
    assert [(failure.clip_id, failure.reason) for failure in failures] == [("v.soon.mp4", Reason.SPAN_INVALID)]


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    """As spreadsheets write it."""
    (tmp_path / "m.csv").write_text("video_id,start,end\nv,0,2\n", encoding="utf-8-sig")
    (tmp_path / "m.jsonl").write_text(line("w", clip("w.1.mp4")), encoding="utf-8-sig")
    clips, failures = read(tmp_path / "m.csv", layout="table", columns={"start": "start", "end": "end"})
    assert set(clips) == {"v.0.mp4"} and not failures
    clips, failures = read(tmp_path / "m.jsonl")
    assert set(clips) == {"w.1.mp4"} and not failures


def test_empty_cells_mean_the_whole_video_or_its_rest(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video_id,clip_id,start,end\nv,a,,\nv,b,2.5,\nv,c,,4\n")
    columns = {"clip_id": "clip_id", "start": "start", "end": "end"}
    clips, failures = read(tmp_path / "m.csv", layout="table", columns=columns)
    assert clips == {"a": Clip("a", 0.0, None), "b": Clip("b", 2.5, None)}
    assert [(failure.clip_id, failure.reason) for failure in failures] == [("c", Reason.SPAN_INVALID)]


def test_missing_files_are_wrong_input(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none*.jsonl"):
        with pytest.raises(InputError, match="none"):
            read(tmp_path / name)
