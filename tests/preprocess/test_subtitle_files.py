"""Subtitles cut to spans."""

from pathlib import Path

import pytest

from preprocess.records import Clip
from preprocess.subtitle_files import SubtitleFiles, read_cues
from preprocess.texts import Texts, TextsConfig

VTT = """\ufeffWEBVTT
Kind: captions

NOTE a remark
about nothing

1
00:00:01.000 --> 00:00:03.000 align:start position:0%
one <c>two</c> three four

00:00:03.000 --> 00:00:04.000
one <c>two</c> three four
five &amp; six

00:05.000 --> 00:06.000
<00:00:05.000><c>seven</c>

no time here
bad --> worse
"""
SRT = """1
00:00:01,000 --> 00:00:03,000
one {\\an8}two three four

2
00:00:03,000 --> 00:00:04,000
five & six

3
00:00:05,000 --> 00:00:06,000
seven
""".replace("\n", "\r\n")


@pytest.mark.parametrize(("suffix", "content"), [("vtt", VTT), ("srt", SRT)])
def test_words_of_the_span(suffix: str, content: str, tmp_path: Path) -> None:
    (tmp_path / f"v.{suffix}").write_bytes(content.encode())
    config = TextsConfig(subtitles=(str(tmp_path / ("{video_id}." + suffix)),))
    texts = Texts.open(config, tmp_path)

    def subtitle(start_s: float, end_s: float | None, video_id: str = "v") -> str | None:
        return texts.of(video_id, Clip("v.1.mp4", start_s, end_s)).subtitle

    assert subtitle(0, None) == "one two three four five & six seven"
    assert subtitle(2, 4) == "three four five & six"
    assert subtitle(0, 1.5) == "one"
    assert subtitle(4, 5) is None
    assert subtitle(0, 9, "other") is None


def test_markup_without_end_costs_no_more_than_text(tmp_path: Path) -> None:
    """Each opening bracket was looked at from every one before it: a line of 64 kB took seconds, a file hours."""
    path = tmp_path / "v.vtt"
    for line in ("<" * 60_000, "{\\" * 30_000):
        cues = [f"00:00.000 --> 00:02.000\n{number}{line}\n\n" for number in range(15)]
        path.write_text("WEBVTT\n\n" + "".join(cues))
        assert len(read_cues(path)) == 15


def test_a_file_of_no_sane_size_is_no_subtitle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.vtt"
    path.write_text("WEBVTT\n\n00:00.000 --> 00:02.000\nhello\n")
    lookup = SubtitleFiles(str(tmp_path / "{video_id}.vtt"))
    assert lookup("v", Clip("a", 0, 2)) == "hello"
    monkeypatch.setattr("preprocess.subtitle_files.MAX_FILE_BYTES", 30)
    assert SubtitleFiles(str(tmp_path / "{video_id}.vtt"))("v", Clip("a", 0, 2)) is None
    assert "v.vtt" in capsys.readouterr().err
