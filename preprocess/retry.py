"""Tries the failures of chosen reasons again, and adds what is delivered now in supplementary shards.

    python -m preprocess.retry configs/preprocess/hdvila.yaml
    python -m preprocess.retry configs/preprocess/hdvila.yaml retry.reasons='[time_limit]' limits.time_s=20000

    python -m preprocess.retry configs/preprocess/hdvila.yaml retry.only_plan=true          # for array tasks
    python -m preprocess.retry configs/preprocess/hdvila.yaml tasks.index=7 tasks.count=100 # then each, then merge

The config is the one of the first run; `videos` and `limits` may differ, as they are what a retry is made for, and so
may the release and ffmpeg that draw the pictures: a round is of one config of its own. A round
that was interrupted goes on before a new one starts, and one of many tasks never starts one: two rounds over the same
failures would deliver their clips twice. Clips of videos that are still not there are left as they are.
"""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import parse_command_line
from pipeline.errors import InputError, run_command
from preprocess.claim import claim_folder
from preprocess.config import PreprocessConfig, check_task, content_hash
from preprocess.ffmpeg_binary import ffmpeg_version
from preprocess.merge import account, merge, nothing_delivered
from preprocess.pins import check_sources
from preprocess.plan import Plan, write_plan
from preprocess.publish import remove_leftovers, sole_writer, temporary_path
from preprocess.published import published_shards, refuse_damaged
from preprocess.records import Video
from preprocess.rounds import open_rounds, standing_failures
from preprocess.run import build_missing
from preprocess.shard import shard_facts
from preprocess.texts import prepare_texts
from preprocess.videos import VideoLocator, prepare_videos

ABOUT = """Deliver clips that failed before, in supplementary shards of the same set."""


def retry(config: PreprocessConfig) -> dict[str, Any]:
    """One round of retry, or the rest of an interrupted one. Returns the statistics of the set, if this is the only
    task."""
    claim_folder(config, for_retry=True)
    base = Plan.open(config.output / "plan")
    prepare_texts(config.texts, config.output, config.limits.max_line_mb * 2**20)
    prepare_videos(config.videos, config.output)
    check_sources(config, base, videos_may_differ=True)
    refuse_damaged(config.output, published_shards(config.output))  # their failures are what a round is made of
    with sole_writer(config.output):
        plan = _unfinished(config.output)
        if plan is None and config.tasks.count == 1:
            plan = _new_round(config)
    config_hash = content_hash(config, ffmpeg_version())
    if plan is None and config.tasks.count > 1:
        print("no round of retry is open; retry.only_plan=true without tasks opens one", file=sys.stderr, flush=True)
    if plan is not None and not config.retry.only_plan:
        _check_same_round(plan, config_hash)
        build_missing(plan, config, shard_facts(config_hash))
    return merge(config.output) if config.tasks.count == 1 else {}


def _check_same_round(plan: Plan, config_hash: str) -> None:
    if plan.facts.get("config_hash", config_hash) != config_hash:
        name = plan.folder.name
        raise InputError(
            f"{plan.folder} was begun with other limits or another ffmpeg; repeat the command that began it, or remove "
            f"that folder and shards/{name}_*"
        )


def _unfinished(output: Path) -> Plan | None:
    """The newest round, if any task's shard of it is missing. Older ones are whole: none starts before they are."""
    rounds = open_rounds(output)
    if not rounds or set(rounds[-1].clip_counts()) <= set(published_shards(output)):
        return None
    return rounds[-1]


def _new_round(config: PreprocessConfig) -> Plan | None:
    """Plan a round over the standing failures of the wanted reasons; None where there is nothing to try."""
    wanted = _wanted_clips(config)
    if not wanted:
        return None
    rounds = open_rounds(config.output)
    name = f"retry_{len(rounds) + 1:03d}"
    folder = config.output / "plan" / name
    fresh = temporary_path(folder)
    remove_leftovers(folder.parent, name)
    fresh.mkdir()
    base = Plan.open(config.output / "plan")
    facts = write_plan(fresh, _planned(base, wanted), config.shards.clips_per_shard, prefix=f"{name}_")
    facts["reasons"] = sorted(config.retry.reasons)
    if not config.retry.only_plan:  # else whoever builds it first may be another machine
        facts["config_hash"] = content_hash(config, ffmpeg_version())
    (fresh / "plan.json").write_text(json.dumps(facts, indent=1))
    fresh.rename(folder)
    return Plan.open(folder)


def _wanted_clips(config: PreprocessConfig) -> set[str]:
    """Clip ids to try again. A missing video whose file is still not there would only fail once more."""
    prepare_videos(config.videos, config.output)
    locate = VideoLocator(config.videos, config.output)
    locate.check_reach()
    present: dict[str, bool] = {}
    wanted = set()
    for row in standing_failures(config.output, set(published_shards(config.output))):
        if row["reason"] not in config.retry.reasons or row["shard"] == "plan":
            continue
        video_id = row["video_id"]
        if video_id not in present:
            present[video_id] = locate(video_id) is not None
        if present[video_id]:
            wanted.add(row["clip_id"])
    return wanted


def _planned(base: Plan, wanted: Collection[str]) -> Iterator[tuple[int, Video]]:
    for number in range(base.num_shards):
        for video in base.shard(number).videos:
            clips = tuple(clip for clip in video.clips if clip.clip_id in wanted)
            if clips:
                yield number, Video(video.video_id, clips)


def main(argv: list[str]) -> int:
    config = parse_command_line(PreprocessConfig, argv, program="python -m preprocess.retry", about=ABOUT)
    check_task(config.tasks)
    stats = retry(config)
    if stats:
        print(account(stats), flush=True)
    if stats and stats["num_delivered"] == 0:
        raise nothing_delivered(config.output, stats)
    return 0


if __name__ == "__main__":
    run_command(main)
