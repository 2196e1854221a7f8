"""Annotation files in the published schema: what is read, what is counted, and what a mutated field changes."""

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from preprocess.benchmarks.activitynet import read_activitynet
from preprocess.benchmarks.checks import check_counts, check_entries, describe_split, find_leakage
from preprocess.benchmarks.didemo import read_didemo
from preprocess.benchmarks.lsmdc import read_lsmdc
from preprocess.benchmarks.msrvtt import read_msrvtt
from preprocess.benchmarks.plain import read_plain
from preprocess.benchmarks.split import Entry, Published, Split
from preprocess.benchmarks.video_folder import VideoFolder
from tests.preprocess.benchmarks import miniatures


@pytest.fixture(autouse=True)
def _no_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read annotations only; a video is an empty file."""

    def touch(path: Path, colour: str, *, num_frames: int = 12, fps: int = 6) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(miniatures, "write_video", touch)


def edit_json(path: Path, change: object) -> None:
    data = json.loads(path.read_text())
    change(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))


def test_msrvtt_takes_20_captions_for_training_and_the_jsfusion_sentence_for_1ka(tmp_path: Path) -> None:
    miniatures.write_msrvtt(tmp_path)
    train, test = read_msrvtt(tmp_path)
    assert [len(entry.texts) for entry in train.entries] == [20] * 6
    assert [entry.clip_id for entry in test.entries] == [f"video{7000 + i}" for i in range(4)]
    assert test.entries[1].texts == ("a screen, all in one colour",)
    assert describe_split(test)["duplicates"]["examples"] == {"a screen, all in one colour": 2}


def test_msrvtt_mutations_change_the_counts_or_are_refused(tmp_path: Path) -> None:
    miniatures.write_msrvtt(tmp_path)
    edit_json(tmp_path / "MSRVTT_data.json", lambda data: data["sentences"].pop(3))
    assert [len(entry.texts) for entry in read_msrvtt(tmp_path)[0].entries] == [19, 20, 20, 20, 20, 20]
    edit_json(tmp_path / "MSRVTT_data.json", lambda data: data["sentences"][0].pop("caption"))
    with pytest.raises(InputError, match="sentence 0: no 'caption'"):
        read_msrvtt(tmp_path)
    miniatures.write_msrvtt(tmp_path)
    test_list = tmp_path / "MSRVTT_JSFUSION_test.csv"
    test_list.write_text(test_list.read_text() + "ret4,msr7000,video7000,the same video again\n")
    with pytest.raises(InputError, match="a video has several rows; 1kA has one sentence per video"):
        read_msrvtt(tmp_path)
    test_list.write_text("video_id,caption\nvideo7000,x\n")
    with pytest.raises(InputError, match="the header has no key, vid_key, sentence"):
        read_msrvtt(tmp_path)
    miniatures.write_msrvtt(tmp_path)
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo99\n")
    with pytest.raises(InputError, match="'video99' has no caption"):
        read_msrvtt(tmp_path)


def test_didemo_joins_descriptions_in_the_order_of_the_file(tmp_path: Path) -> None:
    miniatures.write_didemo(tmp_path)
    train, val, test = read_didemo(tmp_path, 30.0)
    assert [len(split.entries) for split in (train, val, test)] == [3, 1, 2]
    assert train.entries[1] == Entry(
        "12@N01_2_b", "12@N01_2_b", ("part 0 of train 1 part 1 of train 1 part 2 of train 1",), end_s=30.0
    )
    (tmp_path / "test_list.txt").write_text("78@N03_5_e.avi\n99@N00_9_z.avi\n")
    shorter = read_didemo(tmp_path, None)[2]
    assert [entry.clip_id for entry in shorter.entries] == ["78@N03_5_e"]
    assert shorter.notes == (
        "1 listed videos have no description and are left out: 99@N00_9_z",
        "1 described videos are not on the list and are left out: 78@N03_6_f",
    )


def test_lsmdc_pairs_by_line_and_names_the_broken_clip(tmp_path: Path) -> None:
    miniatures.write_lsmdc(tmp_path)
    train, val, test = read_lsmdc(tmp_path)
    texts = {entry.clip_id: entry.texts for entry in train.entries}
    assert texts["1004_Juno_00.00.42.801-00.00.47.522"] == ('She says "no and leaves.',)
    assert texts["1012_Unbreakable_00.06.16.065-00.06.21.941"] == ("He opens a café door.",)
    assert len(train.entries) == 4 and "1 rows of clips that are known to be broken" in train.notes[0]
    assert [len(val.entries), len(test.entries)] == [2, 3]
    assert find_leakage([train, test])[0]["text_examples"] == ["SOMEONE picks up a phone."]
    path = tmp_path / "LSMDC16_annos_val.csv"
    path.write_text(path.read_text().replace("\tBalloons", " Balloons"))
    with pytest.raises(InputError, match=r"val.csv:1 has 5 tab-separated fields, not 6"):
        read_lsmdc(tmp_path)


def test_activitynet_joins_paragraphs_and_follows_the_id_lists(tmp_path: Path) -> None:
    miniatures.write_activitynet(tmp_path)
    train, val_1 = read_activitynet(tmp_path)
    assert train.entries[0].texts == ("First of v_aaa. Then the end of v_aaa.",)
    assert train.notes == ("1 ids of train_ids.json have no text in train.json and are left out: v_gone",)
    assert (val_1.name, val_1.role, len(val_1.entries)) == ("val_1", "test", 3)
    (tmp_path / "val_ids.json").write_text('["v_ddd"]')
    assert len(read_activitynet(tmp_path)[1].entries) == 1
    (tmp_path / "val_ids.json").unlink()
    assert len(read_activitynet(tmp_path)[1].entries) == 3
    edit_json(tmp_path / "train.json", lambda data: data["v_aaa"].update(sentences=[]))
    with pytest.raises(InputError, match="v_aaa has no sentence"):
        read_activitynet(tmp_path)


def test_plain_lists_of_every_form_say_the_same(tmp_path: Path) -> None:
    rows = [{"clip_id": "a/x.1", "text": ["one", "two"]}, {"clip_id": "y", "text": "three"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = [{"video": "a/x.1.mp4", "caption": ["one", "two"]}, {"video": "y.mp4", "caption": "three"}]
    (tmp_path / "rows.json").write_text(json.dumps(other))
    (tmp_path / "rows.csv").write_text("video,caption\na/x.1.mp4,one\na/x.1.mp4,two\ny.mp4,three\n")
    found = [read_plain({"test": tmp_path / f"rows.{end}"})[0] for end in ("jsonl", "json", "csv")]
    assert found[0] == found[1] == found[2]
    assert found[0].entries == (Entry("a/x.1", "a/x.1", ("one", "two")), Entry("y", "y", ("three",)))
    (tmp_path / "rows.csv").write_text("video\nx.mp4\n")
    with pytest.raises(InputError, match="none of text, caption, sentence is there"):
        read_plain({"test": tmp_path / "rows.csv"})
    with pytest.raises(InputError, match="no list is given"):
        read_plain({})


def test_a_quoted_field_may_span_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('video,caption\nx.mp4,"two\nlines, one text"\n')
    assert read_plain({"test": tmp_path / "rows.csv"})[0].entries[0].texts == ("two lines, one text",)


def test_a_comma_outside_quotes_does_not_cut_a_text_in_silence(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("video,caption\nx.mp4,a dog, then a cat\n")
    with pytest.raises(InputError, match=r"rows.csv:2 has more fields than the header; put texts with commas into"):
        read_plain({"test": tmp_path / "rows.csv"})
    miniatures.write_msrvtt(tmp_path)
    path = tmp_path / "MSRVTT_JSFUSION_test.csv"
    path.write_text(path.read_text().replace('"', ""))
    with pytest.raises(InputError, match=r"MSRVTT_JSFUSION_test.csv:2 has more fields"):
        read_msrvtt(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "split test holds no video"),
        ([("a", ("x",)), ("b", ("y",)), ("a", ("z",))], "split test lists a 2 times; remove"),
        ([("a", ("x",)), ("b", ("y", " "))], "1 videos have an empty text, b for one; remove"),
        ([("a", ())], "1 videos have an empty text, a for one"),
    ],
)
def test_what_no_count_can_excuse_is_refused(rows: list[tuple[str, tuple[str, ...]]], message: str) -> None:
    split = Split("test", "test", tuple(Entry(name, name, texts) for name, texts in rows))
    with pytest.raises(InputError, match=message):
        check_entries(split)


def test_counts_are_held_against_the_published_ones() -> None:
    entries = tuple(Entry(f"v{i}", f"v{i}", ("a text",)) for i in range(1000))
    right = Split("test", "test", entries, Published((1000,)), Published((999, 1000)), Published((1,)))
    assert check_counts(right) == []
    wrong = Split("test", "test", entries[1:], Published((1000,)), Published((1100,), tolerance=100), Published((995,)))
    assert check_counts(wrong) == [
        "test has 999 videos, but 1,000 are published",
        "test has 999 texts, but about 1,100 are published",
        "test has 1 distinct texts, but 995 are published",
    ]


def test_videos_are_found_whatever_suffix_and_folder(tmp_path: Path) -> None:
    for name in ("a/x.1.avi", "a/y.webm", "a/y.mp4", "b/z.mp4", "c/z.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = VideoFolder(tmp_path)
    assert folder.find("x.1") == tmp_path / "a/x.1.avi"
    assert folder.find("y") == tmp_path / "a/y.mp4"
    assert folder.find("b/z") == tmp_path / "b/z.mp4"
    assert folder.find("notes") is None
    with pytest.raises(InputError, match="z is there 2 times: b/z, c/z; keep one"):
        folder.find("z")
    with pytest.raises(InputError, match="no video folder at"):
        VideoFolder(tmp_path / "nowhere")
