"""The equation of accounts: clips in the metadata = delivered + failed + pending, whatever fails and whenever it dies.

Shards are built in this process with made-up outcomes of the decode, so that hypothesis can try hundreds of histories:
videos that fail for random reasons, kills before any step that touches the disk, retries, and runs that go on.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.format import Reason
from preprocess import pack, shard
from preprocess.audit import audit_set, audit_shard
from preprocess.config import PreprocessConfig
from preprocess.merge import check_account, merge
from preprocess.plan import Plan
from preprocess.planning import make_plan
from preprocess.published import published_shards
from preprocess.records import Clip, ClipError, Failure, Media
from preprocess.retry import _new_round
from preprocess.run import missing_shards
from preprocess.shard import Tools, build_shard, shard_facts

NUM_VIDEOS = 6
VIDEO_REASONS = [
    Reason.VIDEO_UNREADABLE, Reason.NO_VIDEO_STREAM, Reason.FORBIDDEN_FORMAT, Reason.TIME_LIMIT, Reason.MEMORY_LIMIT,
    Reason.TOO_LARGE,
]  # fmt: skip
CLIP_REASONS = [Reason.SPAN_BEYOND_END, Reason.NO_FRAMES, Reason.TOO_LARGE, Reason.TIME_LIMIT]
FACTS = shard_facts("test")


class Killed(BaseException):
    """Stands for SIGKILL: from here on nothing of this process reaches the disk."""


class World:
    """What the decode answers and when the process dies."""

    def __init__(self) -> None:
        self.bad_videos: dict[str, Reason] = {}
        self.bad_clips: dict[str, Reason] = {}
        self.steps_to_live: int | None = None
        self.dead = False

    def probe(self, path: Path, limits: Any) -> None:
        if reason := self.bad_videos.get(path.stem):
            raise ClipError(reason, "made up")

    def cut(self, path: Path, video_id: str, probe: Any, clips: list[Clip], *_: Any) -> Iterator[Media | Failure]:
        for clip in clips:
            if reason := self.bad_clips.get(clip.clip_id):
                yield Failure(clip.clip_id, video_id, reason, "made up")
            else:
                yield Media(clip, f"media of {clip.clip_id}".encode(), 3.0, 3, 32, 32)

    def step(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act` as one step of the process, which may die before it; the dead do nothing."""

        def mortal(*values: Any, **options: Any) -> Any:
            if self.dead:
                return None
            if self.steps_to_live == 0:
                self.dead = True
                raise Killed
            if self.steps_to_live is not None:
                self.steps_to_live -= 1
            return act(*values, **options)

        return mortal


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "probe_video", world.probe)
        patch.setattr(shard, "cut_clips", world.cut)
        patch.setattr(pack, "publish", world.step(pack.publish))
        patch.setattr(pack.ShardWriter, "add", world.step(pack.ShardWriter.add))
        patch.setattr(pack.ShardWriter, "fail", world.step(pack.ShardWriter.fail))
        patch.setattr(pack, "write_sidecar", world.step(pack.write_sidecar))
        patch.setattr(Path, "unlink", world.step(Path.unlink))
        yield world


def write_inputs(folder: Path, hdvila: Callable[..., Path], sizes: list[int]) -> PreprocessConfig:
    videos = {}
    (folder / "videos").mkdir()
    for number, size in enumerate(sizes):
        (folder / "videos" / f"v{number}.mp4").touch()
        videos[f"v{number}"] = [(f"v{number}.{k}.mp4", k, k + 1) for k in range(size)]
    hdvila(folder / "hdvila_part0.jsonl", videos)
    return PreprocessConfig.model_validate(
        {
            "output": str(folder / "out"),
            "metadata": {"files": [str(folder / "hdvila_part0.jsonl")]},
            "videos": {"templates": [str(folder / "videos" / "{video_id}.mp4")]},
            "shards": {"clips_per_shard": 5},
            "retry": {"reasons": [str(reason) for reason in {*VIDEO_REASONS, *CLIP_REASONS}]},
        }
    )


def next_plan(config: PreprocessConfig) -> Plan | None:
    """The plan of the first run, or of the next round of retry; None where nothing failed."""
    if published_shards(config.output):
        return _new_round(config)
    return make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)


def work(plan: Plan, config: PreprocessConfig, tools: Tools, world: World, steps_to_live: int | None) -> None:
    """Build what is missing of `plan`, until done or dead."""
    world.steps_to_live, world.dead = steps_to_live, False
    try:
        for number in missing_shards(plan, config):
            for _ in build_shard(plan.shard(number), tools, FACTS):
                pass
    except Killed:
        pass
    world.steps_to_live, world.dead = None, False


def check(config: PreprocessConfig, total: int) -> dict[str, Any]:
    """The account adds up, and each clip is in at most one place; returns the statistics."""
    stats = merge(config.output)
    check_account(stats)
    assert stats["num_clips"] == total
    if stats["num_pending"] == 0:  # before that, the tar of a killed shard may stand without its sidecar
        assert list(audit_set(config.output)) == []
        findings = [
            str(finding) for name in published_shards(config.output) for finding in audit_shard(config.output, name)
        ]
        assert [finding for finding in findings if "clips" in finding] == []  # the media are made up
    clip_ids = [
        clip_id
        for name in published_shards(config.output)
        for clip_id in pq.read_table(config.output / f"{name}.parquet")["clip_id"].to_pylist()
    ]
    assert len(clip_ids) == len(set(clip_ids)) == stats["num_delivered"]
    return stats


def digest(output: Path) -> dict[str, str]:
    names = ["shards/*.tar", "shards/*.parquet", "failures/*.parquet", "manifest.parquet", "stats.json"]
    files = [path for name in names for path in sorted(output.glob(name))]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


STATES = st.tuples(
    st.dictionaries(st.integers(0, NUM_VIDEOS - 1), st.sampled_from(VIDEO_REASONS), max_size=3),
    st.dictionaries(
        st.tuples(st.integers(0, NUM_VIDEOS - 1), st.integers(0, 3)), st.sampled_from(CLIP_REASONS), max_size=5
    ),
    st.lists(st.integers(0, 40), max_size=3),
)
"""(bad videos, bad clips, lives of the processes that die at it)."""


@pytest.mark.heavy
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=NUM_VIDEOS, max_size=NUM_VIDEOS), st.lists(STATES, min_size=1, max_size=3))
def test_the_account_adds_up_after_every_failure_kill_and_retry(
    world: World,
    hdvila: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    states: list[Any],
) -> None:
    folder = tmp_path_factory.mktemp("account")
    killed = write_inputs(folder, hdvila, sizes)
    undisturbed = killed.model_copy(update={"output": folder / "undisturbed"})
    clip_ids = {f"v{number}.{k}.mp4" for number, size in enumerate(sizes) for k in range(size)}
    standing = clip_ids
    for bad_videos, bad_clips, lives in states:
        world.bad_videos = {f"v{number}": reason for number, reason in bad_videos.items()}
        world.bad_clips = {f"v{number}.{k}.mp4": reason for (number, k), reason in bad_clips.items()}
        standing = {name for name in standing if name in world.bad_clips or name.partition(".")[0] in world.bad_videos}
        for config, deaths in ((undisturbed, []), (killed, lives)):
            plan = next_plan(config)
            for life in [*deaths, None]:
                if plan is not None:
                    work(plan, config, Tools.open(config), world, life)
                stats = check(config, len(clip_ids))
            assert (stats["num_pending"], stats["num_failed"]) == (0, len(standing))
    assert digest(killed.output) == digest(undisturbed.output)
