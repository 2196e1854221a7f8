"""Every reader of foreign bytes, given valid bytes with random damage: a value or its own error, never another one.

A few damages of each kind run in `make test`; `make soak` searches for minutes, new ones each time.
"""

import contextlib
import io
import itertools
import json
import os
import tarfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import read_yaml
from pipeline.data.format import SIDECAR_COLUMNS, name_hash
from pipeline.data.frames import open_clip_bytes, uniform_indices
from pipeline.data.index import Manifest, Place
from pipeline.data.manifest_file import manifest_facts, read_manifest
from pipeline.data.mp4 import jpeg_packets
from pipeline.data.sample import bad_where_it_fails, open_block
from pipeline.data.storage import DamagedSample
from pipeline.data.tar import TarDamage, TarWalk
from pipeline.data.texts import json_object, text_at
from pipeline.errors import PipelineError
from preprocess.index import index_folder
from preprocess.pack import read_facts

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["bit", "byte", "cut", "hole", "copies", "foreign"]),
        st.one_of(st.integers(0, 700), st.integers(0, 2**20)),
        st.sampled_from([1, 2, 4, 8, 64]),
        st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)
"""Changes of some bytes: kind, place, length, value."""
Edits = list[tuple[str, int, int, int]]


def damaged(data: bytes, edits: Edits) -> bytes:
    """The bytes with these changes."""
    changed = bytearray(data)
    for kind, anywhere, length, value in edits:
        place = anywhere % (len(changed) + 1)
        piece = changed[place : place + length]
        if kind == "bit" and changed:
            changed[place % len(changed)] ^= 1 << value % 8
        elif kind == "byte":
            changed[place : place + length] = bytes([value]) * length
        elif kind == "cut":
            del changed[place:]
        elif kind == "hole":
            del changed[place : place + length]
        elif kind == "copies":
            changed[place:place] = piece * (value % 200)
        else:
            changed[place : place + length] = bytes((value * factor) % 256 for factor in range(1, length + 1))
    return bytes(changed)


@cache
def clip(codec: str, container: str, pix_fmt: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=3, width=32, height=32, pix_fmt=pix_fmt)
        for number in range(6):
            pixels = np.full((32, 32, 3), 40 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


@cache
def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, form, **({"exif": exif} if form == "JPEG" else {}))
    return buffer.getvalue()


@cache
def sample_block() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in {
            "a/0.json": json_text(),
            f"{'d' * 120}/README": b"x",
            "a/0.jpg": picture("JPEG"),
            "a/0.txt": "a cät".encode(),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def json_text() -> bytes:
    facts = {"caption": "a \ud83d cat\n", "clip_id": None, "sha256": 3, "n": [1, {"a": [2.5e300, True]}], "é": "\u2028"}
    return json.dumps(facts).encode()


def read_media(extension: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with bad_where_it_fails("media_undecodable"):
            opened = open_clip_bytes(data, extension)
            frames = opened.read(uniform_indices(opened.num_frames, 3))
            assert frames.dtype == np.uint8 and frames.shape[3] == 3

    return read


def read_json(data: bytes) -> None:
    facts = json_object(data)
    for source in ("json:caption", "json:n", "txt"):
        text_at(source, {"txt": data}, facts).encode()


def read_block_of_sample(data: bytes) -> None:
    place = Place(0, "shards/0", 0, len(data), name_hash("a/0"))
    sample = open_block(data, place, subtitle_from="txt", caption_from="json:caption")
    (sample.subtitle + sample.caption + sample.key).encode()


def walk_tar(data: bytes) -> None:
    for member in TarWalk(lambda offset, size: data[offset : offset + size], len(data)):
        assert 0 <= member.offset < member.data_offset and member.size >= 0


def read_packets(data: bytes) -> None:
    """None sends the caller to the demuxer: there is no error at all."""
    for offset, size in jpeg_packets(data) or ():
        assert min(offset, size) >= 0


YAML = b"""
name: run  # of a test
epochs: 1.5
data: {sources: [{shards: a/b, weight: 0x1F}], index_folder: ~}
when: 2001-12-14
base: &base {lr: 1.0e-6, betas: [0.9, 0.98]}
optim:
  again: *base
  text: "\\u263a" """


class Files:
    """An indexed set on the disk: each reader gets one of its files damaged, and the others whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "foreign").mkdir(parents=True)
        (folder / "foreign/0.tar").write_bytes(sample_block())
        index_folder(folder / "foreign", folder / "set", caption_from="txt", subtitle_from="json:caption")
        self.index = Manifest.open(folder / "set", index_folder=folder / "index").index
        self.whole = {name: self.path(name).read_bytes() for name in ("manifest", "sidecar", "shards", "samples")}

    def path(self, name: str) -> Path:
        return {
            "manifest": self.folder / "set/manifest.parquet",
            "sidecar": self.folder / "set/shards/0.parquet",
            "shards": self.index / "shards.arrow",
            "samples": self.index / "samples.arrow",
        }[name]

    def reader(self, name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            path = self.path(name)
            path.unlink()  # a new file: the old one may be mapped
            path.write_bytes(data)
            try:
                if name == "manifest":
                    manifest_facts(str(self.folder / "set"))
                    read_manifest(str(self.folder / "set"))
                elif name == "sidecar":
                    read_facts(path)
                    pq.read_table(path, columns=list(SIDECAR_COLUMNS)).to_pylist()
                else:
                    manifest = Manifest(str(self.folder / "set"), self.index)
                    manifest.places(np.arange(min(len(manifest), 3)))
            finally:
                path.unlink()
                path.write_bytes(self.whole[name])

        return read


def targets(folder: Path) -> dict[str, tuple[bytes, Callable[[bytes], Any], tuple[type[Exception], ...]]]:
    """name -> (valid bytes, reader, the errors that are its own)."""
    files = Files(folder)

    def read_config(data: bytes) -> None:
        path = folder / "config.yaml"
        path.write_bytes(data)
        read_yaml(path)

    media = {
        "mjpeg.mp4": clip("mjpeg", "mp4", "yuvj420p"),
        "h264.mp4": clip("libx264", "mp4", "yuv420p"),
        "vp9.webm": clip("libvpx-vp9", "webm", "yuv420p"),
        "mpeg4.avi": clip("mpeg4", "avi", "yuv420p"),
        "mpeg2.ts": clip("mpeg2video", "mpegts", "yuv420p"),
        "a.jpg": picture("JPEG"),
        "a.png": picture("PNG"),
        "a.webp": picture("WEBP"),
    }
    return {
        **{name: (data, read_media(name.rpartition(".")[2]), (DamagedSample,)) for name, data in media.items()},
        "json": (json_text(), read_json, (ValueError,)),
        "sample": (sample_block(), read_block_of_sample, (DamagedSample,)),
        "tar": (sample_block(), walk_tar, (TarDamage,)),
        "mp4 boxes": (media["mjpeg.mp4"], read_packets, ()),
        "yaml": (YAML, read_config, (PipelineError,)),
        # What the sha256 of the manifest keeps from training still reaches the commands that look at a set.
        "sidecar": (files.whole["sidecar"], files.reader("sidecar"), (ValueError, OSError, KeyError)),
        **{
            name: (files.whole[name], files.reader(name), (PipelineError,))
            for name in ("manifest", "shards", "samples")
        },
    }


NAMES = (
    *("mjpeg.mp4", "h264.mp4", "vp9.webm", "mpeg4.avi", "mpeg2.ts", "a.jpg", "a.png", "a.webp"),
    *("json", "sample", "tar", "mp4 boxes", "yaml", "sidecar", "manifest", "shards", "samples"),
)


def try_damages(name: str, folder: Path, number: int, how: settings) -> None:
    """So many damages of one kind; hypothesis shows the smallest that is an error of another class."""
    valid, read, expected = targets(folder)[name]
    read(valid)

    @seed(number)
    @settings(how, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(edits=EDITS)
    def check(edits: Edits) -> None:
        data = damaged(valid, edits)
        (folder / "last").write_bytes(data)  # what to look at where a library takes the process down
        with contextlib.suppress(*expected):
            read(data)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_damage_ends_in_a_value_or_in_the_error_that_is_its_own(name: str, tmp_path: Path) -> None:
    try_damages(name, tmp_path, 7, settings(max_examples=40, derandomize=False))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
def test_damage_for_minutes(name: str, tmp_path: Path) -> None:
    """SOAK_MINUTES for all kinds together, from SOAK_SEED on: the same seed searches the same damages."""
    ends = time.monotonic() + 60 * float(os.environ.get("SOAK_MINUTES", "5")) / len(NAMES)
    for number in itertools.count(int(os.environ.get("SOAK_SEED", "1000"))):
        try_damages(name, tmp_path / str(number), number, settings(max_examples=500, derandomize=False))
        if time.monotonic() > ends:
            return


DEEP = {
    "json": b"[" * 200_000,
    "an object": b'{"a":' * 200_000,
    "closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
}


@pytest.mark.parametrize("kind", DEEP)
def test_json_without_bottom_is_an_error_of_the_value(kind: str) -> None:
    with pytest.raises(ValueError, match="RecursionError"):
        json_object(DEEP[kind])


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 1500,
        "a: " + "{a: " * 3000 + "1" + "}" * 3000,
        "".join(f"{'  ' * depth}a:\n" for depth in range(1200)),
        "when: 2001-99-99",
        "? [1, 2]\n: 3",
        "{{a: 1}: 2}",
        "a: !!python/object/apply:os.system [echo]",
        "a: *nowhere",
        "a: \x00",
        "a: !!int x",
        "a: !!float x",
        "a: !!binary x",
    ],
)
def test_yaml_that_no_parser_takes_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"^config .*c\.yaml") as caught:
        read_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
