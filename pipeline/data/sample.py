"""One sample: a run of tar members -> checked media bytes and texts.

    place --read_block--> bytes of [offset, offset + size) --open_block--> members by extension
    -> Sample(key, media, ext, subtitle, caption)
    -> frames, inside `with bad_where_it_fails("media_undecodable")`

Nothing is believed: every tar header's checksum, the key against the index (a shard that was replaced), and the media's
sha256 (a flipped bit inside a JPEG decodes without any complaint). What fails raises `DamagedSample` with a reason.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.format import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, name_hash
from pipeline.data.index import Place
from pipeline.data.storage import DamagedSample, Folder
from pipeline.data.tar import TarDamage, TarWalk, key_in_old_sidecars, split_name
from pipeline.data.texts import json_object, text_at
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Sample:
    """Media bytes and texts; an empty text means that there is none."""

    key: str
    media: bytes
    ext: str
    subtitle: str
    caption: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The JSON member; empty where there is none."""


def read_block(folder: Folder, place: Place) -> bytes:
    """The tar members of the sample at `place`. Raises DamagedSample; RunError when the file system keeps failing."""
    return folder.read(f"{place.shard}.tar", place.offset, place.size)


def open_block(
    block: bytes, place: Place, *, subtitle_from: str, caption_from: str, verify_media: bool = True
) -> Sample:
    """Check the block that lies at `place` and take it apart. Raises DamagedSample, whatever the bytes are."""
    key, members = members_of(block, place.key_hash)
    ext = media_extension(members)
    if ext is None:
        raise DamagedSample("media_missing", f"members {sorted(members)[:10]}, none is media")
    facts: dict[str, Any] = {}
    if "json" in members:
        with bad_where_it_fails("json_invalid"):
            facts = json_object(members["json"])
    if verify_media and _states_hash(facts) and hashlib.sha256(members[ext]).hexdigest() != facts["sha256"]:
        raise DamagedSample("media_changed", "sha256 differs")
    with bad_where_it_fails("text_invalid"):
        subtitle, caption = (text_at(source, members, facts) for source in (subtitle_from, caption_from))
    return Sample(key, members[ext], ext, subtitle, caption, facts)


def members_of(block: bytes, key_hash: int) -> tuple[str, dict[str, bytes]]:
    """The key of the one sample in a block, and its members by extension. Raises DamagedSample."""
    members: dict[str, bytes] = {}
    key = ""
    for name, content in tar_members(block):
        named = split_name(name)
        if named is None:
            continue
        if named[0] != key and name_hash(named[0]) != key_hash and name_hash(key_in_old_sidecars(name)) != key_hash:
            raise DamagedSample("shard_changed", f"found {named[0]!r}")
        key = named[0]
        members[named[1]] = content
    if not members:
        raise DamagedSample("shard_changed", "no file here")
    return key, members


def media_extension(extensions: Collection[str]) -> str | None:
    """Which member of a sample is its media: a video before an image; None where neither is there."""
    return next((ext for ext in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS) if ext in extensions), None)


@contextmanager
def bad_where_it_fails(reason: str) -> Iterator[None]:
    """Around a parser of foreign bytes: whatever it raises makes the sample bad, and never ends the run.

    A lack of memory and our own errors pass: they are no fault of the bytes.
    """
    try:
        yield
    except (DamagedSample, PipelineError, MemoryError):
        raise
    except Exception as error:
        named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise DamagedSample(reason, f"{named}{error}") from None


def tar_members(block: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in a run of tar members. Raises DamagedSample("tar_invalid")."""
    walk = TarWalk(lambda offset, size: block[offset : offset + size], len(block))
    try:
        for member in walk:
            if member.kind == "file":
                yield member.name, block[member.data_offset : member.data_offset + member.size]
    except TarDamage as damage:
        raise DamagedSample("tar_invalid", str(damage)) from None


def _states_hash(facts: Mapping[str, Any]) -> bool:
    """Whether `sha256` is our hash of the media. img2dataset's is that of the picture before it was scaled."""
    return "clip_id" in facts and isinstance(facts.get("sha256"), str)
