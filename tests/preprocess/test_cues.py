"""Subtitle files as people have them: the right words at the right time, or a line that names the file."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.config import PreprocessConfig
from preprocess.cues import Unread, parse_cues
from preprocess.merge import account
from preprocess.pack import read_facts
from preprocess.records import Clip
from preprocess.run import run
from preprocess.subtitle_files import SubtitleFiles, read_subtitles

YOUTUBE = """WEBVTT
Kind: captions
Language: en

00:00:00.400 --> 00:00:02.400 align:start position:0%
\x20
alpha<00:00:00.900><c> bravo</c><00:00:01.400><c> charlie</c><00:00:01.900><c> delta</c>

00:00:02.400 --> 00:00:02.410 align:start position:0%
alpha bravo charlie delta
\x20

00:00:02.410 --> 00:00:03.990 align:start position:0%
alpha bravo charlie delta
echo<00:00:02.800><c> foxtrot</c><00:00:03.200><c> golf</c>

00:00:03.990 --> 00:00:04.000 align:start position:0%
echo foxtrot golf
\x20
"""
BLANK_INSIDE = "WEBVTT\n\n00:00:00.000 --> 00:00:04.000\nalpha bravo\n \ncharlie delta\n"


def said(content: bytes | str, start_s: float = 0, end_s: float | None = None, *, folder: Path) -> str | None:
    (folder / "v.vtt").write_bytes(content.encode() if isinstance(content, str) else content)
    return SubtitleFiles(str(folder / "{video_id}.vtt"))("v", Clip("v.1.mp4", start_s, end_s))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "mark-be"])
@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (YOUTUBE, "alpha bravo charlie", "delta echo foxtrot golf"),
        (BLANK_INSIDE, "alpha bravo", "charlie delta"),
        (BLANK_INSIDE.replace("delta", "größe 你好"), "alpha bravo", "charlie größe 你好"),
    ],
)
def test_words_by_span_in_any_encoding_with_any_line_ends(
    text: str, first: str, second: str, encoding: str, end: str, tmp_path: Path
) -> None:
    text = text.replace("\n", end)
    data = b"\xfe\xff" + text.encode("utf-16-be") if encoding == "mark-be" else text.encode(encoding)
    assert said(data, 0, 2, folder=tmp_path) == first
    assert said(data, 2, 4, folder=tmp_path) == second
    assert said(data, folder=tmp_path) == f"{first} {second}"


SRT_FORMS = {
    "comma": "1\n00:00:01,000 --> 00:00:03,000\none two\n",
    "dot": "1\n00:00:01.000 --> 00:00:03.000\none two\n",
    "no hours": "1\n00:01,000 --> 00:03,000\none two\n",
    "short fields": "1\n0:00:1,0 --> 0:00:3,0\none two\n",
    "no milliseconds": "00:00:01 --> 00:00:03\none two\n",
    "no blanks": "1\n00:00:01,000-->00:00:03,000\none two\n",
    "position": "1\n00:00:01,000 --> 00:00:03,000 X1:100 X2:200 Y1:0 Y2:9\none two\n",
    "settings": "WEBVTT\n\nid\n00:01.000 --> 00:03.000 line:0 size:50%\none two\n",
    "no empty line behind the header": "WEBVTT\n00:01.000 --> 00:03.000\none two\n",
    "tags": '00:01.000 --> 00:03.000\n{\\an8}<i>one</i> <font color="#fff"><b>two</b></font>\n',
    "voice": "00:01.000 --> 00:03.000\n<v Mary Ann>one <c.yellow.bg>two</c></v>\n",
    "blocks": "WEBVTT\n\nSTYLE\n::cue { color: red }\n\nREGION\nid:x\n\nNOTE a --> b\nten\n\n"
    "00:01.000 --> 00:03.000\none two\n",
    "no empty line between cues": "1\n00:00:00,000 --> 00:00:01,000\n\n2\n00:00:01,000 --> 00:00:02,000\none\n \n"
    "3\n00:00:02,000 --> 00:00:03,000\ntwo\n",
    "control characters": "00:01.000 --> 00:03.000\none\u2028\x0b\x1c\u0085\0two\n",
}


@pytest.mark.parametrize("form", SRT_FORMS)
def test_forms_of_srt_and_vtt(form: str, tmp_path: Path) -> None:
    assert said(SRT_FORMS[form], folder=tmp_path) == "one two"
    assert said(SRT_FORMS[form], 0, 2, folder=tmp_path) == "one"
    assert said(SRT_FORMS[form], 2, 9, folder=tmp_path) == "two"


def test_entities_and_what_only_looks_like_markup(tmp_path: Path) -> None:
    text = "00:01.000 --> 00:03.000\nTom &amp; I &lt;i&gt; a < b and c > d <3 &nbsp; {x}\n"
    assert said(text, folder=tmp_path) == "Tom & I <i> a < b and c > d <3 {x}"


def test_a_line_is_taken_once_where_captions_roll_and_again_where_it_is_said_again(tmp_path: Path) -> None:
    rolled = "00:00.000 --> 00:01.000\na\n\n00:09.000 --> 00:10.000\na\nb\n\n00:10.000 --> 00:11.000\nb\nc\n"
    assert said(rolled, folder=tmp_path) == "a b c"
    again = "00:00.000 --> 00:01.000\nno\n\n00:05.000 --> 00:06.000\nno\n"
    assert said(again, folder=tmp_path) == "no no"
    highlighted = "".join(f"00:0{n}.000 --> 00:0{n + 1}.000\none two <u>three</u> four\n\n" for n in range(4))
    assert said(highlighted, folder=tmp_path) == "one two three four"
    assert said(highlighted, 2, 4, folder=tmp_path) == "three four"


def test_scripts_without_spaces_keep_having_none(tmp_path: Path) -> None:
    text = "00:00.000 --> 00:04.000\n今日<00:01.000><c>は</c><00:02.000><c>晴れ</c><00:03.000><c> です</c>\n"
    assert said(text, folder=tmp_path) == "今日は晴れ です"
    assert said(text, 1, 3, folder=tmp_path) == "は晴れ"


@pytest.mark.parametrize("times", ["<00:09.000>", "<00:00.000>", "<99:99.000>", "<00:00:00:01>"])
def test_an_inline_time_that_does_not_fit_says_nothing(times: str, tmp_path: Path) -> None:
    text = f"00:01.000 --> 00:03.000\none {times}two\n"
    assert said(text, 0, 2, folder=tmp_path) == "one" and said(text, 2, 3, folder=tmp_path) == "two"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.text("ab <>:.0\n \r-&;", max_size=12)), max_size=8),
    st.integers(0, 60),
)
def test_two_clips_side_by_side_share_no_word_and_lose_none(
    tmp_path_factory: pytest.TempPathFactory, cues: list[tuple[int, int, str]], cut_s: int
) -> None:
    text = "".join(f"00:{start:02d}.000 --> 01:{length:02d}.000\n{body}\n\n" for start, length, body in cues)
    folder = tmp_path_factory.getbasetemp()
    whole = said(text, folder=folder) or ""
    parts = (said(text, 0, cut_s, folder=folder) or "", said(text, cut_s, None, folder=folder) or "")
    assert sorted("".join(parts).replace(" ", "")) == sorted(whole.replace(" ", ""))


PIECES = [
    "00:00.000 --> 00:01.000",
    "\n",
    "\r",
    " ",
    "<00:00.500>",
    "<c>",
    "word",
    "NOTE",
    "-->",
    "&#0;",
    "&lt;",
    "1",
    "\ufeff",
]
UNREADABLE = {
    "latin1.vtt": ("WEBVTT\n\n00:00.000 --> 00:02.000\ncafé crème brûlée\n".encode("cp1252"), "4 bytes are no UTF-8"),
    "gbk.vtt": (
        "1\n00:00:00,000 --> 00:00:02,000\n今天天气很好\n".encode("gbk"),
        "bytes are no UTF-8, save it as UTF-8",
    ),
    "frames.vtt": (b"1\n00:00:00:12 --> 00:00:02:00\nalpha\n", "1 time spans cannot be read, first line 2"),
    "backwards.vtt": (b"1\n00:00:02,000 --> 00:00:01,000\nalpha\n", "1 time spans cannot be read"),
    "web.vtt": (b"<!DOCTYPE html><html>please log in</html>", "is a web page"),
    "sub.vtt": (b"{0}{25}alpha|bravo\n", "holds no time span"),
    "packed.vtt": (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    lookup = SubtitleFiles(str(tmp_path / "{video_id}.vtt"))
    lookup(Path(name).stem, Clip("a", 0, 2))
    lookup(Path(name).stem, Clip("b", 0, 2))
    (problem,) = lookup.take_problems()
    assert problem.startswith(f"{name}: ") and words in problem
    assert lookup.take_problems() == []
    assert str(tmp_path / name) in capsys.readouterr().err


@pytest.mark.heavy
def test_the_summary_of_a_set_counts_and_names_them(small_set: dict[str, Any]) -> None:
    """And the sidecars of shards that have none hold no such field: they are the same, byte for byte, as before."""
    videos = Path(small_set["output"]).parent / "videos"
    (videos / "-vid_0.en.vtt").write_text(YOUTUBE)
    (videos / "-vid_1.en.vtt").write_bytes(UNREADABLE["frames.vtt"][0])
    config = {**small_set, "texts": {"subtitles": [str(videos / "{video_id}.en.vtt")]}}
    stats = run(PreprocessConfig.model_validate(config))
    problems = stats["subtitle_problems"]
    assert problems["num_files"] == 1 and problems["examples"][0].startswith("-vid_1.en.vtt: 1 time spans cannot")
    assert "of 1 subtitle files something could not be read: -vid_1.en.vtt: 1 time" in account(stats)
    sidecars = [read_facts(path) for path in Path(small_set["output"]).glob("shards/*.parquet")]
    assert len(sidecars) > 1 and sum("subtitle_problems" in facts for facts in sidecars) == 1


def test_a_hostile_file_costs_no_more_than_its_length() -> None:
    for line in ("-->\n", "00:00.000 --> 00:01.000\n", "<0:", "<a", "{\\", "&", " -->", "x-->\n\n"):
        unread = Unread()
        parse_cues(line * (400_000 // len(line)), unread)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES)).map("".join).map(str.encode)))
def test_whatever_bytes_a_file_holds_it_is_cues_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.vtt"
    path.write_bytes(data)
    text = read_subtitles(path)
    assert "\n" not in text.problem
    for cue in text.cues:
        assert cue.start_s <= cue.end_s and all(cue.start_s <= word.moment_s <= cue.end_s for word in cue.words)
        assert all(word.text == word.text.strip() != "" for word in cue.words)
