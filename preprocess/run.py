"""Raw videos to tar shards: one command, and the unit that a SLURM array task runs.

    python -m preprocess.run configs/preprocess/hdvila.yaml [key=value ...]
    python -m preprocess.run configs/preprocess/hdvila.yaml tasks.index=7 tasks.count=1000

Writes only the shards that are missing, so running it again is how to go on after a kill. Ends with the account: every
clip of the metadata is delivered or in the failures table. Exit codes: 0 done, 1 not finished, 2 wrong input.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from pipeline.config import parse_command_line, read_yaml
from pipeline.errors import DISK_TROUBLE, InputError, MachineFault, RunError, run_command
from preprocess.caption import place_workers
from preprocess.claim import claim_folder
from preprocess.config import PreprocessConfig, check_task
from preprocess.faults import FileSystemFault
from preprocess.ffmpeg_binary import check_hwaccel, ffmpeg_version
from preprocess.inputs import check_inputs
from preprocess.merge import account, merge, nothing_delivered
from preprocess.pins import check_sources
from preprocess.plan import Plan
from preprocess.planning import make_plan
from preprocess.presence import seen_in
from preprocess.published import damage_of, published_shards, refuse_damaged
from preprocess.shard import VideoDone, shard_facts
from preprocess.texts import prepare_texts
from preprocess.trial import check_decode
from preprocess.videos import VideoLocator, VideosConfig, prepare_videos
from preprocess.workers import ShardFailed, run_workers

_SHARDS_CHECKED_FIRST = 1000
"""The others are looked at when the job ends."""

ABOUT = """Decode every clip of a video corpus once, and write tar shards with its texts.

--fast is short for clips.fast=true."""


def run(config: PreprocessConfig) -> dict[str, Any]:
    """Plan, write this task's missing shards, and, when it is the only task, merge. Returns the statistics.

    Raises `RunError` where a shard could not be written or a published one is damaged.
    """
    max_line_bytes = config.limits.max_line_mb * 2**20
    with _machine_to_blame(config):
        check_inputs(config)  # before a folder is made for what cannot be read
        ffmpeg_version()
    config_hash = claim_folder(config)
    plan = make_plan(config.output, config.metadata, config.shards, config.seed, max_line_bytes)
    with _machine_to_blame(config):
        prepare_texts(config.texts, config.output, max_line_bytes)
        prepare_videos(config.videos, config.output)
    check_sources(config, plan)
    build_missing(plan, config, shard_facts(config_hash))
    if config.tasks.count == 1:
        return merge(config.output)
    refuse_damaged(config.output, _published(plan, config))
    return {}


def task_shards(num_shards: int, index: int, count: int) -> range:
    """The shards of task `index` of `count`: every `count`-th one, so that the load is even."""
    return range(index, num_shards, count)


def missing_shards(plan: Plan, config: PreprocessConfig) -> list[int]:
    """The shards of this task that are not published."""
    mine = task_shards(plan.num_shards, config.tasks.index, config.tasks.count)
    return [number for number in mine if not (config.output / f"{plan.name(number)}.parquet").exists()]


def _published(plan: Plan, config: PreprocessConfig) -> list[str]:
    """The shards of this task that are published."""
    mine = task_shards(plan.num_shards, config.tasks.index, config.tasks.count)
    return sorted({plan.name(number) for number in mine} & set(published_shards(config.output)))


def build_missing(plan: Plan, config: PreprocessConfig, facts: dict[str, Any]) -> None:
    """Build this task's missing shards of `plan` in worker processes, under a progress bar."""
    missing = missing_shards(plan, config)
    if not missing:
        return
    published = _published(plan, config)
    for problem in filter(None, (damage_of(config.output, shard) for shard in published[:_SHARDS_CHECKED_FIRST])):
        print(f"damaged: {problem}", file=sys.stderr, flush=True)
    _check_machine(config)
    num_workers = min(config.workers or len(os.sched_getaffinity(0)), len(missing))
    num_workers = place_workers(config.captioner, num_workers)
    problems: list[ShardFailed] = []
    num_failures, duration_s = 0, 0.0
    tqdm.monitor_interval = 0  # no thread beside the workers
    total = sum(plan.num_clips(number) for number in missing)
    pause_s = 0.2 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, unit=" clips", desc=config.output.name, smoothing=0.05, mininterval=pause_s) as bar:
        before = seen_in(config.output, published_shards(config.output))
        for event in run_workers(missing, plan.folder, config, facts, num_workers, before):
            if isinstance(event, ShardFailed):
                problems.append(event)
            elif isinstance(event, VideoDone):
                num_failures += event.num_failures
                duration_s += event.duration_s
                bar.set_postfix_str(f"{duration_s / 3600:.2f} h, {num_failures} failed", refresh=False)
                bar.update(event.num_clips)
    if problems:
        raise RunError(
            f"{len(problems)} of {len(missing)} shards were not written, first {plan.name(problems[0].number)}: "
            f"{problems[0].problem.strip()}; run the same command again to write what is missing"
        )


def _check_machine(config: PreprocessConfig) -> None:
    """Refuse to start where each video would fail: an array task on a bad node must not publish empty shards."""
    with _machine_to_blame(config):
        prepare_videos(config.videos, config.output)
        VideoLocator(config.videos, config.output).check_reach()
        if config.clips.hwaccel:
            check_hwaccel(config.clips.hwaccel)
        check_decode(config.clips, ffmpeg_version())


@contextmanager
def _machine_to_blame(config: PreprocessConfig) -> Iterator[None]:
    """What fails inside on this machine went well before, here or on another one: a `MachineFault`, no wrong input.

    That is so in a task of an array whose plan is made, and where shards were written with the same `videos`.
    """
    try:
        yield
    except (InputError, FileSystemFault) as error:
        if isinstance(error, InputError) and not _went_well_before(config):
            raise
        raise MachineFault(f"{socket.gethostname()}: {error}") from None
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        raise MachineFault(f"{socket.gethostname()}: {error.strerror}: {error.filename}") from None


def _went_well_before(config: PreprocessConfig) -> bool:
    if config.tasks.count > 1 and (config.output / "plan" / "plan.json").exists():
        return True
    try:
        saved = VideosConfig.model_validate(read_yaml(config.output / "config.yaml").get("videos"))
    except (InputError, ValidationError):
        return False
    return saved == config.videos and bool(published_shards(config.output))


def main(argv: list[str]) -> int:
    argv = ["clips.fast=true" if word == "--fast" else word for word in argv]
    config = parse_command_line(PreprocessConfig, argv, program="python -m preprocess.run", about=ABOUT)
    check_task(config.tasks)
    started = time.monotonic()
    stats = run(config)
    if stats and stats["num_delivered"] == 0:
        print(account(stats), flush=True)
        raise nothing_delivered(config.output, stats)
    print(f"{config.output}: done in {time.monotonic() - started:.0f} s")
    if stats:
        print(account(stats))
    return 0


if __name__ == "__main__":
    run_command(main)
