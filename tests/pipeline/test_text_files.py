"""Lists that training and evaluation read: the same rows whatever tool wrote them, or one line that says why not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.format import unicode_forms
from pipeline.data.sources import read_exclude_lists
from pipeline.errors import InputError
from pipeline.evaluation.protocol import RetrievalSetConfig, read_questions
from pipeline.text_files import lines_of, read_json_rows, read_text_lines

Writer = Callable[[str], bytes]
WRITERS: dict[str, Writer] = {
    "plain": str.encode,
    "a mark": lambda text: text.encode("utf-8-sig"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "CRLF and a mark": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "blank lines": lambda text: f"\n \n{text}\n\t\n\n".encode(),
    "no end": lambda text: text.rstrip("\n").encode(),
    "joined with marks": lambda text: text.replace("\n", "\n\ufeff", 1).encode("utf-8-sig"),
}
ODD = "one\u2028two\u2029three\u0085four\u00a0five \U0001f600"


@pytest.mark.parametrize("writer", WRITERS)
def test_queries_of_any_writer(writer: str, tmp_path: Path) -> None:
    rows = [
        {"query_id": "q0", "text": ODD, "clip_id": "a"},
        {"query_id": 1, "text": ["x", "y"], "clip_id": 7},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "q.jsonl").write_bytes(WRITERS[writer](text))
    config = RetrievalSetConfig(name="x", shards=tmp_path, queries=tmp_path / "q.jsonl")
    questions = read_questions(config)
    assert questions.texts == [ODD, "x", "y"]
    assert questions.query_ids == ["q0", "1#0", "1#1"] and questions.clip_ids == ["a", "7"]


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "joined with marks"])
def test_exclude_lists_of_any_writer(writer: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(WRITERS[writer]("b\n# a remark\n a\u2028c \n"))
    assert read_exclude_lists([tmp_path / "x.txt"]) == ["a\u2028c", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": 1}\n'.encode("utf-16"), r"is UTF-16: save it as UTF-8"),
        ('{"a": 1}\n'.encode("utf-16-le"), r"is UTF-16: save it as UTF-8"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"rows\.jsonl:2 is no UTF-8 \(byte 0xe9 at 10\); save it as UTF-8"),
        (b"\x1f\x8b\x08", "is gzip-compressed"),
        (b'{"a": 1}\n[2]\n', r"rows\.jsonl:2 is not a JSON object"),
        (b'{"a": 1}\n\n{"a": \n', r"rows\.jsonl:3 is not JSON: Expecting value; write one object per line"),
        (b"[" * 100_000, r"rows\.jsonl:1 is not JSON"),
        (None, r"cannot read .*rows\.jsonl: No such file or directory; check the path"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line_without_codes(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        list(read_json_rows(tmp_path / "rows.jsonl"))
    assert "\n" not in str(caught.value) and "Errno" not in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)))))
def test_only_line_ends_end_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "x.txt"
    for end in ("\n", "\r\n", "\r"):
        data = "".join(f"{line}{end}" for line in lines).encode()
        assert [line.decode() for line in lines_of(data)] == lines
        path.write_bytes(b"first" + end.encode() + data)
        assert [(n, line) for n, line in read_text_lines(path)][1:] == [
            (number, line) for number, line in enumerate(lines, start=2) if line.encode().strip()
        ]


def test_forms_of_a_name() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert unicode_forms(composed) == (composed, decomposed)
    assert unicode_forms(decomposed) == (decomposed, composed)
    assert unicode_forms("plain") == ("plain",)
