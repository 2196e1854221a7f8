"""Damaged and hostile inputs through the whole job: no crash, no hang, every clip accounted for once."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.format import Reason
from preprocess.audit import audit_set, audit_shard
from preprocess.config import PreprocessConfig
from preprocess.published import published_shards
from preprocess.run import run

Damage = Callable[[random.Random, bytes], bytes]
Painter = Callable[..., Path]
Mixer = Callable[[Path, Path], Path]


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def bits_flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 10, 200])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_garbled(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(8):
        changed[rng.randrange(min(600, len(changed)))] = rng.randrange(256)
    return bytes(changed)


def index_garbled(rng: random.Random, data: bytes) -> bytes:
    start = data.find(b"moov") if b"moov" in data else len(data) // 2
    changed = bytearray(data)
    for _ in range(12):
        changed[rng.randrange(start, len(changed))] = rng.choice([0, 1, 127, 128, 255])
    return bytes(changed)


def hole(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(4000, len(data) - start)) + data[start + 4000 :]


def doubled(rng: random.Random, data: bytes) -> bytes:
    cut = rng.randrange(len(data))
    return data[:cut] + data


def noise(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([0, 32, 64])] + rng.randbytes(5000)


def playlist(rng: random.Random, data: bytes) -> bytes:
    target = rng.choice(["secret.mp4", "file:secret.mp4", "/etc/passwd", "http://127.0.0.1:1/x", "concat:secret.mp4"])
    return rng.choice(
        [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{target}'\n",
            f"[Script Info]\n{target}\n",
            f"1\n00:00:00,000 --> 00:00:09,000\n{target}\n",
            f"<?xml version='1.0'?><MPD><BaseURL>{target}</BaseURL></MPD>",
            f"RIFF....AVI {target}",
        ]
    ).encode()


DAMAGES: list[Damage] = [
    truncated, bits_flipped, header_garbled, index_garbled, hole, doubled, noise, playlist,
]  # fmt: skip
CLIP_IDS = [
    "{v}.{k}.mp4",
    "../{v}/{k}",
    "-{v}.{k}",
    "{v}\n{k}",
    "{v}/{k}",
    "{v}." + "x" * 300 + ".{k}",
    "{v}\u202e.{k}.mp4",
]


def write_inputs(folder: Path, sources: list[Path], num_inputs: int) -> int:
    """Damaged videos with two clips each; returns the number of clips."""
    rng = random.Random(5)
    contents = [(source.read_bytes(), source.suffix) for source in sources]
    with open(folder / "hdvila_part0.jsonl", "w") as stream:
        for number in range(num_inputs):
            data, suffix = contents[number % len(contents)]
            damage = DAMAGES[number // len(contents) % len(DAMAGES)]
            wrong = rng.random() < 0.2
            video_id = f"v{number:03d}"
            path = folder / "videos" / (video_id + (rng.choice([".mp4", ".mkv", ".avi"]) if wrong else suffix))
            path.write_bytes(damage(rng, data) if number else b"")
            form = CLIP_IDS[number % len(CLIP_IDS)]
            clips = [
                {"clip_id": form.format(v=video_id, k=k), "span": [k * 0.4, k * 0.4 + rng.choice([0.3, 1.0])]}
                for k in range(2)
            ]
            stream.write(json.dumps({"video_id": video_id, "clip": clips}) + "\n")
    return 2 * num_inputs


def fuzz(folder: Path, painted: Painter, add_sound: Mixer, num_inputs: int, **clips: Any) -> dict[str, Any]:
    (folder / "videos").mkdir()
    secret = np.full((48, 64, 3), 255, np.uint8)
    painted(folder / "videos" / "secret.mp4", num_frames=75, draw=lambda *_: secret)
    sources = [
        painted(folder / "a.mp4", num_frames=40, options={"bf": "2"}),
        painted(folder / "b.mkv", num_frames=40),
        painted(folder / "c.ts", num_frames=40),
        painted(folder / "d.avi", num_frames=40, codec="mpeg4"),
    ]
    if clips.get("audio"):
        sources = [add_sound(source, folder / f"sound_{source.name}") for source in sources[:3]]
    num_clips = write_inputs(folder, sources, num_inputs)
    values = {
        "output": str(folder / "out"),
        "workers": 2,
        "metadata": {"files": [str(folder / "hdvila_part0.jsonl")]},
        "videos": {
            "templates": [str(folder / "videos" / "{video_id}.{ext}")],
            "extensions": ["mp4", "mkv", "ts", "avi"],
        },
        "clips": {"fps": 5, "size_px": 32, **clips},
        "shards": {"clips_per_shard": 64},
        "limits": {"time_s": 20, "memory_mb": 2048},
    }
    stats = run(PreprocessConfig.model_validate(values))
    output = folder / "out"
    assert stats["num_clips"] == num_clips == stats["num_delivered"] + stats["num_failed"]
    assert set(stats["reasons"]) <= set(Reason)
    assert list(audit_set(output)) == []
    seen: list[str] = []
    for shard in published_shards(output):
        assert audit_shard(output, shard) == []
        seen += pq.read_table(output / f"{shard}.parquet")["clip_id"].to_pylist()
        seen += pq.read_table(output / "failures" / f"{Path(shard).name}.parquet")["clip_id"].to_pylist()
    assert len(seen) == len(set(seen)) == num_clips
    return stats


@pytest.mark.heavy
@pytest.mark.parametrize("clips", [{}, {"codec": "h264", "resize": "short_side", "audio": True}], ids=["jpeg", "h264"])
def test_forty_damaged_inputs(clips: dict[str, Any], painted: Painter, add_sound: Mixer, tmp_path: Path) -> None:
    stats = fuzz(tmp_path, painted, add_sound, 40, **clips)
    assert stats["num_delivered"] > 0 and stats["num_failed"] > 0


@pytest.mark.slow
def test_three_hundred_and_twenty_damaged_inputs(painted: Painter, add_sound: Mixer, tmp_path: Path) -> None:
    stats = fuzz(tmp_path, painted, add_sound, 320)
    assert stats["num_delivered"] > 0 and len(stats["reasons"]) >= 2
