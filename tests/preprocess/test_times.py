"""Times: what means one thing is read, everything else is refused."""

import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.metadata import MetadataConfig, read_metadata
from preprocess.records import Failure
from preprocess.times import parse_time


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("00:00:17.759", 17.759),
        ("0:00:01", 1),
        ("90:00", 5400),
        ("100:00:00", 360000),
        ("1:02:03,5", 3723.5),
        (" 12.5 ", 12.5),
        ("12,5", 12.5),
        (".5", 0.5),
        ("5.", 5),
        ("1e-05", 0.00001),
        ("5.000000000000001", 5),
        (-0.0, 0),
        (Decimal("12.500"), 12.5),
        (datetime.time(0, 1, 2, 500000), 62.5),
        (datetime.timedelta(days=1, seconds=1), 86401),
        (datetime.datetime(1970, 1, 1, 0, 0, 17, 759000), 17.759),
        (datetime.datetime(1900, 1, 1, 0, 0, 17), 17),
    ],
)
def test_a_time_that_means_one_thing(value: object, seconds: float) -> None:
    assert parse_time(value) == pytest.approx(seconds, abs=1e-6)
    assert str(parse_time(value))[0] != "-"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("00:00:00:12", "four fields"),
        ("0:00:00:00:12", "no time"),
        ("00:00:00;12", "no time"),
        ("00:60", "60 or more"),
        ("00:60:00", "60 or more"),
        ("00:00:60.000", "60 or more"),
        ("00:61:00.000", "60 or more"),
        ("1_0", "no time"),
        ("0x10", "no time"),
        ("inf", "no time"),
        ("NaN", "no time"),
        ("1e400", "out of range"),
        ("", "no time"),
        (" ", "no time"),
        ("1 2", "no time"),
        ("00: 00:12", "no time"),
        ("１２", "no time"),
        ("٣:٠٤", "no time"),
        ("00:00:0²", "no time"),
        ("00:00:00.0²0", "no time"),
        ("1,234", "fraction or thousands"),
        ("1.2.3", "no time"),
        ("00.00.32.801", "no time"),
        ("12s", "no time"),
        ("1:2:3:4:5", "no time"),
        ("00:00:1.5:2", "four fields"),
        ("-1", "negative"),
        ("-00:00:01", "negative"),
        ("+5", "no time"),
        (-1, "negative"),
        (float("nan"), "out of range"),
        (float("inf"), "out of range"),
        (10**400, "out of range"),
        (Decimal("Infinity"), "out of range"),
        (datetime.datetime(2024, 5, 1, 0, 0, 17), "a date"),
        (b"12", "no time"),
        ([1], "no time"),
    ],
)
def test_a_time_that_could_mean_something_else(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_time(value)


@settings(deadline=None)
@given(st.integers(0, 9_999_999_999))
def test_clock_and_seconds_say_the_same(milliseconds: int) -> None:
    seconds, rest = divmod(milliseconds, 1000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
    assert parse_time(clock) == parse_time(f"{seconds}.{rest:03d}") == parse_time(Decimal(milliseconds) / 1000)


def test_equal_ends_are_not_called_before(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video_id,start,end\nv,3,3\nv,00:00:04,00:00:03\n")
    same, before = _failures(tmp_path / "m.csv")
    assert "at its start, 3.0 s" in same and "before" not in same
    assert "at 3.0 s, before its start at 4.0 s" in before


def _failures(path: Path) -> list[str]:
    config = MetadataConfig.model_validate(
        {"files": (str(path),), "layout": "table", "columns": {"start": "start", "end": "end"}}
    )
    return [item.detail for item in read_metadata(config, 1 << 20) if isinstance(item, Failure)]


STARTS = {
    "decimal128": pa.array([Decimal("1.500"), Decimal("2.250")], pa.decimal128(10, 3)),
    "time32": pa.array([1500, 2250], pa.time32("ms")),
    "time64": pa.array([1_500_000_000, 2_250_000_001], pa.time64("ns")),
    "duration": pa.array([1_500_000_000, 2_250_000_001], pa.duration("ns")),
    "timestamp": pa.array([1500, 2250], pa.timestamp("ms")),
    "dictionary": pa.array(["1.5", "00:00:02.250"]).dictionary_encode(),
    "float32": pa.array([1.5, 2.25], pa.float32()),
    "binary": pa.array([b"1.5", b"2.25"], pa.binary()),
}
IDS = {
    "int64": pa.array([7, 2**62], pa.int64()),
    "uint8": pa.array([7, 255], pa.uint8()),
    "float with gaps": pa.array([7.0, 8.0], pa.float64()),
    "decimal128": pa.array([Decimal(7), Decimal(10**20)], pa.decimal128(38, 0)),
    "binary": pa.array([b"7", "caf\u00e9".encode()], pa.binary()),
    "dictionary": pa.array(["7", "v"]).dictionary_encode(),
}


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("ids", IDS)
def test_times_and_ids_of_parquet_in_all_their_types(starts: str, ids: str, tmp_path: Path) -> None:
    table = pa.table({"video_id": IDS[ids], "start": STARTS[starts], "end": [3.0, 4.0]})
    pq.write_table(table, tmp_path / "m.parquet")
    config = MetadataConfig.model_validate(
        {"files": (str(tmp_path / "m.parquet"),), "layout": "table", "columns": {"start": "start", "end": "end"}}
    )
    videos = list(read_metadata(config, 1 << 20))
    assert not any(isinstance(item, Failure) for item in videos), videos
    assert [clip.start_s for item in videos for clip in item.clips] == [1.5, 2.25]  # type: ignore[union-attr]
    assert videos[0].video_id == "7"
    assert "." not in videos[1].video_id and "e+" not in videos[1].video_id


def test_ids_of_text_tables_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video_id,start,end\n007,0,1\n1e3,0,1\n1_0,0,1\n")
    (tmp_path / "m.jsonl").write_text('{"video_id": "007"}\n{"video_id": 12345678901234567890}\n{"video_id": true}\n')
    columns = {"start": "start", "end": "end"}
    for name, options, wanted in (
        ("m.csv", {"columns": columns}, ["007", "1e3", "1_0"]),
        ("m.jsonl", {}, ["007", "12345678901234567890", "True"]),
    ):
        config = MetadataConfig.model_validate({"files": (str(tmp_path / name),), "layout": "table", **options})
        found = list(read_metadata(config, 1 << 20))
        assert [item.video_id for item in found] == wanted
        assert [isinstance(item, Failure) for item in found] == [name == "true" for name in map(str.lower, wanted)]
