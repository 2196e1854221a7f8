"""One sample: a run of tar members -> checked media bytes and texts.

    place --read_block--> bytes of [offset, offset + size) --open_block--> members by extension
    -> Sample(key, media, ext, subtitle, caption)

Nothing is believed: every tar header's checksum, the key against the index (a shard that was replaced), and the media's
sha256 (a flipped bit inside a JPEG decodes without any complaint). What fails raises `DamagedSample` with a reason.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.data.format import name_hash
from pipeline.data.frames import IMAGE_EXTENSIONS
from pipeline.data.index import Place
from pipeline.data.storage import DamagedSample, Folder

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "avi", "mov")
_BLOCK = 512
_MAX_NAME_BYTES = 4096


@dataclass(frozen=True)
class Sample:
    """Media bytes and texts; an empty text means that there is none."""

    key: str
    media: bytes
    ext: str
    subtitle: str
    caption: str


def read_block(folder: Folder, place: Place) -> bytes:
    """The tar members of the sample at `place`. Raises DamagedSample; RunError when the file system keeps failing."""
    return folder.read(f"{place.shard}.tar", place.offset, place.size)


def open_block(
    block: bytes, place: Place, *, subtitle_from: str, caption_from: str, verify_media: bool = True
) -> Sample:
    """Check the block that lies at `place` and take it apart. Raises DamagedSample."""
    members: dict[str, bytes] = {}
    for name, content in tar_members(block):
        key, _, ext = name.rpartition("/")[2].partition(".")
        if name_hash(key) != place.key_hash:
            raise DamagedSample("shard_changed", f"found {key!r}")
        members[ext.lower()] = content
    if not members:
        raise DamagedSample("shard_changed", "no file here")
    return _checked(key, members, subtitle_from, caption_from, verify_media)


def _checked(key: str, members: dict[str, bytes], subtitle_from: str, caption_from: str, verify_media: bool) -> Sample:
    ext = next((ext for ext in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS) if ext in members), None)
    if ext is None:
        raise DamagedSample("media_missing", f"members {sorted(members)}")
    facts = _json(members)
    if verify_media and "sha256" in facts and hashlib.sha256(members[ext]).hexdigest() != facts["sha256"]:
        raise DamagedSample("media_changed", "sha256 differs")
    texts = [_text(source, members, facts) for source in (subtitle_from, caption_from)]
    return Sample(key, members[ext], ext, *texts)


def _json(members: dict[str, bytes]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        facts = json.loads(members["json"])
    except ValueError as error:
        raise DamagedSample("json_invalid", str(error)) from None
    if not isinstance(facts, dict):
        raise DamagedSample("json_invalid", f"a {type(facts).__name__}, not an object")
    return facts


def _text(source: str, members: dict[str, bytes], facts: dict[str, Any]) -> str:
    """The text that `source` names: `json:FIELD`, a member's extension such as `txt`, or nothing."""
    if not source:
        return ""
    kind, _, field = source.partition(":")
    if kind not in members:
        raise DamagedSample("text_missing", f"no .{kind} member")
    if kind == "json":
        value = facts.get(field)
        # JSON can spell half of a surrogate pair, which no tokenizer survives.
        return value.encode("utf-8", "replace").decode().strip() if isinstance(value, str) else ""
    return members[kind].decode("utf-8", "replace").strip()


def tar_members(block: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in a run of tar members. Raises DamagedSample("tar_invalid")."""
    place, long_name = 0, ""
    while place + _BLOCK <= len(block):
        header = block[place : place + _BLOCK]
        if not header.strip(b"\0"):
            break
        size, kind = _header_facts(header)
        content = block[place + _BLOCK : place + _BLOCK + size]
        if len(content) < size:
            raise DamagedSample("tar_invalid", "a member reaches beyond its sample")
        if kind == b"L" and size <= _MAX_NAME_BYTES:
            long_name = content.rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":
            long_name = _pax_path(content) or long_name
        elif kind in (b"0", b"\0"):
            yield long_name or _name(header), content
            long_name = ""
        place += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _header_facts(header: bytes) -> tuple[int, bytes]:
    try:
        stated = int(header[148:156].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0"), 8)
    except ValueError:
        raise DamagedSample("tar_invalid", "no tar header here") from None
    # The checksum is taken over the header with its own field as eight spaces.
    if stated != sum(header) - sum(header[148:156]) + 8 * ord(" ") or size < 0:
        raise DamagedSample("tar_invalid", "header checksum differs")
    return size, header[156:157]


def _name(header: bytes) -> str:
    name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
    prefix = header[345:500].rstrip(b"\0").decode("utf-8", "replace") if header[257:262] == b"ustar" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_path(content: bytes) -> str:
    for record in content.split(b"\n"):
        _, _, pair = record.partition(b" ")
        name, _, value = pair.partition(b"=")
        if name == b"path":
            return value.decode("utf-8", "replace")
    return ""
