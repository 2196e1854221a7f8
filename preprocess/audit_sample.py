"""What is wrong with one sample, read as training will: its JSON, its texts, its media, its audio.

for problem in sample_problems(row, members): ...             # a sample of ours; members: extension -> content
for problem in foreign_problems(row, members, manifest): ...  # a sample of an indexed foreign set
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import av
import av.error
import numpy as np

from pipeline.data.format import SAMPLE_JSON_FIELDS, sample_key
from pipeline.data.frames import DamagedMedia, open_clip_bytes
from preprocess.records import clean_text


def sample_problems(row: Mapping[str, Any], members: Mapping[str, bytes]) -> Iterator[str]:
    """What is wrong with a sample that `preprocess.run` wrote."""
    try:
        facts = json.loads(members["json"])
        text = members["txt"].decode("utf-8")
    except ValueError as error:
        yield f"its json or txt cannot be read: {error}"
        return
    if missing := [name for name in SAMPLE_JSON_FIELDS if name not in facts]:
        yield f"its json lacks {', '.join(missing)}"
        return
    if facts["clip_id"] != row["clip_id"] or sample_key(facts["clip_id"]) != row["key"]:
        yield f"its json speaks of {facts['clip_id']!r}"
    if text != (facts["subtitle"] or ""):
        yield "its txt is not the subtitle of its json"
    yield from _text_lengths(row, facts["subtitle"], facts["caption"])
    media = members[row["media_ext"]]
    if hashlib.sha256(media).hexdigest() != facts["sha256"]:
        yield "its media differs from the hash in its json"
    frames, problem = _decode(media, row["media_ext"])
    if frames is None:
        yield problem
    elif not facts["num_frames"] == row["num_frames"] == len(frames):
        yield f"it has {len(frames)} frames, but {facts['num_frames']} in its json"
    elif frames.shape[1:3] != (facts["height_px"], facts["width_px"]) or frames.dtype != np.uint8:
        yield f"its frames are {frames.shape[2]}x{frames.shape[1]}, not as its json says"
    yield from _audio_problems(members.get("mka"), facts.get("audio_sha256"))


def foreign_problems(
    row: Mapping[str, Any], members: Mapping[str, bytes], subtitle_from: str, caption_from: str
) -> Iterator[str]:
    """What is wrong with a sample of somebody else's tar: its media and the texts that the index counted."""
    frames, problem = _decode(members[row["media_ext"]], row["media_ext"])
    if frames is None:
        yield problem
    elif row["num_frames"] != len(frames):
        yield f"it has {len(frames)} frames, but {row['num_frames']} in its sidecar"
    yield from _text_lengths(row, text_at(members, subtitle_from), text_at(members, caption_from))


def _text_lengths(row: Mapping[str, Any], subtitle: str | None, caption: str | None) -> Iterator[str]:
    if (len(subtitle or ""), len(caption or "")) != (row["subtitle_chars"], row["caption_chars"]):
        yield "its texts have other lengths than the sidecar says"


def text_at(members: Mapping[str, bytes], place: str) -> str | None:
    """The text at `txt` or `json:FIELD`, however its owner wrote it; None where there is none."""
    if place == "txt":
        return clean_text(members.get("txt", b"").decode("utf-8", "replace"))
    if place:
        try:
            facts = json.loads(members.get("json", b"").decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        return clean_text(facts.get(place.removeprefix("json:"))) if isinstance(facts, dict) else None
    return None


def _decode(media: bytes, extension: str) -> tuple[np.ndarray | None, str]:
    """All frames, or why there are none."""
    try:
        clip = open_clip_bytes(media, extension)
        return clip.read(range(clip.num_frames)), ""
    except (DamagedMedia, ValueError) as error:
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
