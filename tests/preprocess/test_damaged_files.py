"""Damaged files of a set: found when opened, made anew where the rest determines them, else named in one line.

Each file x {empty, cut short, garbage, a folder in its place, gone}, through `run`, `merge` and `retry`.
"""

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError, RunError
from preprocess.config import PreprocessConfig
from preprocess.merge import merge
from preprocess.plan import DamagedPlan, Plan
from preprocess.planning import make_plan
from preprocess.retry import retry
from preprocess.run import run
from preprocess.text_index import TextIndex, build_index, build_index_once, is_sound

Values = dict[str, Any]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def garble(path: Path) -> None:
    """As many bytes, none of them right."""
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def garble_the_middle(path: Path) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[: middle - 8] + b"\xff" * 16 + data[middle + 8 :])


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FEW = ("cut late",)
"""What `make test` tries; the others are as many more minutes."""


def damages(*but: str) -> list[Any]:
    return [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in DAMAGES if name not in but]


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": empty,
    "cut early": lambda path: cut(path, 0.1),
    "cut late": lambda path: cut(path, 0.9),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "garbage": garble,
    "garbage within": garble_the_middle,
    "folder": put_a_folder,
    "gone": Path.unlink,
}


def digest(output: Path) -> dict[str, str]:
    names = ["shards/*.tar", "shards/*.parquet", "failures/*.parquet", "manifest.parquet", "stats.json"]
    files = [path for name in names for path in sorted(output.glob(name)) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def copied(finished_set: Values, tmp_path: Path) -> PreprocessConfig:
    output = tmp_path / "set"
    shutil.copytree(finished_set["output"], output)
    return PreprocessConfig.model_validate({**finished_set, "output": str(output)})


MADE_ANEW = (
    "plan/plan.json",
    "plan/shards.npy",
    "plan/videos.jsonl",
    "plan/sources.json",
    "failures/plan.parquet",
    "versions.json",
    "config.yaml",
    "manifest.parquet",
    "stats.json",
)
"""What the metadata, the config and the shards determine."""
NAMED = ("shards/000000.parquet", "shards/000001.tar", "failures/000000.parquet")
"""What nothing else determines, but the videos."""


@pytest.mark.parametrize("name", MADE_ANEW)
@pytest.mark.parametrize("damage", damages())
def test_what_the_rest_determines_is_made_anew(name: str, damage: str, copied: PreprocessConfig) -> None:
    """Or the line names it: a folder is nobody's to remove, and inside a config no byte has a second copy."""
    before = digest(copied.output)
    path = copied.output / name
    config = yaml.safe_load((copied.output / "config.yaml").read_text())
    DAMAGES[damage](path)
    may_be_refused = damage == "folder" or name in ("config.yaml", "plan/videos.jsonl")
    try:
        run(copied)
    except PipelineError as error:
        assert may_be_refused and str(path) in str(error) and "\n" not in str(error)
    else:
        assert path.is_file()
    kept = {key: value for key, value in before.items() if key != name}
    assert {key: value for key, value in digest(copied.output).items() if key != name} == kept
    if damage not in ("folder", "garbage within"):
        assert path.is_file() and digest(copied.output) == before
        now = yaml.safe_load((copied.output / "config.yaml").read_text())
        kept_configs = [PreprocessConfig.model_validate({**values, "output": "x"}) for values in (config, now)]
        assert kept_configs[0] == kept_configs[1]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("damage", damages())
def test_what_nothing_determines_is_named(name: str, damage: str, copied: PreprocessConfig) -> None:
    """And after that is done which the line says, the set is what it was."""
    before = digest(copied.output)
    path = copied.output / name
    if damage == "gone" and name.endswith("000000.parquet") and name.startswith("shards"):
        pytest.skip("a shard without a sidecar does not exist, and is written")
    if "garbage" in damage and name.endswith(".tar"):
        pytest.skip("hashes are the audit's work")
    DAMAGES[damage](path)
    for command in (lambda: run(copied), lambda: merge(copied.output), lambda: retry(copied)):
        try:
            command()
        except RunError as error:
            assert str(path) in str(error) and "\n" not in str(error) and "remove" in str(error)
        else:
            # Bytes inside a Parquet page that no footer tells of: the audit's work, too.
            assert damage == "garbage within"
    if damage != "garbage within":
        for suffix in (".tar", ".parquet"):
            shard = (copied.output / "shards" / path.name).with_suffix(suffix)
            shard.rmdir() if shard.is_dir() else shard.unlink(missing_ok=True)
        if path.is_dir():
            path.rmdir()
        run(copied)
        assert digest(copied.output) == before


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("name", ["plan.json", "shards.npy", "videos.jsonl"])
def test_no_shard_comes_out_of_a_damaged_plan(name: str, damage: str, small_set: Values) -> None:
    """Of a set without shards: the plan is made anew, and is what it was."""
    config = PreprocessConfig.model_validate({**small_set, "texts": {}})
    plan = make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)
    wanted = [plan.shard(number) for number in range(plan.num_shards)]
    DAMAGES[damage](plan.folder / name)
    try:
        plan = make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)
        assert [plan.shard(number) for number in range(plan.num_shards)] == wanted
    except PipelineError as error:
        assert str(plan.folder / name) in str(error) and "\n" not in str(error)
        assert damage == "folder" or (isinstance(error, DamagedPlan) and name == "videos.jsonl")


def test_a_plan_of_before_has_no_checksums(copied: PreprocessConfig) -> None:
    plan = Plan.open(copied.output / "plan")
    del plan.facts["shard_crc32"]
    assert plan.shard(0).num_clips == plan.num_clips(0)
    path = plan.folder / "videos.jsonl"
    path.write_bytes(path.read_bytes().replace(b"],[", b"],{", 1))
    with pytest.raises(DamagedPlan, match=r"videos\.jsonl is damaged \(in the lines of shards/000000: "):
        plan.shard(0)


def test_other_metadata_is_refused_also_without_the_plan(copied: PreprocessConfig, tmp_path: Path) -> None:
    """Nothing but the shards tells what they were planned from."""
    shutil.rmtree(copied.output / "plan")
    metadata = tmp_path / "other.jsonl"
    metadata.write_text('{"video_id": "-vid_0", "clip": [{"clip_id": "-vid_0.7.mp4", "span": ["0", "1"]}]}\n')
    other = copied.model_copy(update={"metadata": copied.metadata.model_copy(update={"files": (str(metadata),)})})
    with pytest.raises(PipelineError, match="holds shards of other metadata"):
        run(other)
    assert run(copied)["num_delivered"] == 12


@pytest.mark.parametrize("name", ["plan.json", "shards.npy", "videos.jsonl"])
@pytest.mark.parametrize("damage", damages("gone"))
def test_the_plan_of_a_retry_is_named(name: str, damage: str, small_set: Values, tmp_path: Path) -> None:
    video = tmp_path / "videos" / "-vid_1.mp4"
    video.rename(tmp_path / "away")
    config = PreprocessConfig.model_validate(small_set)
    run(config)
    (tmp_path / "away").rename(video)
    retry(PreprocessConfig.model_validate({**small_set, "retry": {"only_plan": True}}))
    path = config.output / "plan" / "retry_001" / name
    DAMAGES[damage](path)
    for command in (lambda: retry(config), lambda: merge(config.output)):
        try:
            command()
        except PipelineError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert name == "videos.jsonl" and "garbage" in damage  # seen where a shard is built


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("name", ["texts.bin", "hashes.npy", "places.npy", "sizes.json", "."])
def test_an_index_of_texts_is_made_anew(name: str, damage: str, tmp_path: Path) -> None:
    rows = [(f"clip {number}", f"text {number}") for number in range(40)]
    folder = tmp_path / "index"
    build_index(rows, folder)
    assert is_sound(folder)
    if name != ".":
        DAMAGES[damage](folder / name)
    elif damage in ("folder", "gone"):
        shutil.rmtree(folder)
        if damage == "folder":
            folder.mkdir()
    else:
        shutil.rmtree(folder)
        folder.write_bytes(b"x")
    build_index_once(rows, folder)
    index = TextIndex(folder)
    assert [index.get(clip_id) for clip_id, _ in rows] == [text for _, text in rows]


@pytest.mark.parametrize("name", ["versions.json", "config.yaml", "plan/plan.json", "plan/sources.json"])
@pytest.mark.parametrize("number", [errno.EIO, pytest.param(errno.EACCES, marks=pytest.mark.slow)])
def test_what_cannot_be_read_is_not_damaged(
    name: str, number: int, copied: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied.output / name
    before = path.read_bytes()
    real = Path.read_bytes

    def fail(self: Path) -> bytes:
        if self == path:
            raise OSError(number, os.strerror(number), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(RunError, match=f"{os.strerror(number)}: {path}"):
        run(copied)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert run(copied)["num_delivered"] == 12
