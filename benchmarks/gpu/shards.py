"""Shards of Motion JPEG clips without ffmpeg and PyAV: smooth noise, 224 px, 40 frames, texts of everyday length.

write_shards(folder, num_clips=512, size_px=224)

pictures -> JPEG -> an MP4 box by box -> tar -> sidecar -> manifest
"""

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

from pipeline.data.format import FORMAT_VERSION, MANIFEST_COLUMNS, METADATA_KEY, SIDECAR_COLUMNS, manifest_hash

FRAMES, FPS, CLIPS_PER_SHARD, PICTURES = 40, 3, 128, 64
QUALITY = 82
"""About 10 KB a picture at 224 px, what film takes at ffmpeg's q 3 to 5."""
SAID = "so what we are going to do now is put this part over there and then we wait until it has cooled down a bit"
SEEN = "a person in a kitchen holds a pan over a stove"


def write_shards(folder: Path, *, num_clips: int, size_px: int) -> None:
    """A set of `num_clips` clips in `folder`, the same bytes every time."""
    draw = np.random.default_rng(0)
    pictures = [picture(draw, size_px) for _ in range(PICTURES)]
    (folder / "shards").mkdir(parents=True)
    rows = []
    for number, first in enumerate(range(0, num_clips, CLIPS_PER_SHARD)):
        clips = range(first, min(first + CLIPS_PER_SHARD, num_clips))
        rows.append(_write_shard(folder, f"shards/{number:06d}", clips, pictures, draw, size_px))
    facts = {
        "manifest_hash": manifest_hash((row["shard"], row["shard_sha256"], row["sidecar_sha256"]) for row in rows),
        "num_samples": num_clips,
        "subtitle_from": "json:subtitle",
        "caption_from": "json:caption",
    }
    _write_parquet(folder / "manifest.parquet", rows, MANIFEST_COLUMNS, facts)


def picture(draw: np.random.Generator, size_px: int) -> bytes:
    """Noise at three scales, as a JPEG."""
    pixels = np.zeros((size_px, size_px, 3), np.float32)
    for cells, weight in ((size_px // 32, 70), (size_px // 8, 25), (size_px // 2, 8)):
        coarse: NDArray[Any] = draw.standard_normal((max(cells, 1), max(cells, 1), 3)).astype(np.float32)
        factor = -(-size_px // len(coarse))
        pixels += weight * np.kron(coarse, np.ones((factor, factor, 1), np.float32))[:size_px, :size_px]
    levels = np.ascontiguousarray((pixels + 128).clip(0, 255).astype(np.uint8))
    encoded: bytes = simplejpeg.encode_jpeg(levels, quality=QUALITY, colorsubsampling="420")
    return encoded


def _write_shard(
    folder: Path, name: str, clips: range, pictures: list[bytes], draw: np.random.Generator, size_px: int
) -> dict[str, Any]:
    samples: list[dict[str, Any]] = []
    tar = folder / f"{name}.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for clip in clips:
            frames = [pictures[place] for place in draw.integers(0, len(pictures), FRAMES)]
            samples.append(_add_sample(archive, clip, motion_jpeg(frames, size_px), draw))
    sidecar = tar.with_suffix(".parquet")
    facts = {
        "shard": name,
        "num_samples": len(samples),
        "shard_bytes": tar.stat().st_size,
        "shard_sha256": hashlib.sha256(tar.read_bytes()).hexdigest(),
    }
    _write_parquet(sidecar, samples, SIDECAR_COLUMNS, facts | {"config_hash": "benchmark", "versions": {}})
    return facts | {
        "num_failures": 0,
        "sidecar_sha256": hashlib.sha256(sidecar.read_bytes()).hexdigest(),
        "duration_s": len(samples) * FRAMES / FPS,
        "num_subtitles": len(samples),
        "num_captions": len(samples),
    }


def _add_sample(archive: tarfile.TarFile, clip: int, media: bytes, draw: np.random.Generator) -> dict[str, Any]:
    """Every tenth subtitle is longer than 70 tokens, so that most batches reach the full length."""
    words = SAID.split()
    subtitle = " ".join(draw.choice(words, 90 if clip % 10 == 0 else int(draw.integers(8, 50))))
    caption = f"{SEEN} {clip}"
    key, clip_id = f"v{clip // 30}+{clip}", f"v{clip // 30}.{clip}.mp4"
    facts = {"clip_id": clip_id, "video_id": f"v{clip // 30}", "subtitle": subtitle, "caption": caption}
    facts["sha256"] = hashlib.sha256(media).hexdigest()
    row: dict[str, Any] = {
        "key": key,
        "clip_id": clip_id,
        "video_id": facts["video_id"],
        "offset": archive.offset,
        "media_ext": "mp4",
        "num_frames": FRAMES,
        "duration_s": FRAMES / FPS,
        "subtitle_chars": len(subtitle),
        "caption_chars": len(caption),
    }
    members = {"media": ("mp4", media), "json": ("json", json.dumps(facts).encode()), "txt": ("txt", subtitle.encode())}
    for role, (ext, content) in members.items():
        info = tarfile.TarInfo(f"{key}.{ext}")
        info.size = len(content)
        row |= {f"{role}_offset": archive.offset + 512, f"{role}_size": len(content)}
        archive.addfile(info, io.BytesIO(content))
    return row | {"size": archive.offset - row["offset"]}


def _write_parquet(path: Path, rows: list[dict[str, Any]], types: dict[str, str], facts: dict[str, Any]) -> None:
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    metadata = {METADATA_KEY: json.dumps({"format_version": FORMAT_VERSION} | facts).encode()}
    columns = {name: [row[name] for row in rows] for name in types}
    pq.write_table(pa.table(columns, schema=schema.with_metadata(metadata)), path)


def motion_jpeg(frames: list[bytes], size_px: int) -> bytes:
    """An MP4 with one track of JPEG pictures, FPS a second (ISO/IEC 14496-12; the sample entry is QuickTime's)."""
    kind = _box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2mp41")
    data = _box(b"mdat", b"".join(frames))
    duration = len(frames)
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    entry = struct.pack(">6xH16xHH", 1, size_px, size_px) + struct.pack(">IIIH", 0x480000, 0x480000, 0, 1)
    entry += bytes(32) + struct.pack(">Hh", 24, -1)
    tables = _full(b"stsd", struct.pack(">I", 1) + _box(b"jpeg", entry))
    tables += _full(b"stts", struct.pack(">3I", 1, len(frames), 1))
    tables += _full(b"stsc", struct.pack(">4I", 1, 1, len(frames), 1))
    tables += _full(b"stsz", struct.pack(f">{2 + len(frames)}I", 0, len(frames), *map(len, frames)))
    tables += _full(b"stco", struct.pack(">2I", 1, len(kind) + 8))
    handler = _full(b"hdlr", struct.pack(">4x4s12x", b"vide") + b"video\0")
    place = _box(b"dinf", _full(b"dref", struct.pack(">I", 1) + _full(b"url ", b"", flags=1)))
    information = _box(b"minf", _full(b"vmhd", bytes(8), flags=1) + place + _box(b"stbl", tables))
    media = _full(b"mdhd", struct.pack(">4IHH", 0, 0, FPS, duration, 0x55C4, 0)) + handler + information
    head = struct.pack(">5I", 0, 0, 1, 0, duration) + bytes(16) + matrix + struct.pack(">II", *(size_px << 16,) * 2)
    track = _box(b"trak", _full(b"tkhd", head, flags=3) + _box(b"mdia", media))
    movie = struct.pack(">4IIH10x", 0, 0, FPS, duration, 0x10000, 0x100) + matrix + bytes(24) + struct.pack(">I", 2)
    return kind + data + _box(b"moov", _full(b"mvhd", movie) + track)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _full(kind: bytes, content: bytes, flags: int = 0) -> bytes:
    """A box with version 0 and flags."""
    return _box(kind, struct.pack(">I", flags) + content)
