"""The plan is a pure function of metadata and seed, and loses nothing."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from preprocess.metadata import MetadataConfig
from preprocess.plan import Plan, ShardsConfig
from preprocess.planning import make_plan
from preprocess.run import task_shards


def write(path: Path, videos: list[tuple[str, int]]) -> None:
    with open(path, "w") as stream:
        for video_id, num_clips in videos:
            clips = [{"clip_id": f"{video_id}.{k}.mp4", "span": [k, k + 1.5]} for k in range(num_clips)]
            stream.write(json.dumps({"video_id": video_id, "clip": clips}) + "\n")


def plan_of(output: Path, *files: Path, seed: int = 42, size: int = 10, **options: Any) -> Plan:
    metadata = MetadataConfig(files=tuple(str(file) for file in files), **options)
    return make_plan(output, metadata, ShardsConfig(clips_per_shard=size), seed, 1 << 20)


def shards_of(plan: Plan) -> list[list[str]]:
    return [
        [clip.clip_id for video in plan.shard(number).videos for clip in video.clips]
        for number in range(plan.num_shards)
    ]


def rejected(output: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(output / "failures" / "plan.parquet").to_pylist()
    return rows


def test_order_and_split_of_files_do_not_matter(tmp_path: Path) -> None:
    videos = [(f"v{number}", 1 + number % 4) for number in range(100)]
    write(tmp_path / "all.jsonl", videos)
    random.Random(1).shuffle(videos)
    write(tmp_path / "x.jsonl", videos[:30])
    write(tmp_path / "a.jsonl", videos[30:])
    first = plan_of(tmp_path / "1", tmp_path / "all.jsonl")
    second = plan_of(tmp_path / "2", tmp_path / "x.jsonl", tmp_path / "a.jsonl")
    assert shards_of(first) == shards_of(second)
    assert first.facts["plan_hash"] == second.facts["plan_hash"]
    assert plan_of(tmp_path / "3", tmp_path / "all.jsonl", seed=43).facts["plan_hash"] != first.facts["plan_hash"]


def test_shards_are_full_and_mixed(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [(f"v{number:03d}", 3) for number in range(200)])
    shards = shards_of(plan_of(tmp_path / "out", tmp_path / "m.jsonl", size=50))
    assert all(50 <= len(shard) < 53 for shard in shards[:-1])
    hundreds = {clip_id[1] for clip_id in shards[0]}
    assert hundreds == {"0", "1"}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5)), min_size=0, max_size=30),
    st.integers(1, 7),
    st.sets(st.sampled_from(["a", "b.0.mp4", "c.3.mp4"])),
)
def test_planned_and_rejected_are_all_of_the_metadata(
    tmp_path_factory: pytest.TempPathFactory, videos: list[tuple[str, int]], size: int, excluded: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    write(folder / "m.jsonl", videos)
    (folder / "excluded.txt").write_text("\n".join(sorted(excluded)))
    plan = plan_of(folder / "out", folder / "m.jsonl", size=size, exclude=(str(folder / "excluded.txt"),))
    planned = [clip_id for shard in shards_of(plan) for clip_id in shard]
    lost = rejected(folder / "out")
    total = sum(num_clips for _, num_clips in videos)
    assert len(planned) + len(lost) == total == plan.facts["num_clips"] + plan.facts["num_rejected"]
    assert len(set(planned)) == len(planned)
    assert not {clip_id for clip_id in planned if clip_id in excluded or clip_id[0] in excluded}
    expected = {f"{v}.{k}.mp4" for v, n in videos for k in range(n)}
    assert set(planned) == {clip_id for clip_id in expected if clip_id not in excluded and clip_id[0] not in excluded}


def test_double_clip_ids_across_videos_and_suffixes(tmp_path: Path) -> None:
    clips = [{"clip_id": name, "span": [0, 1]} for name in ("same.mp4", "same", "other.mp4")]
    with open(tmp_path / "m.jsonl", "w") as stream:
        for video_id in ("v1", "v2"):
            stream.write(json.dumps({"video_id": video_id, "clip": clips}) + "\n")
    plan = plan_of(tmp_path / "out", tmp_path / "m.jsonl")
    planned = [clip_id.removesuffix(".mp4") for shard in shards_of(plan) for clip_id in shard]
    assert sorted(planned) == ["other", "same"]
    assert [row["reason"] for row in rejected(tmp_path / "out")] == ["duplicate_clip"] * 4


EXCLUDE_LISTS = {
    "ids.txt": "\ufeffa\r\nb.0\n",
    "ids.csv": "video_id,n\na,1\nb.0.mp4,2\n",
    "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\nret0,msr9,a,x\nret1,b.0,c,y\n",
    "ids.jsonl": '{"video": "a"}\n{"clip_id": "b.0.mp4"}\n',
    "ids.json": '[{"video_id": "a"}, {"video_id": "b.0"}]',
}


@pytest.mark.parametrize("name", EXCLUDE_LISTS)
@pytest.mark.parametrize("packed", [False, True])
def test_exclude_lists_of_every_kind(name: str, packed: bool, tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [("a", 2), ("b", 2)])
    path = tmp_path / (name + ".gz" if packed else name)
    content = EXCLUDE_LISTS[name].encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    plan = plan_of(tmp_path / "out", tmp_path / "m.jsonl", exclude=(str(path),))
    assert shards_of(plan) == [["b.1.mp4"]]
    assert {row["reason"] for row in rejected(tmp_path / "out")} == {"excluded"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.jsonl", '{"video_id": "a"}\n{"video_id": "ev\n'),
        ("ids.jsonl", '{"video_id": "a"}\n{"remark": "b"}\n'),
        ("ids.csv", "video_id,why\na,x\nb\n"),
        ("ids.json", '[{"video_id": "a"}, "b"]'),
        ("ids.txt", "a\n" + "b" * 2_000_000 + "\n"),
    ],
)
def test_a_row_that_cannot_be_read_is_no_row_to_pass_over(name: str, content: str, tmp_path: Path) -> None:
    """What it forbids would be delivered."""
    write(tmp_path / "m.jsonl", [("a", 2), ("b", 2)])
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="ids"):
        plan_of(tmp_path / "out", tmp_path / "m.jsonl", exclude=(str(tmp_path / name),))


def test_an_exclude_list_that_excludes_nothing_is_wrong_input(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [("a", 2)])
    (tmp_path / "ids.csv").write_text("youtube,n\na,1\n")
    with pytest.raises(InputError, match=r"ids\.csv has none of the columns"):
        plan_of(tmp_path / "out", tmp_path / "m.jsonl", exclude=(str(tmp_path / "ids.csv"),))


def test_metadata_that_is_there_twice_gives_the_plan_of_one(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [(f"v{number}", 3) for number in range(50)])
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress((tmp_path / "m.jsonl").read_bytes()))
    once = plan_of(tmp_path / "1", tmp_path / "m.jsonl")
    twice = plan_of(tmp_path / "2", tmp_path / "m.jsonl", tmp_path / "m.jsonl.gz")
    assert shards_of(once) == shards_of(twice) and twice.facts["num_rejected"] == 150


def test_touched_metadata_keeps_the_plan_and_other_metadata_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", [("a", 3), ("b", 2)])
    plan = plan_of(tmp_path / "out", tmp_path / "m.jsonl")
    write(tmp_path / "m.jsonl", [("b", 2), ("a", 3)])
    assert plan_of(tmp_path / "out", tmp_path / "m.jsonl").facts["plan_hash"] == plan.facts["plan_hash"]
    (tmp_path / "out" / "shards").mkdir()
    (tmp_path / "out" / "shards" / "000000.parquet").touch()
    write(tmp_path / "m.jsonl", [("b", 2), ("a", 4)])
    with pytest.raises(InputError, match="other metadata"):
        plan_of(tmp_path / "out", tmp_path / "m.jsonl")


@given(st.integers(0, 500), st.integers(1, 40))
def test_tasks_share_the_shards(num_shards: int, count: int) -> None:
    parts = [task_shards(num_shards, index, count) for index in range(count)]
    assert sorted(number for part in parts for number in part) == list(range(num_shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
