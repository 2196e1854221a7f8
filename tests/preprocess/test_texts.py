"""Texts from every kind of source; a missing one is missing, never a word."""

import json
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import InputError
from preprocess.records import Clip
from preprocess.text_index import TextIndex, build_index
from preprocess.texts import ClipTexts, Texts, TextsConfig, prepare_texts

TEXTS = {"v.1.mp4": "first text", "v.2.mp4": "zweiter Text, größer", "-x_.3.mp4": "third"}


def write_source(kind: str, folder: Path) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "lmdb":
        with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            for clip_id, text in TEXTS.items():
                transaction.put(clip_id.encode(), text.encode())
        return path
    rows = [{"clip_id": clip_id, "text": text} for clip_id, text in TEXTS.items()]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps([{"image_id": row["clip_id"], "caption": row["text"]} for row in rows], indent=1))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("clip_id,text\n" + "".join(f'{row["clip_id"]},"{row["text"]}"\n' for row in rows))
    return path


def open_texts(tmp_path: Path, **sources: tuple[str, ...]) -> Texts:
    config = TextsConfig.model_validate(sources)
    prepare_texts(config, tmp_path / "out", 1 << 20)
    return Texts.open(config, tmp_path / "out")


@pytest.mark.parametrize("kind", ["lmdb", "jsonl", "json", "parquet", "csv"])
def test_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    texts = open_texts(tmp_path, captions=(str(write_source(kind, tmp_path)),))
    for clip_id, text in TEXTS.items():
        assert texts.of("v", Clip(clip_id, 0, 1)) == ClipTexts(None, text, f"texts.{kind}")
        assert texts.of("v", Clip(clip_id.removesuffix(".mp4"), 0, 1)).caption == text
    for absent in ("v.9.mp4", "None", "x" * 600, "\n"):
        assert texts.of("v", Clip(absent, 0, 1)) == ClipTexts(None, None, None)


def test_stray_bytes_and_empty_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "subtitles.jsonl"
    path.write_bytes(
        b'{"clip_id": "a", "text": "caf\xe9 \xff talk"}\n{"clip_id": "b", "text": " \\n "}\nbroken\n\n'
        b'{"clip_id": "c"}\n{"clip_id": "d", "text": null}\n{"clip_id": "e", "text": "two\\nlines\\u0000"}\n'
    )
    texts = open_texts(tmp_path, subtitles=(str(path),))
    assert texts.of("v", Clip("a", 0, 1)).subtitle == "caf\ufffd \ufffd talk"
    assert [texts.of("v", Clip(name, 0, 1)).subtitle for name in "bcd"] == [None] * 3
    assert texts.of("v", Clip("e", 0, 1)).subtitle == "two lines"
    assert "1 lines of" in capsys.readouterr().err


def test_sources_are_asked_in_order_and_the_metadata_first(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"clip_id": "a", "text": "one"}\n{"clip_id": "a", "text": "later"}\n')
    (tmp_path / "two.jsonl").write_text('{"clip_id": "a", "text": "two"}\n{"clip_id": "b", "text": "two b"}\n')
    texts = open_texts(tmp_path, captions=(str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")))
    assert texts.of("v", Clip("a", 0, 1)) == ClipTexts(None, "one", "one.jsonl")
    assert texts.of("v", Clip("b", 0, 1)) == ClipTexts(None, "two b", "two.jsonl")
    assert texts.of("v", Clip("a", 0, 1, "said", "seen")) == ClipTexts("said", "seen", "metadata")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=20)), max_size=40))
def test_index_equals_a_dictionary(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    rows = [(key.replace("\0", ""), text) for key, text in rows]
    folder = tmp_path_factory.mktemp("index") / "i"
    build_index(rows, folder)
    index = TextIndex(folder)
    wanted = dict(reversed(rows))
    for key, text in wanted.items():
        assert index.get(key) == text
    assert index.get("nowhere to be found") is None


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    rows = [{"image_id": "a", "caption": "one"}]
    (tmp_path / "c.csv").write_text("clip_id,text\na,one\n", encoding="utf-8-sig")
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    for name in ("c.csv", "c.json"):
        texts = open_texts(tmp_path, captions=(str(tmp_path / name),))
        assert texts.of("v", Clip("a", 0, 1)).caption == "one"


@pytest.mark.parametrize("name", ["{video_id}.{lang}.vtt", "{video_id}.txt", "{video_id", "{video_id}.vtt.gz"])
def test_a_template_that_would_find_nothing_is_wrong_input(name: str) -> None:
    for field in ("subtitles", "captions"):
        with pytest.raises(ValidationError, match="video_id"):
            TextsConfig.model_validate({field: (f"data/{name}",)})


def test_missing_sources_are_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("clip,words\na,b\n")
    with pytest.raises(InputError, match="only the columns clip, words"):
        open_texts(tmp_path, captions=(str(tmp_path / "other.csv"),))
    assert not list((tmp_path / "out").rglob("*.csv*")), "a refused source leaves nothing behind"
    with pytest.raises(InputError, match="nowhere"):
        open_texts(tmp_path, captions=(str(tmp_path / "nowhere"),))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="LMDB"):
        open_texts(tmp_path, captions=(str(tmp_path / "folder"),))


@pytest.mark.parametrize(
    ("require", "answers"),
    [("none", "1111"), ("any", "0111"), ("subtitle", "0101"), ("caption", "0011"), ("both", "0001")],
)
def test_require(require: str, answers: str) -> None:
    cases = [
        ClipTexts(None, None, None),
        ClipTexts("s", None, None),
        ClipTexts(None, "c", "x"),
        ClipTexts("s", "c", "x"),
    ]
    assert "".join(str(int(case.satisfies(require))) for case in cases) == answers
