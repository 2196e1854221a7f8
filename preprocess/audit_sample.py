"""What is wrong with one sample, read as training reads it: its JSON, its texts, its media, its audio.

for problem in sample_problems(row, members, block, place): ...       # a sample of ours
for problem in foreign_problems(row, block, place, subtitle_from, caption_from): ...      # of an indexed foreign set
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import av
import av.error
import numpy as np

from pipeline.data.format import DEFAULT_CAPTION_FROM, DEFAULT_SUBTITLE_FROM, SAMPLE_JSON_FIELDS, sample_key
from pipeline.data.frames import open_clip_bytes
from pipeline.data.index import Place
from pipeline.data.sample import Sample, bad_where_it_fails, open_block
from pipeline.data.storage import DamagedSample
from pipeline.data.tar import TarDamage, TarWalk, split_name


def sample_problems(row: Mapping[str, Any], members: Mapping[str, bytes], block: bytes, place: Place) -> Iterator[str]:
    """What is wrong with a sample that `preprocess.run` wrote. `members`: extension -> content, by the sidecar."""
    try:
        facts = json.loads(members["json"])
        text = members["txt"].decode("utf-8")
    except (ValueError, RecursionError) as error:
        yield f"its json or txt cannot be read: {error}"
        return
    if missing := [name for name in SAMPLE_JSON_FIELDS if name not in facts]:
        yield f"its json lacks {', '.join(missing)}"
        return
    if facts["clip_id"] != row["clip_id"] or sample_key(facts["clip_id"]) != row["key"]:
        yield f"its json speaks of {facts['clip_id']!r}"
    if text != (facts["subtitle"] or ""):
        yield "its txt is not the subtitle of its json"
    media = members[row["media_ext"]]
    if hashlib.sha256(media).hexdigest() != facts["sha256"]:
        yield "its media differs from the hash in its json"
    yield from _as_training_reads(row, block, place, DEFAULT_SUBTITLE_FROM, DEFAULT_CAPTION_FROM)
    frames, problem = _decode(media, row["media_ext"])
    if frames is None:
        yield problem
    elif not facts["num_frames"] == row["num_frames"] == len(frames):
        yield f"it has {len(frames)} frames, but {facts['num_frames']} in its json"
    elif frames.shape[1:3] != (facts["height_px"], facts["width_px"]) or frames.dtype != np.uint8:
        yield f"its frames are {frames.shape[2]}x{frames.shape[1]}, not as its json says"
    yield from _audio_problems(members.get("mka"), facts.get("audio_sha256"))


def foreign_problems(
    row: Mapping[str, Any], block: bytes, place: Place, subtitle_from: str, caption_from: str
) -> Iterator[str]:
    """What is wrong with a sample of somebody else's tar: its media and the texts that the index counted."""
    yield from _misplaced(row, block)
    yield from _as_training_reads(row, block, place, subtitle_from, caption_from)
    try:
        sample = open_block(block, place, subtitle_from="", caption_from="", verify_media=False)
    except DamagedSample:
        return
    frames, problem = _decode(sample.media, sample.ext)
    if frames is None:
        yield problem
    elif row["num_frames"] != len(frames):
        yield f"it has {len(frames)} frames, but {row['num_frames']} in its sidecar"


def _misplaced(row: Mapping[str, Any], block: bytes) -> Iterator[str]:
    """Columns of the sidecar that do not say where a member lies in its sample's block."""
    places: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(TarDamage):  # what training makes of that is found behind this
        for member in TarWalk(lambda offset, size: block[offset : offset + size], len(block)):
            if member.kind == "file" and (named := split_name(member.name)) is not None:
                places[named[1]] = (row["offset"] + member.data_offset, member.size)
    for column, extension in (("media", row["media_ext"]), ("json", "json"), ("txt", "txt")):
        if places.get(extension, (-1, 0)) != (row[f"{column}_offset"], row[f"{column}_size"]):
            yield f"its {extension} is not where the sidecar says"


def _as_training_reads(
    row: Mapping[str, Any], block: bytes, place: Place, subtitle_from: str, caption_from: str
) -> Iterator[str]:
    """What keeps training from reading the sample, or differs from what the sidecar says of it."""
    sample: Sample | None = None
    for verify_media in (True, False):
        try:
            sample = open_block(
                block, place, subtitle_from=subtitle_from, caption_from=caption_from, verify_media=verify_media
            )
            break
        except DamagedSample as error:
            if verify_media:
                yield f"training masks it: {error}"
    if sample is not None and (len(sample.subtitle), len(sample.caption)) != (
        row["subtitle_chars"],
        row["caption_chars"],
    ):
        yield "its texts have other lengths than the sidecar says"


def _decode(media: bytes, extension: str) -> tuple[np.ndarray | None, str]:
    """All frames, or why there are none."""
    try:
        with bad_where_it_fails("media_undecodable"):
            clip = open_clip_bytes(media, extension)
            return clip.read(range(clip.num_frames)), ""
    except DamagedSample as error:
        return None, f"its media cannot be decoded: {error}"


def _audio_problems(audio: bytes | None, expected_sha256: str | None) -> Iterator[str]:
    if audio is None or expected_sha256 is None:
        if audio is not None:
            yield "it has audio that its json does not speak of"
        if expected_sha256 is not None:
            yield "its audio is gone"
        return
    if hashlib.sha256(audio).hexdigest() != expected_sha256:
        yield "its audio differs from the hash in its json"
    try:
        with av.open(io.BytesIO(audio), "r", format="matroska") as container:
            num_samples = sum(frame.samples for frame in container.decode(audio=0))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        yield f"its audio cannot be decoded: {error}"
        return
    if num_samples == 0:
        yield "its audio holds no sound"
