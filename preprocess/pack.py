"""Writes one shard: samples into a tar, then the failures table, then the sidecar, which alone makes the shard exist.

    with ShardWriter(output, "shards/000012", facts) as writer:
        writer.add(media, video_id, texts)
        writer.fail(failure)
        writer.publish()

The tar's bytes depend on the samples only: fixed owner, mode, time and order of members. A key is an id without dots
(`sample_key`), and the members of a sample lie next to each other.
"""

import contextlib
import hashlib
import json
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.format import FORMAT_VERSION, METADATA_KEY, SIDECAR_COLUMNS, sample_key
from pipeline.errors import InputError
from preprocess.failures import FailureTable
from preprocess.publish import publish, remove_leftovers, sync_file, temporary_path
from preprocess.records import Failure, Media
from preprocess.texts import ClipTexts

_OWNER = "clip_vip"
_MTIME = 0
_FACTS = ("shard", "shard_sha256", "shard_bytes", "num_samples", "num_failures", "config_hash")


@contextmanager
def _without_torch() -> Iterator[None]:
    """webdataset imports torch where it finds it: 5 s and 600 MB per worker that its TarWriter has no use for.

    While this lasts, torch looks absent; afterwards webdataset is forgotten, so that its next import is a whole one.
    """
    if "torch" in sys.modules or "webdataset" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
            del sys.modules[name]


with _without_torch():
    from webdataset.writer import TarWriter


@dataclass(slots=True)
class _HashingFile:
    """A file that keeps the hash and the length of what went through it."""

    stream: BinaryIO
    digest: Any
    num_bytes: int = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.num_bytes += len(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


class ShardWriter:
    """One shard in the making. Nothing is visible before `publish`."""

    def __init__(self, output: Path, shard: str, facts: Mapping[str, Any]) -> None:
        self._shard = shard
        self._facts = facts
        self.tar_path = output / f"{shard}.tar"
        self.sidecar_path = output / f"{shard}.parquet"
        self.failures_path = output / "failures" / f"{Path(shard).name}.parquet"
        for path in (self.tar_path, self.sidecar_path, self.failures_path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, path.name)
        self._temporary = {
            path: temporary_path(path) for path in (self.tar_path, self.sidecar_path, self.failures_path)
        }
        self._rows: list[dict[str, Any]] = []
        self.duration_s = 0.0
        self._failures = FailureTable(self._temporary[self.failures_path], shard)
        self._file = open(self._temporary[self.tar_path], "wb")  # noqa: SIM115 -- closed by publish or __exit__
        self._hashing = _HashingFile(self._file, hashlib.sha256())
        self._tar = TarWriter(
            self._hashing, user=_OWNER, group=_OWNER, mode=0o644, mtime=_MTIME, encoder=False, compress=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._temporary.values():
            path.unlink(missing_ok=True)
        # After an error what is open is closed, and what a full disk does not take is of no more use.
        for close in (self._tar.close, self._file.close, self._failures.close):
            with contextlib.suppress(OSError):
                close()

    @property
    def num_failures(self) -> int:
        return self._failures.num_rows

    def add(self, media: Media, video_id: str, texts: ClipTexts, caption_frame: int | None = None) -> None:
        """Append one sample."""
        clip = media.clip
        description = {
            "clip_id": clip.clip_id,
            "video_id": video_id,
            "start_s": clip.start_s,
            "end_s": clip.end_s if clip.end_s is not None else round(clip.start_s + media.num_frames / media.fps, 6),
            "fps": media.fps,
            "num_frames": media.num_frames,
            "width_px": media.width_px,
            "height_px": media.height_px,
            "subtitle": texts.subtitle,
            "caption": texts.caption,
            "caption_source": texts.caption_source,
            "sha256": hashlib.sha256(media.data).hexdigest(),
            **({"caption_frame": caption_frame} if caption_frame is not None else {}),
            **({"audio_sha256": hashlib.sha256(media.audio).hexdigest()} if media.audio is not None else {}),
        }
        self.duration_s += media.num_frames / media.fps
        key = sample_key(clip.clip_id)
        start = self._tar.tarstream.offset
        self._tar.write(
            {
                "__key__": key,
                "mp4": media.data,
                "json": json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode(),
                "txt": (texts.subtitle or "").encode(),
                **({"mka": media.audio} if media.audio is not None else {}),
            }
        )
        self._rows.append(
            {
                "key": key,
                "clip_id": clip.clip_id,
                "video_id": video_id,
                "offset": start,
                "size": self._tar.tarstream.offset - start,
                "media_ext": "mp4",
                "num_frames": media.num_frames,
                "duration_s": media.num_frames / media.fps,
                "subtitle_chars": len(texts.subtitle or ""),
                "caption_chars": len(texts.caption or ""),
            }
        )

    def note(self, **facts: Any) -> None:
        """Facts about the shard that its sidecar shall hold beside the usual ones."""
        self._facts = {**self._facts, **facts}

    def fail(self, failure: Failure) -> None:
        """Append one row to the failures table."""
        self._failures.add(failure)

    def publish(self) -> None:
        """Make the shard exist: tar, failures, and last of all the sidecar."""
        self.complete()
        for path in (self.tar_path, self.failures_path, self.sidecar_path):
            publish(self._temporary[path], path)

    def sync(self) -> None:
        """Finish all three files and bring them to the disk, so that `publish` has little more to do than rename."""
        self.complete()
        for path in self._temporary.values():
            sync_file(path)

    def complete(self) -> None:
        """Finish all three files under their temporary names."""
        if self._file.closed:
            return
        self._tar.close()
        self._file.close()
        self._failures.close()
        self._locate_members()
        facts = {
            **self._facts,
            "format_version": FORMAT_VERSION,
            "shard": self._shard,
            "shard_sha256": self._hashing.digest.hexdigest(),
            "shard_bytes": self._hashing.num_bytes,
            "num_samples": len(self._rows),
            "num_failures": self._failures.num_rows,
        }
        write_sidecar(self._temporary[self.sidecar_path], self._rows, facts)

    def _locate_members(self) -> None:
        """Read the members' places back from the written tar: long keys have headers of their own."""
        places: dict[str, tuple[int, int]] = {}
        with tarfile.open(self._temporary[self.tar_path], "r:") as tar:
            for member in tar:
                places[member.name] = (member.offset_data, member.size)
        for row in self._rows:
            for column, extension in (("media", row["media_ext"]), ("json", "json"), ("txt", "txt")):
                row[f"{column}_offset"], row[f"{column}_size"] = places[f"{row['key']}.{extension}"]


def write_sidecar(path: Path, rows: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write the row per sample, and the facts about the shard into the schema's metadata."""
    schema = pa.schema(
        [(name, pa.type_for_alias(kind)) for name, kind in SIDECAR_COLUMNS.items()],
        metadata={METADATA_KEY: json.dumps(facts, sort_keys=True).encode()},
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in a sidecar's schema metadata. InputError for what is no sidecar, OSError where it cannot be read."""
    try:
        facts = json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])
        lacking = [name for name in _FACTS if name not in facts]
    except OSError as error:
        if error.errno is not None:
            raise
        # pyarrow's own complaints about the content have no number
        raise _not_a_sidecar(path, str(error)) from None
    except Exception as error:  # whatever damaged bytes make the reader raise
        raise _not_a_sidecar(path, f"{type(error).__name__}: {error}") from None
    if lacking:
        raise _not_a_sidecar(path, f"its metadata lacks {', '.join(lacking)}")
    assert isinstance(facts, dict)
    return facts


def _not_a_sidecar(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path} is damaged, or no sidecar of a shard ({' '.join(problem.split())[:200]}); remove it and run the "
        "command that wrote it again: preprocess.run, or preprocess.index for foreign tars"
    )
