"""One foreign tar: its samples, what is not usable, and what is skipped, each read as training will read it.

    reader = ForeignTar(path, "shards/00000", caption_from="txt", subtitle_from="")
    for item in reader: ...                  # a sidecar row, or a Failure
    reader.skipped.counts                # {"symbolic or hard links": 2, ...}

A sample is a run of members with one key (`split_name`); members that are skipped may lie between them. It counts
if `open_block` opens it and its media has frames. A damaged tar is a Failure, and what lies in front of the damage is
used. A file system that fails is a `RunError`: that is no fault of the tar.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.data.format import Reason, name_hash
from pipeline.data.frames import open_clip_bytes
from pipeline.data.index import MAX_SAMPLE_BYTES, Place
from pipeline.data.sample import Sample, bad_where_it_fails, media_extension, open_block
from pipeline.data.storage import DamagedSample
from pipeline.data.tar import TarDamage, TarMember, TarWalk, split_name
from pipeline.errors import RunError
from preprocess.records import Failure, printable

_REASONS = {
    "media_missing": Reason.NO_VIDEO_STREAM,
    "json_invalid": Reason.METADATA_INVALID,
    "text_invalid": Reason.METADATA_INVALID,
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_ROW_BYTES = 1 << 20


@dataclass
class Skipped:
    """What no sample is made of, by kind, with an example of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, printable(example, 200))

    def update(self, other: "Skipped") -> None:
        """Count what another one counted."""
        self.counts.update(other.counts)
        self.examples = other.examples | self.examples

    def facts(self) -> dict[str, dict[str, Any]]:
        """kind -> {"count", "example"}, the most frequent first."""
        return {kind: {"count": count, "example": self.examples[kind]} for kind, count in self.counts.most_common()}


@dataclass(slots=True)
class Run:
    """Adjacent members with one key: extension -> (content offset, size)."""

    key: str
    offset: int
    end: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    has_twin: bool = False
    """The key came before in this tar."""


class ForeignTar:
    """The rows and failures of one tar. To be iterated once; `skipped` is whole afterwards."""

    def __init__(self, path: Path, shard: str, *, caption_from: str, subtitle_from: str) -> None:
        self.path = path
        self.skipped = Skipped()
        self._shard = shard
        self._caption_from, self._subtitle_from = caption_from, subtitle_from
        self._extensions_of: dict[str, list[str]] = {}
        """Of every key that came before."""

    def __iter__(self) -> Iterator[dict[str, Any] | Failure]:
        with file_system_errors_named(self.path), open(self.path, "rb") as stream:
            length = self.path.stat().st_size
            if length == 0:
                yield self._damage("is empty")
                return
            if named := next((name for magic, name in _COMPRESSED.items() if _starts_with(stream, magic)), None):
                yield self._damage(f"is compressed ({named}); samples are read by offset, so decompress it")
                return
            for run in self._runs(stream, length):
                yield run if isinstance(run, Failure) else self._described(run, stream)

    def _runs(self, stream: BinaryIO, length: int) -> Iterator[Run | Failure]:
        """Every run in tar order; then what is wrong with the tar, if anything is."""
        walk = TarWalk(lambda offset, size: _read(stream, offset, size), length)
        current: Run | None = None
        try:
            for member in walk:
                named = self._key_of(member)
                if named is None:
                    continue
                key, extension = named
                if current is None or key != current.key or extension in current.places:
                    if current is not None:
                        yield current
                    current = Run(key, member.offset, has_twin=key in self._extensions_of)
                current.places[extension] = (member.data_offset, member.size)
                current.end = member.end
                self._extensions_of.setdefault(key, []).append(extension)
        except TarDamage as damage:
            cut = split_name(damage.member)
            if current is not None and (cut is None or cut[0] != current.key):
                yield current
            after = f"after {len(self._extensions_of)} samples"
            yield self._damage(f"is damaged or cut short {after}: {damage}", cut[0] if cut else "")
            return
        is_cut = current is not None and current.end > length  # in the padding of its last member
        if current is not None and not is_cut:
            yield current
        if walk.end is None:
            where = f"after {len(self._extensions_of)} samples: it has no end-of-archive marker"
            yield self._damage(f"is cut short {where}", current.key if current is not None and is_cut else "")
        elif _holds_anything(stream, walk.end, length):
            kind = "bytes behind the end of a tar (two tars in one file?)"
            self.skipped.add(kind, f"{self.path.name} from byte {walk.end}")

    def _key_of(self, member: TarMember) -> tuple[str, str] | None:
        """Key and extension of a member that is part of a sample; another one is counted, folders apart."""
        named = split_name(member.name)
        if member.kind == "file" and named is not None:
            return named
        base = member.name.rpartition("/")[2]
        kinds = {
            "link": "symbolic or hard links",
            "sparse": "sparse members (write the tar without --sparse)",
            "other": "devices, pipes and other special members",
        }
        if member.kind == "file":
            if base.startswith("._"):
                kind = "AppleDouble members (._*)"
            else:
                kind = "names without a stem" if base.startswith(".") else "names without an extension"
            self.skipped.add(kind, f"{self.path.name}: {member.name}")
        elif member.kind != "folder":
            self.skipped.add(kinds[member.kind], f"{self.path.name}: {member.name}")
        return None

    def _described(self, run: Run, stream: BinaryIO) -> dict[str, Any] | Failure:
        """The sidecar row of a run, or why it has none."""
        if run.has_twin:
            return Failure(run.key, "", Reason.DUPLICATE_CLIP, self._twin(run))
        size = run.end - run.offset
        if size > MAX_SAMPLE_BYTES:
            return Failure(run.key, "", Reason.TOO_LARGE, f"{size} bytes, more than {MAX_SAMPLE_BYTES}")
        place = Place(0, self._shard, run.offset, size, name_hash(run.key))
        try:
            sample = open_block(
                _read(stream, run.offset, size),
                place,
                subtitle_from=self._subtitle_from,
                caption_from=self._caption_from,
            )
            with bad_where_it_fails("media_undecodable"):
                num_frames = open_clip_bytes(sample.media, sample.ext).num_frames
        except DamagedSample as error:
            reason = _REASONS.get(error.reason, Reason.VIDEO_UNREADABLE)
            return Failure(run.key, "", reason, self._why_not(run, str(error)))
        return sidecar_row(run, sample, num_frames)

    def _why_not(self, run: Run, problem: str) -> str:
        """A sample that has media by another name, or members elsewhere, is told of it."""
        if media_extension(run.places) is None:
            last_words = {name.rpartition(".")[2] for name in run.places if "." in name}
            if media_extension(last_words):
                return f"{problem}: a name is split at its first dot, so take the other dots out of the names"
        return problem

    def _twin(self, run: Run) -> str:
        """What a second run of a key says: the sample twice, or one sample in two places."""
        earlier = self._extensions_of[run.key]
        if set(run.places) & set(earlier[: -len(run.places)]):
            return f"a key that came before in {self.path.name}"
        return (
            f"a key that came before in {self.path.name}: its members lie apart; write the tar again in the order of "
            "names (tar --sort=name)"
        )

    def _damage(self, problem: str, key: str = "") -> Failure:
        return Failure(key, "", Reason.VIDEO_UNREADABLE, f"{self.path.name} {problem}")


def sidecar_row(run: Run, sample: Sample, num_frames: int) -> dict[str, Any]:
    """The row of one usable sample."""
    facts = sample.facts
    places = {"media": run.places[sample.ext], **{name: run.places.get(name, (-1, 0)) for name in ("json", "txt")}}
    return {
        "key": sample.key,
        "clip_id": printable(str(facts.get("clip_id") or facts.get("key") or sample.key)),
        "video_id": printable(str(facts.get("video_id") or facts.get("videoID") or "")),
        "offset": run.offset,
        "size": run.end - run.offset,
        "media_ext": sample.ext,
        **{f"{name}_offset": place[0] for name, place in places.items()},
        **{f"{name}_size": place[1] for name, place in places.items()},
        "num_frames": num_frames,
        "duration_s": _duration_s(facts),
        "subtitle_chars": len(sample.subtitle),
        "caption_chars": len(sample.caption),
    }


@contextmanager
def file_system_errors_named(path: Path) -> Iterator[None]:
    """An error of the file system is no fault of the tar: it ends the command, and names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; mend that and run the same command again") from None


def _duration_s(facts: Mapping[str, Any]) -> float:
    try:
        duration_s = float(facts["end_s"]) - float(facts["start_s"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0
    return duration_s if math.isfinite(duration_s) else 0.0


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _starts_with(stream: BinaryIO, magic: bytes) -> bool:
    return _read(stream, 0, len(magic)) == magic


def _holds_anything(stream: BinaryIO, start: int, length: int) -> bool:
    """Whether any byte from `start` on is not 0."""
    return any(_read(stream, place, _ROW_BYTES).strip(b"\0") for place in range(start, length, _ROW_BYTES))
