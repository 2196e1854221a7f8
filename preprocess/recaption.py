"""Adds or replaces generated captions in existing shards, without decoding any source video again.

    python -m preprocess.recaption data/shards/hdvila configs/preprocess/hdvila.yaml captioner.kind=open_clip
    python -m preprocess.recaption ... captioner.replace=true       # also where there is a caption

Each shard is written anew beside the old one, which is kept until the new one is whole. A shard whose sidecar names
the captioner already is left alone, so running the command again goes on after a kill. `tasks.index` and `tasks.count`
split the shards over processes; `python -m preprocess.merge` follows them. The manifest changes: a training run that
pinned the old one will say so.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.config import load_config, render_help, split_arguments
from pipeline.data.format import Reason
from pipeline.errors import InputError, RunError, run_command
from preprocess.caption import Captioner, captioner_versions, open_captioner
from preprocess.caption_batches import CaptionBatches, Outcome
from preprocess.config import PreprocessConfig, check_task
from preprocess.merge import account, merge
from preprocess.pack import ShardWriter, read_facts
from preprocess.plan import Plan, hash64
from preprocess.publish import sole_writer
from preprocess.published import published_shards, refuse_damaged
from preprocess.records import Clip, Failure, Media
from preprocess.swap import forget, recover, set_aside
from preprocess.texts import ClipTexts

ABOUT = """Add captions of the middle frames to the shards in the config's output (or in the folder named first)."""


def recaption(config: PreprocessConfig, captioner: Captioner) -> dict[str, Any]:
    """Caption every shard of this task that this captioner has not seen. Returns the statistics of the set, if this is
    the only task."""
    Plan.open(config.output / "plan")  # only our own sets: the tars of an indexed one are somebody else's
    recover(config.output)
    refuse_damaged(config.output, task_shards(config))
    wanted = {"source": config.captioner.source, "replace": config.captioner.replace}
    note = {"recaptioned": wanted, "recaption_versions": captioner_versions(config.captioner)}
    for shard in tqdm(task_shards(config), unit=" shards", desc="recaption", mininterval=1.0):
        facts = read_facts(config.output / f"{shard}.parquet")
        if facts.get("recaptioned") != wanted:
            recaption_shard(config, captioner, shard, facts, note)
    return merge(config.output) if config.tasks.count == 1 else {}


def task_shards(config: PreprocessConfig) -> list[str]:
    """The published shards of this task: a function of their names, as others may be published meanwhile."""
    return [
        shard for shard in published_shards(config.output) if hash64(shard) % config.tasks.count == config.tasks.index
    ]


def recaption_shard(
    config: PreprocessConfig, captioner: Captioner, shard: str, facts: dict[str, Any], note: dict[str, Any]
) -> None:
    """Write one shard with these facts again with captions. All its other content stays as it is."""
    batches = CaptionBatches(captioner, config.captioner, require="none")
    failures = pq.read_table(config.output / "failures" / f"{Path(shard).name}.parquet").to_pylist()
    with ShardWriter(config.output, shard, {**facts, **note}) as writer:
        for row in failures:
            writer.fail(Failure(row["clip_id"], row["video_id"], Reason(row["reason"]), row["detail"]))
        for sample in read_shard(config.output, shard):
            _write(writer, batches.add(sample))
        _write(writer, batches.finish())
        _swap(config.output, shard, facts, writer)


def _swap(output: Path, shard: str, facts: dict[str, Any], writer: ShardWriter) -> None:
    """Put the finished shard in the place of the one with these facts. Others wait for renames, not for a slow disk."""
    other = RunError(
        f"another process captioned {shard} meanwhile; give each its own part, with tasks.index and .count"
    )
    try:
        writer.sync()
    except FileNotFoundError:
        raise other from None
    with sole_writer(output):
        if read_facts(output / f"{shard}.parquet") != facts:
            raise other
        set_aside(output, shard)
        writer.publish()
        forget(output, shard)


def read_shard(output: Path, shard: str) -> Iterator[Outcome]:
    """The samples of a published shard, as they were before they were packed."""
    descriptor = os.open(output / f"{shard}.tar", os.O_RDONLY)
    try:
        for row in pq.read_table(output / f"{shard}.parquet").to_pylist():
            members = _members(os.pread(descriptor, row["size"], row["offset"]))
            facts = json.loads(members["json"])
            clip = Clip(facts["clip_id"], facts["start_s"], facts["end_s"])
            size = (facts["width_px"], facts["height_px"])
            media = Media(clip, members["mp4"], facts["fps"], facts["num_frames"], *size, members.get("mka"))
            texts = ClipTexts(facts["subtitle"], facts["caption"], facts["caption_source"])
            yield Outcome(facts["video_id"], media, texts, facts.get("caption_frame"))
    finally:
        os.close(descriptor)


def _members(sample: bytes) -> dict[str, bytes]:
    """extension -> content of one sample's piece of a tar."""
    with tarfile.open(fileobj=io.BytesIO(sample), mode="r:") as tar:
        return {member.name.partition(".")[2]: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def _write(writer: ShardWriter, outcomes: Iterator[Outcome]) -> None:
    for outcome in outcomes:
        assert isinstance(outcome.result, Media)
        writer.add(outcome.result, outcome.video_id, outcome.texts, outcome.caption_frame)


def main(argv: list[str]) -> int:
    if any(word in ("-h", "--help") for word in argv):
        print(render_help(PreprocessConfig, program="python -m preprocess.recaption [OUTPUT]", about=ABOUT))
        return 0
    folder = [f"output={argv[0]}"] if argv and Path(argv[0]).is_dir() else []
    files, overrides = split_arguments(argv[len(folder) :], program="python -m preprocess.recaption")
    config = load_config(PreprocessConfig, files or _own_config(folder), [*overrides, *folder])
    check_task(config.tasks)
    captioner = open_captioner(config.captioner, config.seed)
    if captioner is None:
        raise InputError("captioner.kind is none; set captioner.kind=open_clip or captioner.kind=transformers")
    stats = recaption(config, captioner)
    if stats:
        print(account(stats))
    return 0


def _own_config(folder: list[str]) -> list[str]:
    """A folder named without a config is read with its own."""
    return [f"{folder[0].removeprefix('output=')}/config.yaml"] if folder else []


if __name__ == "__main__":
    run_command(main)
