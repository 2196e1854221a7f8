"""Of rows with the same id the first in the order given stays, whatever it says and wherever the others are."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import doubles
from preprocess.metadata import MetadataConfig
from preprocess.plan import Plan, ShardsConfig
from preprocess.planning import make_plan
from preprocess.records import Clip
from preprocess.texts import Texts, TextsConfig, prepare_texts

Row = tuple[str, str, int, str]
"""(video id, clip id, start, caption)."""


def write(path: Path, rows: list[Row]) -> None:
    lines = [
        json.dumps({"video_id": video, "clip_id": clip, "start": start, "end": start + 1, "caption": caption})
        for video, clip, start, caption in rows
    ]
    path.write_text("".join(f"{line}\n" for line in lines))


def plan_of(output: Path, *files: Path) -> Plan:
    columns = {"clip_id": "clip_id", "start": "start", "end": "end", "caption": "caption"}
    metadata = MetadataConfig.model_validate(
        {"files": tuple(str(file) for file in files), "layout": "table", "columns": columns}
    )
    return make_plan(output, metadata, ShardsConfig(clips_per_shard=3), 42, 1 << 20)


def planned(plan: Plan) -> set[Row]:
    return {
        (video.video_id, clip.clip_id, int(clip.start_s), str(clip.caption))
        for number in range(plan.num_shards)
        for video in plan.shard(number).videos
        for clip in video.clips
    }


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from("vwxyz"), st.integers(0, 3), st.text("zyxa", min_size=1)),
        max_size=25,
    ),
    st.integers(1, 5),
    st.integers(0, 25),
)
def test_the_first_in_the_order_given_stays(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], keys_per_pass: int, cut: int
) -> None:
    """Equal to a dictionary that takes no second value; over chunks of any size, and over two files whose names are in
    the other order."""
    wanted: dict[str, Row] = {}
    for row in rows:
        wanted.setdefault(row[1], row)
    folder = tmp_path_factory.mktemp("plan")
    write(folder / "z.jsonl", rows[:cut])
    write(folder / "a.jsonl", rows[cut:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doubles, "_KEYS_PER_PASS", keys_per_pass)
        plan = plan_of(folder / "out", folder / "z.jsonl", folder / "a.jsonl")
    assert planned(plan) == set(wanted.values())
    failures = pq.read_table(folder / "out" / "failures" / "plan.parquet").to_pylist()
    assert len(failures) == len(rows) - len(wanted)
    assert {row["reason"] for row in failures} <= {"duplicate_clip"}


def test_the_line_names_the_way_to_keep_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "m.jsonl", [("v", "a", 0, "zebra"), ("v", "a", 0, "ant"), ("v", "b", 1, "bee")])
    assert ("v", "a", 0, "zebra") in planned(plan_of(tmp_path / "out", tmp_path / "m.jsonl"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "metadata.files: 1 rows repeat a clip id, of each the first stays" in said
    assert "preprocess.benchmarks.plain" in said and "data.sources" in said
    (row,) = pq.read_table(tmp_path / "out" / "failures" / "plan.parquet").to_pylist()
    assert "the first row stays" in row["detail"] and "preprocess.benchmarks.plain" in row["detail"]


def test_the_order_of_files_decides_and_a_plan_of_before_has_none(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [("v", "c", 0, "of a")])
    write(tmp_path / "b.jsonl", [("v", "c", 0, "of b")])
    files = tmp_path / "b.jsonl", tmp_path / "a.jsonl"
    first = plan_of(tmp_path / "out", *files)
    assert planned(first) == {("v", "c", 0, "of b")}
    assert planned(plan_of(tmp_path / "out", *reversed(files))) == {("v", "c", 0, "of a")}
    path = tmp_path / "out" / "plan" / "plan.json"
    facts = json.loads(path.read_text())
    del facts["file_order"]
    path.write_text(json.dumps(facts))
    assert plan_of(tmp_path / "out", *files).facts == facts, "opened, not made again"


@pytest.mark.parametrize("form", ["rows", "list"])
def test_texts_of_a_table_too(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["zebra", "ant", "bee"]
    rows: list[dict[str, Any]] = [{"clip_id": "a", "text": text} for text in texts]
    rows = rows if form == "rows" else [{"clip_id": "a", "text": ["", *texts]}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TextsConfig(captions=(str(tmp_path / "t.jsonl"),))
    prepare_texts(config, tmp_path / "out", 1 << 20)
    assert Texts.open(config, tmp_path / "out").of("v", Clip("a", 0, 1)).caption == "zebra"
    said = capsys.readouterr().err
    assert "2 rows of" in said and "repeat a clip id, of each the first stays" in said and "data.sources" in said
    prepare_texts(config, tmp_path / "out", 1 << 20)
    assert capsys.readouterr().err == ""


def test_a_list_of_texts_in_the_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"video_id": "v", "clip_id": "c", "start": 0, "end": 1, "caption": ["zebra", "ant"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    assert planned(plan_of(tmp_path / "out", tmp_path / "m.jsonl")) == {("v", "c", 0, "zebra")}
    assert "1 rows of" in capsys.readouterr().err
