"""A table in which no row can be read is wrong input, said in one line before anything is written."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from preprocess.benchmarks.split import read_csv
from preprocess.config import PreprocessConfig
from preprocess.inputs import check_inputs, check_metadata
from preprocess.lines import read_rows
from preprocess.merge import main as merge_main
from preprocess.metadata import MetadataConfig
from preprocess.retry import main as retry_main
from preprocess.run import main, run
from preprocess.table_guess import columns_of, guess_table

CSV = "video_id,clip_id,start,end,caption\nv,a,0,1,hello\nv,b,1,2,hello\n"
ROWS = [
    {"video_id": "v", "clip_id": "a", "start": 0, "end": 1, "caption": "hello"},
    {"video_id": "v", "clip_id": "b", "start": 1, "end": 2, "caption": "hello"},
]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
HDVILA = json.dumps({"video_id": "v", "url": "u", "clip": [{"clip_id": "a", "span": [0, 1]}]}) + "\n"


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


PACKED = gzip.compress(CSV.encode(), mtime=0)
UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "semicolons": ("m.csv", CSV.replace(",", ";").encode(), r"video_id;clip_id;start.*;-separated: save it with"),
    "tabs": ("m.csv", CSV.replace(",", "\t").encode(), r"tab-separated: end its name in \.tsv"),
    "bars": ("m.csv", CSV.replace(",", "|").encode(), r"\|-separated"),
    "commas in a .tsv": ("m.tsv", CSV.encode(), r",-separated: end its name in \.csv"),
    "semicolons and texts with commas": ("m.csv", b"video_id;start;end;caption\nv;0;1;a, b\n", ";-separated"),
    "UTF-16 with a mark": ("m.csv", CSV.encode("utf-16"), "is UTF-16: save it as UTF-8.*video_id,clip_id"),
    "UTF-16, big end first": ("m.csv", b"\xfe\xff" + CSV.encode("utf-16-be"), "is UTF-16"),
    "UTF-16 without a mark": ("m.csv", CSV.encode("utf-16-le"), "is UTF-16"),
    "UTF-32": ("m.csv", CSV.encode("utf-32"), "is UTF-32"),
    "UTF-16 JSON": ("m.jsonl", JSONL.encode("utf-16"), "is UTF-16"),
    "gzip by another name": ("m.csv", PACKED, r"is gzip-compressed: end its name in \.gz"),
    "zstd by another name": ("m.jsonl", zstandard.compress(JSONL.encode()), r"is zstd-compressed"),
    "zstd called gzip": ("m.csv.gz", zstandard.compress(CSV.encode()), r"is zstd-compressed"),
    "plain called gzip": ("m.csv.gz", CSV.encode(), "is not compressed, whatever its name says"),
    "plain called zstd": ("m.csv.zst", CSV.encode(), "is not compressed, whatever its name says"),
    "Parquet called CSV": ("m.csv", parquet(), r"is Parquet: end its name in \.parquet"),
    "CSV called Parquet": ("m.parquet", CSV.encode(), "is not Parquet, whatever its name says"),
    "an Excel workbook": ("m.csv", b"PK\x03\x04" + bytes(600), "an Excel workbook"),
    "a web page": ("m.csv", b"\n<!DOCTYPE html>\n<html></html>", "is a web page"),
    "a Git LFS pointer": ("m.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a JSON list called .jsonl": ("m.jsonl", json.dumps(ROWS).encode(), r"one JSON list: end its name in \.json"),
    "JSON over several lines": ("m.jsonl", json.dumps(ROWS[0], indent=1).encode(), "JSON over several lines"),
    "lines of JSON called .json": ("m.json", JSONL.encode(), r"is not a JSON list; use \.jsonl"),
    "CSV called .jsonl": ("m.jsonl", CSV.encode(), r"between commas: end its name in \.csv"),
    "JSON called .csv": ("m.csv", JSONL.encode(), r"JSON: end its name in \.jsonl"),
    "no header": ("m.csv", CSV.partition("\n")[2].encode(), "its first line looks like a row: put a header"),
    "other columns": ("m.csv", CSV.replace("video_id", "Video ID").encode(), "did you mean 'Video ID' for 'video_id'"),
    "other columns in Parquet": ("m.csv", CSV.replace("start", "Start").encode(), "did you mean 'Start' for 'start'"),
    "a mark of spreadsheets": ("m.csv", b"sep=;\n" + CSV.encode(), "'sep=;', a mark of spreadsheets"),
    "a column twice": ("m.csv", CSV.replace("end", "start", 1).encode(), "names 'start' twice"),
    "HD-VILA's own": ("m.jsonl", HDVILA.encode(), "metadata.layout=hdvila"),
    "times with frames": ("m.csv", b"video_id,clip_id,start,end\nv,a,0,00:00:01:12\n", "four fields"),
    "no row": ("m.csv", CSV.partition("\n")[0].encode(), "hold no row"),
    "nothing": ("m.jsonl", b"", "hold no row"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_table_in_which_no_row_can_be_read(kind: str, tmp_path: Path) -> None:
    name, content, words = UNREADABLE[kind]
    (tmp_path / name).write_bytes(content)
    columns = {"clip_id": "clip_id", "start": "start", "end": "end"}
    config = PreprocessConfig.model_validate(
        {
            "output": str(tmp_path / "out"),
            "metadata": {"layout": "table", "files": [str(tmp_path / name)], "columns": columns},
            "videos": {"templates": [str(tmp_path / "{video_id}.mp4")]},
        }
    )
    with pytest.raises(InputError, match=words) as caught:
        run(config)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_table_taken_for_hd_vilas_layout(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(CSV)
    with pytest.raises(InputError, match=r"'clip_id', 'start', 'end', 'caption'; set metadata\.layout=table"):
        check_metadata(MetadataConfig(files=(str(tmp_path / "m.csv"),)), 1 << 20)


@pytest.mark.parametrize("name", ["subtitle", "caption"])
def test_a_text_column_that_is_not_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("video_id,Captions\nv,hello\n")
    config = MetadataConfig.model_validate(
        {"files": (str(tmp_path / "m.csv"),), "layout": "table", "columns": {name: "captions"}}
    )
    with pytest.raises(InputError, match=rf"metadata\.columns\.{name}: .*did you mean 'Captions' for 'captions'"):
        check_metadata(config, 1 << 20)


def test_one_row_that_can_be_read_is_enough_and_an_empty_part_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("video_id,start\n,1\n,2\nv,3\n")
    (tmp_path / "b.csv").write_text("video_id,start\n")
    files = (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    check_metadata(MetadataConfig.model_validate({"files": files, "layout": "table"}), 1 << 20)
    assert "b.csv hold no row" in capsys.readouterr().err


TEXT_TABLES = {
    "c.csv": (b"clip_id;text\na;one\n", ";-separated"),
    "c.tsv": (b"clip_id,text\na,one\n", ",-separated"),
    "c.jsonl": (b'[{"clip_id": "a", "text": "one"}]', "one JSON list"),
    "d.jsonl": (b"{oops\n{oops\n", "it needs one of"),
    "u.csv": ("clip_id,text\na,one\n".encode("utf-16"), "is UTF-16"),
    "e.csv": (b"clip_id,text\na,\n", "holds no text"),
}


@pytest.mark.parametrize("name", TEXT_TABLES)
@pytest.mark.parametrize("kind", ["subtitles", "captions"])
def test_text_tables_are_looked_into_first(name: str, kind: str, small_set: dict[str, Any], tmp_path: Path) -> None:
    content, words = TEXT_TABLES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        run(PreprocessConfig.model_validate({**small_set, "texts": {kind: [str(tmp_path / name)]}}))
    assert not Path(small_set["output"]).exists()


def test_so_are_the_index_of_videos_and_folders_of_subtitles(small_set: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("video_id;path\na;b.mp4\n")
    (tmp_path / "e.csv").write_text("video_id,path\n")
    (tmp_path / "u.txt").write_bytes("video0\n".encode("utf-16"))
    for change, words in (
        ({"videos": {"index": str(tmp_path / "i.csv")}}, r"videos\.index .*;-separated"),
        ({"videos": {"index": str(tmp_path / "e.csv")}}, r"videos\.index: .* holds no row"),
        ({"videos": {"index": str(tmp_path / "none.csv")}}, r"videos\.index: there is no file"),
        ({"metadata": {**small_set["metadata"], "exclude": [str(tmp_path / "i.csv")]}}, "exclude.*;-separated"),
        ({"metadata": {**small_set["metadata"], "exclude": [str(tmp_path / "no.txt")]}}, r"cannot read .*no\.txt"),
        ({"metadata": {**small_set["metadata"], "exclude": [str(tmp_path / "u.txt")]}}, "is UTF-16"),
        ({"texts": {"subtitles": [str(tmp_path / "gone" / "{video_id}.vtt")]}}, "there is no folder .*gone"),
    ):
        with pytest.raises(InputError, match=words):
            check_inputs(PreprocessConfig.model_validate({**small_set, **change}))
    assert not Path(small_set["output"]).exists()


@pytest.mark.heavy
def test_the_command_says_so_once_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "semi.csv").write_text(CSV.replace(",", ";"))
    values = {
        "output": str(tmp_path / "out"),
        "metadata": {"layout": "table", "files": [str(tmp_path / "semi.csv")]},
        "videos": {"templates": [str(tmp_path / "{video_id}.mp4")]},
    }
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "preprocess.run", str(tmp_path / "set.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: metadata.files: no row of ") and not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_a_set_without_one_clip_is_not_done(small_set: dict[str, Any], tmp_path: Path) -> None:
    """One shard without any is fine, and so is running again what is all there."""
    config = PreprocessConfig.model_validate(small_set)
    videos = Path(config.videos.templates[0]).parent
    for path in sorted(videos.glob("*.mp4"))[:3]:
        path.rename(path.with_suffix(".away"))
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(small_set))
    assert main([str(tmp_path / "set.yaml")]) == main([str(tmp_path / "set.yaml")]) == 0
    next(videos.glob("*.mp4")).rename(videos / "last.away")
    other = [str(tmp_path / "set.yaml"), f"output={tmp_path / 'none'}"]
    words = r"none of 12 clips was delivered; 12 failed with video_missing, such as .*no file at .*preprocess\.retry"
    for command in (other, other):
        with pytest.raises(InputError, match=words):
            main(command)
    with pytest.raises(InputError, match=words):
        merge_main([str(tmp_path / "none")])
    with pytest.raises(InputError, match=words):
        retry_main(other)


@pytest.mark.parametrize("name", ["M.CSV", "m.Csv.GZ", "m.TSV", "m.JSONL.Zst"])
def test_suffixes_in_capitals(name: str, tmp_path: Path) -> None:
    text = JSONL if "JSONL" in name else CSV.replace(",", "\t") if "TSV" in name else CSV
    pack = {"GZ": gzip.compress, "Zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert [row["clip_id"] for row in read_rows(tmp_path / name, 4096) if isinstance(row, dict)] == ["a", "b"]


QUOTES = {
    "never closed": ('a,"hello\nb,two\nc,three\n', r"m\.csv:2: a quote opens in this line and takes the lines up to 4"),
    "closed by the next one": ('a,"hello\nb,two\nc,"three"\n', r"m\.csv:2: a quote opens in this line"),
    "closed elsewhere": ('z,1\na,"hello\nb,two\nc,",x\n', r"m\.csv:3: a quote opens in this line"),
    "in the last line": ('a,one\nb,"two\n', r"m\.csv:3: a quote opens"),
    "in the last line without end": ('a,one\nb,"two', r"m\.csv:3: a quote opens"),
    "longer than a row may be": ('a,"' + "x\n" * 3000, r"m\.csv:2: a quote opens"),
}


@pytest.mark.parametrize("kind", QUOTES)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quote_that_does_not_close_is_refused_with_its_line(kind: str, end: str, tmp_path: Path) -> None:
    rows, words = QUOTES[kind]
    (tmp_path / "m.csv").write_bytes(f"id,text\n{rows}".replace("\n", end).encode())
    with pytest.raises(InputError, match=words):
        list(read_rows(tmp_path / "m.csv", 4096))
    with pytest.raises(InputError, match=words if kind != "longer than a row may be" else "quote"):
        list(read_csv(tmp_path / "m.csv", ("id",)))


@pytest.mark.parametrize("write", [lambda text: text, lambda text: text.replace("\n", "\r\n"), lambda t: "\ufeff" + t])
def test_quoted_texts_keep_what_is_in_them(write: Callable[[str], str], tmp_path: Path) -> None:
    odd = 'one\u2028two\x0b\x0c\x1c\u0085 "three", \0'
    text = 'id,text\na,"' + odd.replace('"', '""') + '"\n\n,\n" b ",it\'s "quoted" inside\n'
    (tmp_path / "m.csv").write_bytes(write(text).encode())
    assert list(read_rows(tmp_path / "m.csv", 4096)) == [
        {"id": "a", "text": odd},
        {"id": " b ", "text": 'it\'s "quoted" inside'},
    ]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\u0085", "\x7f", "\u00a0", "\ufeff"])
def test_no_character_within_a_line_of_json_ends_it(char: str, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": f"one{char}two"}, {"id": "b", "text": "three"}]
    for mark in ("", "\ufeff"):
        (tmp_path / "m.jsonl").write_text(mark + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        assert list(read_rows(tmp_path / "m.jsonl", 4096)) == rows
        (tmp_path / "m.json").write_text(mark + json.dumps(rows, ensure_ascii=False))
        assert list(read_rows(tmp_path / "m.json", 4096)) == rows


def test_files_that_were_joined_keep_their_marks(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('\ufeff{"id": "a"}\n\ufeff{"id": "b"}\n')
    assert list(read_rows(tmp_path / "m.jsonl", 4096)) == [{"id": "a"}, {"id": "b"}]


def test_a_line_without_end_in_a_csv_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,text\na,one\nb," + "x" * 100_000 + ",y" * 100_000 + "\nc,three\n")
    first, second, third = read_rows(tmp_path / "m.csv", 4096)
    assert (first, third) == ({"id": "a", "text": "one"}, {"id": "c", "text": "three"})
    assert "m.csv:3" in str(second) and "longer than 4096 bytes" in str(second)


def test_bytes_that_are_no_utf_8_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "id,text\na,café\nb,tea\nc,crème\ufffd\n"
    (tmp_path / "m.csv").write_bytes(text.encode("utf-8").replace("é".encode(), b"\xe9"))
    assert [row["text"] for row in read_rows(tmp_path / "m.csv", 4096)] == ["caf\ufffd", "tea", "crème\ufffd"]
    assert "m.csv: 1 lines hold bytes that are no UTF-8, read as U+FFFD, first line 2" in capsys.readouterr().err
    (tmp_path / "m.json").write_bytes(b'[{"text": "caf\xe9 \xff"}]')
    assert list(read_rows(tmp_path / "m.json", 4096)) == [{"text": "caf\ufffd \ufffd"}]
    assert "m.json: 2 bytes are no UTF-8" in capsys.readouterr().err


HOSTILE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(
        st.sampled_from([b'"', b",", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"a", b";", b" "])
    ).map(b"".join),
    st.builds(
        lambda data, place, byte: data[: place % len(data)] + byte + data[place % len(data) + 1 :],
        st.sampled_from([JSONL.encode(), CSV.encode(), json.dumps(ROWS).encode(), parquet(), PACKED]),
        st.integers(0, 5000),
        st.binary(max_size=4),
    ),
)


@settings(max_examples=60, deadline=None)
@given(data=HOSTILE, suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.zst"]))
def test_whatever_bytes_a_table_holds_it_is_rows_or_one_line(
    data: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"hostile.{suffix}"
    path.write_bytes(data)
    for read in (lambda: list(read_rows(path, 64)), lambda: columns_of(path, 64), lambda: guess_table(path, ["a"], [])):
        try:
            read()
        except InputError as error:
            assert "\n" not in str(error) and "Traceback" not in str(error)
