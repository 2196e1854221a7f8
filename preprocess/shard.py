"""One shard from its plan: find each video, look at it, decode it once, pack its clips. The unit of every job.

facts = shard_facts(config_hash)
for done in build_shard(plan.shard(12), tools, facts):    # VideoDone after each video
    progress(done)
"""

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import pyarrow as pa

from pipeline.data.format import Reason
from pipeline.errors import InputError
from preprocess.caption import Captioner, captioner_versions, open_captioner
from preprocess.caption_batches import CaptionBatches, Outcome
from preprocess.claim import check_claim
from preprocess.config import PreprocessConfig
from preprocess.cut import cut_clips
from preprocess.ffmpeg_binary import ffmpeg_version
from preprocess.limits import memory_limited
from preprocess.pack import ShardWriter
from preprocess.pins import pinned_generation
from preprocess.plan import ShardPlan
from preprocess.presence import Seen, check_share
from preprocess.probe import probe_video
from preprocess.records import Clip, ClipError, Failure, Media, Video
from preprocess.texts import ClipTexts, Texts, text_folders
from preprocess.videos import Roots, VideoLocator

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class VideoDone:
    """Progress: what became of one video."""

    num_clips: int
    num_failures: int
    duration_s: float
    """Of the delivered clips."""
    is_missing: bool = False
    """There is no file of the video."""


@dataclass(frozen=True)
class Tools:
    """What a worker opens once and uses for every shard."""

    config: PreprocessConfig
    locate: VideoLocator
    texts: Texts
    captioner: Captioner | None
    captioner_versions: dict[str, Any]
    """What generated captions depend on beside the config."""
    text_roots: Roots = field(default_factory=Roots)
    """The folders of subtitle files: where one is lost, a clip has no subtitle for no fault of its own."""
    generation: int = 0
    """Of the pinned text sources, when they were opened."""

    @classmethod
    def open(cls, config: PreprocessConfig) -> "Tools":
        return cls(
            config,
            VideoLocator(config.videos, config.output),
            Texts.open(config.texts, config.output),
            open_captioner(config.captioner, config.seed),
            captioner_versions(config.captioner),
            Roots(text_folders(config.texts)),
            pinned_generation(config.output),
        )


def shard_facts(config_hash: str) -> dict[str, Any]:
    """What the bytes of a shard depend on beside its plan; kept in every sidecar."""
    libraries = {name: ".".join(str(part) for part in numbers) for name, numbers in av.library_versions.items()}
    return {
        "config_hash": config_hash,
        "versions": {
            "ffmpeg": ffmpeg_version(),
            "pyav": av.__version__,
            "pyarrow": pa.__version__,
            "webdataset": version("webdataset"),
            "machine": platform.machine(),
            "threads": 1,
            **libraries,
        },
    }


def build_shard(
    plan: ShardPlan,
    tools: Tools,
    facts: dict[str, Any],
    poisoned: dict[str, tuple[Reason, str]] | None = None,
    before: Seen = Seen(),  # noqa: B008 -- frozen
) -> Iterator[VideoDone]:
    """Write and publish one shard. Videos in `poisoned` killed a worker before: they fail unread, with that reason.

    Raises `FileSystemFault` where a video cannot be read for the file system's sake, and `MachineFault` where videos
    are missing as if a mount were lost; `before` tells how many of the set were there so far.
    """
    config = tools.config
    seen = Seen()
    batches = CaptionBatches(tools.captioner, config.captioner, config.texts.require)
    facts = {**facts, "versions": {**facts["versions"], **tools.captioner_versions}}
    tools.texts.take_problems()  # of a shard that was given up
    with ShardWriter(config.output, plan.name, facts) as writer:
        for video in plan.videos:
            failures_before, duration_before_s = writer.num_failures, writer.duration_s
            is_missing = False
            for outcome in _deliver(video, tools, (poisoned or {}).get(video.video_id)):
                is_missing |= isinstance(outcome.result, Failure) and outcome.result.reason == Reason.VIDEO_MISSING
                _write_all(writer, batches.add(outcome))
            seen += Seen(int(not is_missing), int(is_missing))
            num_failures, duration_s = writer.num_failures - failures_before, writer.duration_s - duration_before_s
            yield VideoDone(len(video.clips), num_failures, duration_s, is_missing)
        check_share(before, seen, config.videos.max_missing_odds, plan.name)
        _write_all(writer, batches.finish())
        if problems := tools.texts.take_problems():
            writer.note(subtitle_problems={"num_files": len(problems), "examples": problems[:_SHOWN_PROBLEMS]})
        check_claim(config.output, plan.name, facts["config_hash"])
        if pinned_generation(config.output) != tools.generation:
            raise InputError(f"the text sources changed before {plan.name} was written; run the same command again")
        writer.publish()


def _write_all(writer: ShardWriter, outcomes: Iterable[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome.result, Failure):
            writer.fail(outcome.result)
        else:
            writer.add(outcome.result, outcome.video_id, outcome.texts, outcome.caption_frame)


def _deliver(video: Video, tools: Tools, poison: tuple[Reason, str] | None) -> Iterator[Outcome]:
    """Every clip of `video` once, with its texts. Of a poisoned video nothing is read, its texts neither."""
    if poison is not None:
        for clip in video.clips:
            yield Outcome(video.video_id, Failure(clip.clip_id, video.video_id, *poison), ClipTexts(None, None, None))
        return
    texts = {clip.clip_id: tools.texts.of(video.video_id, clip) for clip in video.clips}
    if any(hoped.subtitle is None or hoped.caption is None for hoped in texts.values()):
        tools.text_roots.check_still_there()
    wanted: list[Clip] = []
    for clip in video.clips:
        hoped = texts[clip.clip_id]
        if tools.captioner is not None and hoped.caption is None:
            hoped = replace(hoped, caption="to be written")
        if hoped.satisfies(tools.config.texts.require):
            wanted.append(clip)
        else:
            detail = f"texts.require is {tools.config.texts.require}"
            failure = Failure(clip.clip_id, video.video_id, Reason.NO_TEXT, detail)
            yield Outcome(video.video_id, failure, texts[clip.clip_id])
    if not wanted:
        return
    for result in _decode(video.video_id, wanted, tools):
        clip_id = result.clip_id if isinstance(result, Failure) else result.clip.clip_id
        yield Outcome(video.video_id, result, texts[clip_id])


def _decode(video_id: str, clips: list[Clip], tools: Tools) -> Iterator[Media | Failure]:
    try:
        path = _find(video_id, tools.locate)
        with memory_limited(tools.config.limits):  # beside a captioner the process itself has no limit
            probe = probe_video(path, tools.config.limits)
    except ClipError as error:
        if error.reason == Reason.VIDEO_MISSING:
            tools.locate.check_still_there()
        for clip in clips:
            yield Failure(clip.clip_id, video_id, error.reason, error.detail)
        return
    yield from cut_clips(path, video_id, probe, clips, tools.config.clips, tools.config.limits)


def _find(video_id: str, locate: VideoLocator) -> Path:
    path = locate(video_id)
    if path is None:
        raise ClipError(Reason.VIDEO_MISSING, locate.missing_detail(video_id))
    return path
