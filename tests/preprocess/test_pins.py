"""Text sources and the video index are pinned: no set holds clips of two states of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, MachineFault
from preprocess.claim import claim_folder
from preprocess.config import PreprocessConfig
from preprocess.plan import Plan
from preprocess.retry import retry
from preprocess.run import run
from preprocess.shard import Tools, build_shard, shard_facts

Values = dict[str, Any]
Rows = dict[str, str]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps({"clip_id": key, "text": text}) + "\n" for key, text in rows.items()))


def write_csv(path: Path, rows: Rows) -> None:
    path.write_text("clip_id,text\n" + "".join(f"{key},{text}\n" for key, text in rows.items()))


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps([{"clip_id": key, "text": text} for key, text in rows.items()]))


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.table({"clip_id": list(rows), "text": list(rows.values())}), path)


def write_lmdb(path: Path, rows: Rows) -> None:
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.drop(environment.open_db(), delete=False)
        for key, text in rows.items():
            transaction.put(key.encode(), text.encode())


def write_vtt(path: Path, rows: Rows) -> None:
    """A file per video; the words of its clips one second each, as the small set's spans are 0.9 s apart."""
    path.mkdir(exist_ok=True)
    for old in path.iterdir():
        old.unlink()
    for key, text in rows.items():
        video_id, number = key.rsplit(".", 2)[0], int(key.rsplit(".", 2)[1])
        start_s = 0.1 + number * 0.9
        with open(path / f"{video_id}.en.vtt", "a") as stream:
            stream.write("" if stream.tell() else "WEBVTT\n\n")
            stream.write(f"00:00:{start_s:06.3f} --> 00:00:{start_s + 0.9:06.3f}\n{text}\n\n")


KINDS: dict[str, Callable[[Path, Rows], None]] = {
    "s.jsonl": write_jsonl,
    "s.csv": write_csv,
    "s.json": write_json,
    "s.parquet": write_parquet,
    "s_lmdb": write_lmdb,
    "s_vtt": write_vtt,
}
FEW_KINDS = [
    pytest.param(kind, marks=() if kind in ("s.jsonl", "s_lmdb", "s_vtt") else pytest.mark.slow) for kind in KINDS
]
TEXTS = {f"-vid_{video}.{clip}.mp4": f"words of {video} {clip}" for video in range(4) for clip in range(3)}
SOME = {key: text for key, text in TEXTS.items() if not key.endswith(".1.mp4")}


def config_for(small_set: Values, kind: str, folder: Path, role: str = "subtitles", **changes: Any) -> PreprocessConfig:
    name = str(folder / kind / "{video_id}.en.vtt") if kind == "s_vtt" else str(folder / kind)
    return PreprocessConfig.model_validate({**small_set, "texts": {role: [name]}, **changes})


def one_of(small_set: Values, kind: str, folder: Path, index: int, role: str = "subtitles") -> PreprocessConfig:
    return config_for(small_set, kind, folder, role, tasks={"index": index, "count": 2})


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_a_changed_text_is_refused_with_the_way_out(kind: str, small_set: Values, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind, SOME)
    run(one_of(small_set, kind, tmp_path, 0))
    KINDS[kind](tmp_path / kind, {key: f"other {text}" for key, text in SOME.items()})
    with pytest.raises(InputError, match=r"^texts\.subtitles: .*-vid_.*bring that back, give another output"):
        run(one_of(small_set, kind, tmp_path, 1))
    assert len(list((tmp_path / "shards" / "shards").glob("*.parquet"))) == 1
    KINDS[kind](tmp_path / kind, SOME)
    run(one_of(small_set, kind, tmp_path, 1))
    assert run(config_for(small_set, kind, tmp_path))["num_subtitles"] == 8


@pytest.mark.parametrize("kind", FEW_KINDS)
def test_added_rows_touched_and_moved_files_are_no_change(kind: str, small_set: Values, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind, SOME)
    run(one_of(small_set, kind, tmp_path, 0))
    KINDS[kind](tmp_path / kind, SOME | TEXTS)
    run(one_of(small_set, kind, tmp_path, 1))
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / kind).rename(moved / kind)
    for path in moved.rglob("*"):
        os.utime(path, (0, 0))
    assert run(config_for(small_set, kind, moved))["num_delivered"] == 12


@pytest.mark.parametrize(
    ("kind", "way"),
    [("s.jsonl", "removed row"), ("s_lmdb", "removed row"), ("s.jsonl", "removed source"), ("s.jsonl", "other kind")],
)
def test_what_is_taken_away_is_a_change(kind: str, way: str, small_set: Values, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind, SOME)
    run(one_of(small_set, kind, tmp_path, 0, "captions"))
    if way == "removed row":
        KINDS[kind](tmp_path / kind, {"another.1.mp4": "x"})
        with pytest.raises(InputError, match=r"^texts\.captions: "):
            run(one_of(small_set, kind, tmp_path, 1, "captions"))
        return
    write_vtt(tmp_path / "s_vtt", SOME)
    texts = {"captions": [str(tmp_path / "s_vtt" / "{video_id}.en.vtt")]} if way == "other kind" else {}
    with pytest.raises(InputError, match=r"^texts\.captions: .*(no longer on the list|stands where)"):
        run(PreprocessConfig.model_validate({**small_set, "texts": texts, "tasks": {"index": 1, "count": 2}}))


def test_a_text_that_no_planned_clip_has_may_change(small_set: Values, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "s.jsonl", {"elsewhere.1.mp4": "one", **SOME})
    run(one_of(small_set, "s.jsonl", tmp_path, 0))
    write_jsonl(tmp_path / "s.jsonl", {"elsewhere.1.mp4": "two", **dict(reversed(SOME.items()))})
    assert run(config_for(small_set, "s.jsonl", tmp_path))["num_subtitles"] == 8


def test_an_added_source_is_as_added_rows(small_set: Values, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "s.jsonl", SOME)
    run(one_of(small_set, "s.jsonl", tmp_path, 0))
    write_jsonl(tmp_path / "more.jsonl", TEXTS)
    texts = {"subtitles": [str(tmp_path / "s.jsonl"), str(tmp_path / "more.jsonl")]}
    assert run(PreprocessConfig.model_validate({**small_set, "texts": texts}))["num_delivered"] == 12


def test_before_the_first_shard_nothing_is_bound_but_no_worker_of_before_publishes(
    small_set: Values, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "s.jsonl", SOME)
    config = config_for(small_set, "s.jsonl", tmp_path, tasks={"index": 0, "count": 2})
    (tmp_path / "videos").rename(tmp_path / "no_videos")
    with pytest.raises(MachineFault):
        run(config)  # planned and pinned, and nothing built
    (tmp_path / "no_videos").rename(tmp_path / "videos")
    tools, facts = Tools.open(config), shard_facts(claim_folder(config))
    write_jsonl(tmp_path / "s.jsonl", {key: f"other {text}" for key, text in SOME.items()})
    run(one_of(small_set, "s.jsonl", tmp_path, 1))
    with pytest.raises(InputError, match="the text sources changed before shards/000000 was written"):
        list(build_shard(Plan.open(config.output / "plan").shard(0), tools, facts))


def test_a_set_of_before_has_no_pins(small_set: Values, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "s.jsonl", SOME)
    run(one_of(small_set, "s.jsonl", tmp_path, 0))
    (tmp_path / "shards" / "plan" / "sources.json").unlink()
    capsys.readouterr()
    run(one_of(small_set, "s.jsonl", tmp_path, 1))
    assert capsys.readouterr().err.count("were not pinned when its shards were written") == 1
    run(config_for(small_set, "s.jsonl", tmp_path))
    assert "were not pinned" not in capsys.readouterr().err


def test_the_video_index_is_pinned_under_its_name(small_set: Values, tmp_path: Path) -> None:
    """A list of another name is another place for the same videos; a retry may have other ones."""
    rows = {f"-vid_{k}": f"videos/-vid_{k}.mp4" for k in range(4)}

    def write_index(name: str, paths: Rows) -> Values:
        lines = (json.dumps({"video_id": key, "path": path}) + "\n" for key, path in paths.items())
        (tmp_path / name).write_text("".join(lines))
        return {**small_set, "videos": {"index": str(tmp_path / name)}, "texts": {}}

    first = write_index("a.jsonl", rows)
    run(PreprocessConfig.model_validate({**first, "tasks": {"index": 0, "count": 2}}))
    swapped = {"-vid_0": rows["-vid_1"], "-vid_1": rows["-vid_0"], "-vid_2": rows["-vid_2"], "-vid_3": rows["-vid_3"]}
    write_index("a.jsonl", swapped)
    with pytest.raises(InputError, match=r"^videos\.index: .*a\.jsonl has changed for '-vid_"):
        run(PreprocessConfig.model_validate(first))
    write_index("a.jsonl", rows | {"another": "x.mp4"})
    assert run(PreprocessConfig.model_validate(first))["num_delivered"] == 12
    assert run(PreprocessConfig.model_validate(write_index("b.jsonl", swapped)))["num_delivered"] == 12
    write_index("b.jsonl", rows)
    retry(PreprocessConfig.model_validate({**first, "videos": {"index": str(tmp_path / "b.jsonl")}}))
