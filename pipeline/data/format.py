"""The contract between `preprocess` (writes) and `pipeline` (reads). Standard library only.

A shard set is a folder:

    config.yaml              the resolved preprocessing config
    manifest.parquet         a row per published shard (MANIFEST_COLUMNS); a running job pins `manifest_hash`
    stats.json               coverage, reasons, hours, bytes
    shards/000012.tar        about 1,000 samples
    shards/000012.parquet    its sidecar: a row per sample (SIDECAR_COLUMNS). A tar without a sidecar does not exist.
    failures/000012.parquet  a row per clip that was not delivered (FAILURE_COLUMNS)

A sample is a run of adjacent members `{key}.mp4` (or `{key}.jpg`), `{key}.json`, `{key}.txt`. They are adjacent, so
that one read of [offset, offset + size) brings the whole sample. Parquet files carry `FORMAT_VERSION` and their own
facts in the schema metadata under METADATA_KEY, as JSON.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from enum import StrEnum

FORMAT_VERSION = 1
METADATA_KEY = b"clip_vip"

SIDECAR_COLUMNS = {
    "key": "string",
    "clip_id": "string",
    "video_id": "string",
    "offset": "int64",  # of the sample's first tar header
    "size": "int64",  # bytes from `offset` to the end of the sample's last padded member
    "media_ext": "string",  # mp4 | jpg | ...
    "media_offset": "int64",  # of the member's content in the tar
    "media_size": "int64",
    "json_offset": "int64",  # -1 where a foreign set has no such member
    "json_size": "int64",
    "txt_offset": "int64",
    "txt_size": "int64",
    "num_frames": "int32",
    "duration_s": "float32",
    "subtitle_chars": "int32",  # 0: no subtitle
    "caption_chars": "int32",  # 0: no caption
}
"""A row per sample, in tar order.

Schema metadata: format_version, shard, shard_sha256, shard_bytes, num_samples, config_hash, versions."""

MANIFEST_COLUMNS = {
    "shard": "string",  # path below the set, without suffix: shards/000012
    "num_samples": "int64",
    "num_failures": "int64",
    "shard_bytes": "int64",
    "shard_sha256": "string",
    "sidecar_sha256": "string",
    "duration_s": "float64",
    "num_subtitles": "int64",
    "num_captions": "int64",
}
"""A row per published shard, sorted by `shard`.

Schema metadata: format_version, manifest_hash, num_samples, subtitle_from, caption_from."""

FAILURE_COLUMNS = {
    "clip_id": "string",
    "video_id": "string",
    "shard": "string",
    "reason": "string",  # a Reason
    "detail": "string",  # one line
}

SAMPLE_JSON_FIELDS = (
    "clip_id",
    "video_id",
    "start_s",
    "end_s",
    "fps",
    "num_frames",
    "width_px",
    "height_px",
    "subtitle",  # str or null
    "caption",  # str or null
    "caption_source",  # str or null
    "sha256",  # of the media member
)
"""In every sample of ours. Where there is one: `caption_frame`, the frame that a generated caption describes, and
`audio_sha256`, of the member `{key}.mka`."""

DEFAULT_SUBTITLE_FROM = "json:subtitle"
DEFAULT_CAPTION_FROM = "json:caption"
"""Where a text of a sample lies: `json:FIELD`, `txt`, or empty for nowhere. Foreign sets name their own."""

VIDEO_EXTENSIONS = (
    *("mp4", "mkv", "webm", "avi", "mov", "m4v", "flv", "mpg", "mpeg", "3gp", "wmv"),
    *("ts", "mts", "m2ts", "ogv", "3g2", "asf"),
)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Extensions of media, in order of preference where a sample or a folder has several: the one list of each."""


class Reason(StrEnum):
    """Why a clip was not delivered."""

    VIDEO_MISSING = "video_missing"
    VIDEO_UNREADABLE = "video_unreadable"
    NO_VIDEO_STREAM = "no_video_stream"
    SPAN_INVALID = "span_invalid"
    SPAN_BEYOND_END = "span_beyond_end"
    NO_FRAMES = "no_frames"
    NO_TEXT = "no_text"
    METADATA_INVALID = "metadata_invalid"
    CLIP_ID_INVALID = "clip_id_invalid"
    DUPLICATE_CLIP = "duplicate_clip"
    EXCLUDED = "excluded"
    TOO_LARGE = "too_large"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    FORBIDDEN_FORMAT = "forbidden_format"
    CAPTION_FAILED = "caption_failed"


def unicode_forms(text: str) -> tuple[str, ...]:
    """`text` as it is, composed (NFC) and decomposed (NFD), each once: macOS hands out file names decomposed, most
    lists hold them composed, and both mean the same name.

    >>> [len(form) for form in unicode_forms("caf\u00e9")], unicode_forms("plain")
    ([4, 5], ('plain',))
    """
    if text.isascii():
        return (text,)
    return tuple(dict.fromkeys((text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))))


_PLAIN = re.compile(r"[A-Za-z0-9_-]")
MAX_KEY_CHARS = 120


def sample_key(clip_id: str) -> str:
    """The dotless tar key of a clip id: the tar convention splits a member's name at its *first* dot.

    A trailing `.mp4` is dropped, `.` becomes `+`, and every other byte outside [A-Za-z0-9_-] becomes `=XX`. Apart from
    the suffix the mapping is one to one; a key over MAX_KEY_CHARS is cut and closed with a hash of the whole id.

    >>> sample_key("QMi8x8o55Ns.1.mp4"), sample_key("-a_b.12.mp4"), sample_key("../x")
    ('QMi8x8o55Ns+1', '-a_b+12', '++=2Fx')
    """
    stem = clip_id.removesuffix(".mp4")
    key = "".join(
        char
        if _PLAIN.match(char)
        else "+"
        if char == "."
        else "".join(f"={byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in stem
    )
    if len(key) > MAX_KEY_CHARS:
        digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:20]
        key = f"{key[: MAX_KEY_CHARS - 21]}~{digest}"
    return key


def name_hash(name: str) -> int:
    """64 bits of a key or a video id, as the index stores them."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def manifest_hash(shards: Iterable[tuple[str, str, str]]) -> str:
    """16 hex digits over the sorted (shard, shard_sha256, sidecar_sha256) of a set: what a run pins."""
    digest = hashlib.sha256(f"clip_vip {FORMAT_VERSION}\n".encode())
    for row in sorted(shards):
        digest.update(("\t".join(row) + "\n").encode())
    return digest.hexdigest()[:16]
