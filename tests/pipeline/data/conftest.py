"""Shard sets written by hand: tarfile, PyAV and pyarrow, no code shared with what is tested.

Frame i of clip c is one flat colour: red tells the clip (40 + 8 * (c % 25)), green tells the frame (20 + 5 * i). Texts
spell the clip's number.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.format import MANIFEST_COLUMNS, SIDECAR_COLUMNS, manifest_hash

SIZE_PX = 32


def colour_of(clip: int, frame: int) -> tuple[int, int, int]:
    return 40 + 8 * (clip % 25), 20 + 5 * frame, 128


@lru_cache(maxsize=512)
def encode_clip(clip: int, num_frames: int, codec: str = "mjpeg", size_px: int = SIZE_PX) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=3)
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"qmin": "2", "qmax": "2"} if codec == "mjpeg" else {"crf": "8"}
        for number in range(num_frames):
            pixels = np.empty((size_px, size_px, 3), np.uint8)
            pixels[:] = colour_of(clip, number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@dataclass
class Clip:
    """What the test wants in the set."""

    number: int
    num_frames: int = 15
    subtitle: str | None = "said"
    caption: str | None = "seen"
    video: int = 0
    codec: str = "mjpeg"

    @property
    def key(self) -> str:
        return f"v{self.video}+{self.number}"


@dataclass
class ShardSet:
    """A written set and what is in it, in manifest order."""

    folder: Path
    shards: list[list[Clip]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    caption_from: str = "json:caption"

    @property
    def clips(self) -> list[Clip]:
        return [clip for shard in self.shards for clip in shard]

    @property
    def keys(self) -> list[str]:
        return [clip.key for clip in self.clips]

    def tar(self, shard: int) -> Path:
        return self.folder / f"shards/{shard:06d}.tar"

    def members(self, shard: int) -> list[dict[str, Any]]:
        return pq.read_table(self.tar(shard).with_suffix(".parquet")).to_pylist()

    def add_shard(self, clips: list[Clip], media: Callable[[Clip], tuple[str, bytes]] | None = None) -> None:
        """Write a shard behind the others, and the manifest anew."""
        name = f"shards/{len(self.shards):06d}"
        tar = self.folder / f"{name}.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
            for clip in clips:
                rows.append(_add_sample(archive, clip, media or _video))
        columns = {name: [row[name] for row in rows] for name in SIDECAR_COLUMNS}
        facts = {"format_version": 1, "shard": name, "num_samples": len(rows)}
        sidecar = self.folder / f"{name}.parquet"
        _write_parquet(sidecar, columns, SIDECAR_COLUMNS, facts)
        self.shards.append(clips)
        self.rows.append(
            {
                "shard": name,
                "num_samples": len(rows),
                "num_failures": 0,
                "shard_bytes": tar.stat().st_size,
                "shard_sha256": hashlib.sha256(tar.read_bytes()).hexdigest(),
                "sidecar_sha256": hashlib.sha256(sidecar.read_bytes()).hexdigest(),
                "duration_s": 5.0 * len(rows),
                "num_subtitles": sum(clip.subtitle is not None for clip in clips),
                "num_captions": sum(clip.caption is not None for clip in clips),
            }
        )
        self.write_manifest()

    def write_manifest(self) -> None:
        columns = {name: [row[name] for row in self.rows] for name in MANIFEST_COLUMNS}
        facts = {
            "format_version": 1,
            "manifest_hash": manifest_hash(
                [(row["shard"], row["shard_sha256"], row["sidecar_sha256"]) for row in self.rows]
            ),
            "num_samples": len(self.clips),
            "subtitle_from": "json:subtitle",
            "caption_from": self.caption_from,
        }
        _write_parquet(self.folder / "manifest.parquet", columns, MANIFEST_COLUMNS, facts)


def _video(clip: Clip) -> tuple[str, bytes]:
    return "mp4", encode_clip(clip.number, clip.num_frames, clip.codec)


def _add_sample(archive: tarfile.TarFile, clip: Clip, media: Callable[[Clip], tuple[str, bytes]]) -> dict[str, Any]:
    ext, content = media(clip)
    subtitle = f"{clip.subtitle} {clip.number}" if clip.subtitle else None
    caption = f"{clip.caption} {clip.number}" if clip.caption else None
    facts = {
        "clip_id": f"v{clip.video}.{clip.number}.mp4",
        "video_id": f"v{clip.video}",
        "subtitle": subtitle,
        "caption": caption,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    contents = {ext: content, "json": json.dumps(facts).encode(), "txt": (subtitle or "").encode()}
    row: dict[str, Any] = {
        "key": clip.key,
        "clip_id": facts["clip_id"],
        "video_id": facts["video_id"],
        "offset": archive.offset,
        "media_ext": ext,
        "num_frames": clip.num_frames,
        "duration_s": clip.num_frames / 3,
        "subtitle_chars": len(subtitle or ""),
        "caption_chars": len(caption or ""),
    }
    for kind, data in contents.items():
        info = tarfile.TarInfo(f"{clip.key}.{kind}")
        info.size = len(data)
        role = "media" if kind == ext else kind
        row[f"{role}_offset"], row[f"{role}_size"] = archive.offset + 512, len(data)
        archive.addfile(info, io.BytesIO(data))
    row["size"] = archive.offset - row["offset"]
    return row


def _write_parquet(path: Path, columns: dict[str, Any], types: dict[str, str], facts: dict[str, Any]) -> None:
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    table = pa.table(columns, schema=schema.with_metadata({b"clip_vip": json.dumps(facts).encode()}))
    pq.write_table(table, path)


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., ShardSet]:
    """make_set(sizes=[5, 3], name="set", **clip fields): shards of these sizes, clips numbered through."""

    def make(sizes: list[int], name: str = "set", videos: int = 4, **fields: Any) -> ShardSet:
        written = ShardSet(tmp_path / name)
        number = 0
        for size in sizes:
            clips = [Clip(number + i, video=(number + i) % videos, **fields) for i in range(size)]
            written.add_shard(clips)
            number += size
        return written

    return make
