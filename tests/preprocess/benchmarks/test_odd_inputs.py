"""Annotation files as tools save them: every converter reads the same entries, or says in one line why it cannot."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.format import VIDEO_EXTENSIONS
from pipeline.errors import InputError, RunError
from preprocess.benchmarks import plain
from preprocess.benchmarks.activitynet import read_activitynet
from preprocess.benchmarks.didemo import read_didemo
from preprocess.benchmarks.lsmdc import read_lsmdc
from preprocess.benchmarks.msrvtt import read_msrvtt
from preprocess.benchmarks.plain import read_plain
from preprocess.benchmarks.split import Split
from preprocess.benchmarks.video_folder import VideoFolder
from tests.preprocess.benchmarks import miniatures

Reader = Callable[[Path], list[Split]]


def _read_plain(folder: Path) -> list[Split]:
    return [
        split
        for name in ("rows.jsonl", "rows.json", "rows.csv", "rows.tsv")
        for split in read_plain({"test": folder / name})
    ]


def _write_plain(folder: Path) -> None:
    rows = [{"video": "a/x.1.mp4", "caption": "one, two"}, {"video": "y.mp4", "caption": 'three "3"'}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.csv").write_text('video,caption\na/x.1.mp4,"one, two"\ny.mp4,"three ""3"""\n')
    (folder / "rows.tsv").write_text('video\tcaption\na/x.1.mp4\tone, two\ny.mp4\t"three ""3"""\n')


CONVERTERS: dict[str, tuple[Callable[[Path], None], Reader]] = {
    "msrvtt": (miniatures.write_msrvtt, read_msrvtt),
    "didemo": (miniatures.write_didemo, lambda folder: read_didemo(folder, 30.0)),
    "lsmdc": (miniatures.write_lsmdc, read_lsmdc),
    "activitynet": (miniatures.write_activitynet, read_activitynet),
    "plain": (_write_plain, _read_plain),
}
SAME: dict[str, Callable[[bytes], bytes]] = {
    "a mark": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    "CR": lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r"),
    "blank lines at the end": lambda data: data + b"\n\n \n",
    "no end of the last line": lambda data: data.rstrip(b"\r\n"),
}
REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "UTF-16 with a mark": (lambda data: data.decode("cp1252").encode("utf-16"), "is UTF-16: save it as UTF-8"),
    "UTF-16 without": (lambda data: data.decode("cp1252").encode("utf-16-le"), "is UTF-16: save it as UTF-8"),
    "gzip": (lambda data: b"\x1f\x8b\x08" + data, "is gzip-compressed"),
    "a web page": (lambda data: b"<!doctype html>" + data, "is a web page"),
    "nothing": (lambda data: b"", "."),
}


@pytest.fixture(autouse=True)
def _no_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        miniatures, "write_video", lambda path, *_, **__: path.parent.mkdir(parents=True, exist_ok=True)
    )


def annotations(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("how", SAME)
@pytest.mark.parametrize("name", CONVERTERS)
def test_the_same_entries_whatever_tool_saved_them(name: str, how: str, tmp_path: Path) -> None:
    write, read = CONVERTERS[name]
    write(tmp_path)
    before = read(tmp_path)
    for path in annotations(tmp_path):
        path.write_bytes(SAME[how](path.read_bytes()))
    assert read(tmp_path) == before


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("name", CONVERTERS)
def test_every_file_that_is_no_text_is_refused_by_name(name: str, how: str, tmp_path: Path) -> None:
    write, read = CONVERTERS[name]
    change, words = REFUSED[how]
    write(tmp_path)
    for path in annotations(tmp_path):
        content = path.read_bytes()
        path.write_bytes(change(content))
        if how != "nothing" or (path.suffix in (".json", ".csv", ".tsv") and name not in ("lsmdc",)):
            with pytest.raises(InputError, match=words) as caught:
                read(tmp_path)
            assert path.name in str(caught.value) and "\n" not in str(caught.value)
            assert "Errno" not in str(caught.value)
        path.write_bytes(content)


@pytest.mark.parametrize(("first", "second"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_over_the_files_of_a_set(first: str, second: str, tmp_path: Path) -> None:
    name = "Zo\u00eb"
    one, other = unicodedata.normalize(first, name), unicodedata.normalize(second, name)
    miniatures.write_didemo(tmp_path)
    (tmp_path / "val_list.txt").write_text(f"{one}.avi\n")
    (tmp_path / "val_data.json").write_text(json.dumps([{"video": f"{other}.avi", "description": "a", "times": []}]))
    assert len(read_didemo(tmp_path, 30.0)[1].entries) == 1
    miniatures.write_activitynet(tmp_path)
    (tmp_path / "val_1.json").write_text(json.dumps({one: {"sentences": ["a"]}}))
    (tmp_path / "val_ids.json").write_text(json.dumps([other]))
    assert len(read_activitynet(tmp_path)[1].entries) == 1
    miniatures.write_msrvtt(tmp_path)
    data = {"videos": [{"video_id": one}], "sentences": [{"video_id": one, "caption": "a"}]}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(data))
    (tmp_path / "MSRVTT_train.9k.csv").write_text(f"video_id\n{other}\n")
    assert len(read_msrvtt(tmp_path)[0].entries) == 1
    (tmp_path / "rows.csv").write_text(f"video,caption\n{one}.mp4,a\n{other}.mp4,b\n")
    (entry,) = read_plain({"test": tmp_path / "rows.csv"})[0].entries
    assert entry.texts == ("a", "b")
    (tmp_path / "v" / other).mkdir(parents=True)
    (tmp_path / "v" / other / f"{other}.mkv").touch()
    folder = VideoFolder(tmp_path / "v")
    assert folder.find(one) == folder.find(f"{one}/{one}") == tmp_path / "v" / other / f"{other}.mkv"


PLAIN_REFUSED = {
    "semicolons": ("r.csv", "video;caption\na.mp4;one\n", r"r\.csv:2: none of clip_id, .*'video;caption'.*;-separated"),
    "tabs": ("r.csv", "video\tcaption\na.mp4\tone\n", "tab-separated"),
    "no header": (
        "r.csv",
        "a.mp4,one\nb.mp4,two\n",
        r"r\.csv:2: none of clip_id, video, video_id is there, only 'a\.mp4'",
    ),
    "a header in capitals": ("r.csv", "Video,Caption\na,b\n", "did you mean 'Video' for 'video'"),
    "a stray quote": ("r.csv", 'video,caption\na,"one\nb,two\n', r"r\.csv:2: a quote opens"),
    "an empty text": (
        "r.jsonl",
        '{"video": "a", "caption": "b"}\n\n{"video": "a", "caption": ""}',
        r":3: caption is empty",
    ),
    "a list called .jsonl": ("r.jsonl", '[{"video": "a", "caption": "b"}]', r"one JSON list: end its name in \.json"),
    "CSV called .jsonl": ("r.jsonl", "video,caption\na,b\n", r"end its name in \.csv"),
    "no header but files": ("r.csv", "a.mp4,one\n", "holds no row below a header"),
    "no header but texts": ("r.csv", "a.mp4,one\nb,two\n", "its first line looks like a row"),
    "JSON of another name": ("r.ndjson", '{"file": "a"}\n', r"r\.ndjson:1: none of clip_id"),
    "another kind": ("r.parquet", "PAR1", r"is no \.jsonl, \.json, \.csv or \.tsv file"),
}


@pytest.mark.parametrize("kind", PLAIN_REFUSED)
def test_plain_lists_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    name, content, words = PLAIN_REFUSED[kind]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        read_plain({"test": tmp_path / name})


def test_ids_of_plain_lists(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"video_id": 0, "caption": "a"}\n{"video_id": "007", "caption": "b"}\n')
    assert [entry.clip_id for entry in read_plain({"test": tmp_path / "r.jsonl"})[0].entries] == ["0", "007"]


@pytest.mark.parametrize("extension", [form(ext) for ext in VIDEO_EXTENSIONS for form in (str, str.upper)])
def test_a_list_may_name_files_with_any_suffix(extension: str, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / f"clip.1.{extension}").touch()
    (tmp_path / "r.json").write_text(json.dumps([{"video": f"clip.1.{extension}", "caption": "a"}]))
    (entry,) = read_plain({"test": tmp_path / "r.json"})[0].entries
    assert entry.clip_id == "clip.1"
    assert VideoFolder(tmp_path / "v").find(entry.file, entry.suffix) == tmp_path / "v" / f"clip.1.{extension}"


def test_the_file_that_is_named_comes_first(tmp_path: Path) -> None:
    for suffix in ("mp4", "webm", "MOV"):
        (tmp_path / f"x.{suffix}").touch()
    folder = VideoFolder(tmp_path)
    assert [folder.find("x", suffix) for suffix in (".webm", ".MOV", ".avi", "")] == [
        tmp_path / name for name in ("x.webm", "x.MOV", "x.mp4", "x.mp4")
    ]
    assert folder.find("./x") == folder.find("old\\x") == tmp_path / "x.mp4"


def test_links_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "v" / "below").mkdir(parents=True)
    (tmp_path / "v" / "below" / "x.mp4").touch()
    (tmp_path / "v" / "loop").symlink_to(tmp_path / "v")
    (tmp_path / "v" / "below" / "loop").symlink_to("loop")
    (tmp_path / "v" / "self.mp4").symlink_to("self.mp4")
    assert VideoFolder(tmp_path / "v").find("x") == tmp_path / "v" / "below" / "x.mp4"


@pytest.mark.heavy
def test_a_split_without_one_clip_is_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "r.csv").write_text("video,caption\na.mp4,one\nb.mp4,two\n")
    words = ["name=x", f"test={tmp_path / 'r.csv'}", f"videos={tmp_path / 'v'}", f"output={tmp_path / 'out'}"]
    for _ in range(2):
        with pytest.raises(RunError, match="split test: not one of its 2 videos was delivered"):
            plain.main([*words, "workers=1", "size_px=32"])
    said = capsys.readouterr().out
    assert f"video_missing: no file b with any suffix of a video below {tmp_path / 'v'}" in said
    assert "templates" not in said and "videos.index" not in said


def test_nothing_is_written_where_a_later_split_has_no_video(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").touch()
    (tmp_path / "a.csv").write_text("video,caption\na,one\n")
    (tmp_path / "b.csv").write_text("video,caption\nb,one\n")
    words = ["name=x", f"train={tmp_path / 'a.csv'}", f"test={tmp_path / 'b.csv'}", f"videos={tmp_path / 'v'}"]
    with pytest.raises(InputError, match="split test: none of its 1 videos is below"):
        plain.main([*words, f"output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
