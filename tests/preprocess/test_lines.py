"""Rows of JSON lists and CSV files: all of them, or a word about what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from preprocess import lines
from preprocess.lines import BadRow, read_rows

MAX = 4096
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(max_examples=80)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=8),
    indent=st.sampled_from([None, 0, 2]),
    chunk=st.integers(1, 40),
)
def test_a_json_list_is_read_whole_in_pieces_of_any_size(
    rows: list[dict[str, Any]], indent: int | None, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("list") / "rows.json"
    path.write_text(f" {json.dumps(rows, indent=indent)}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK", chunk)
        assert list(read_rows(path, 1 << 20)) == rows


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"id": "a"}, 7, {"id": "b"}]', "element 1"),
        ('[{"id": "a"}, "word", {"id": "b"}]', "element 1"),
        ('[{"id": "a"}, [1], {"id": "b"}]', "element 1"),
        ('[{"id": "a"} {"id": "b"}]', "element 1"),
        ('[{"id": "a"},, {"id": "b"}]', "element 1"),
        ('[{"id": "a"}, {"id": "b"', "element 1"),
        ('[{"id": "a"},', "element 1"),
        ('[{"id": "a"}, 7', "element 1"),
        ('[{"id": "a"}, {"id": b}]', "element 1"),
        ("[" + "[" * 50_000, "element 0"),
        ('[{"id": "a"}, {"id": "' + "x" * 3 * MAX + '"}]', "element 1"),
        ('[{"id": "' + "x" * 10 * MAX, "element 0"),
        ("", "element 0"),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 64])
def test_a_list_that_is_none_is_wrong_input_and_says_where(
    text: str, place: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One odd element took all behind it with it."""
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"rows\.json") as caught:
        list(read_rows(path, MAX))
    assert place in str(caught.value) or not text


def test_csv_rows_with_more_or_fewer_fields_than_the_header_are_bad_rows(tmp_path: Path) -> None:
    """A comma in a text that nobody quoted, and a file that was cut short."""
    path = tmp_path / "rows.csv"
    path.write_text('id,text,end\na,"a red dog, a cat",4\nb,a red dog, a cat,4\n\nc,,\nd,a r')
    first, second, third, fourth = read_rows(path, MAX)
    assert first == {"id": "a", "text": "a red dog, a cat", "end": "4"}
    assert third == {"id": "c", "text": "", "end": ""}
    assert isinstance(second, BadRow) and second.where == "rows.csv:3" and "4 fields" in second.problem
    assert isinstance(fourth, BadRow) and "2 fields" in fourth.problem
