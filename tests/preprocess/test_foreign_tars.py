"""Foreign tars as people write them: index, audit and training find the same samples in each of them."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.data.batch import Batch
from pipeline.data.format import METADATA_KEY, manifest_hash
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream
from pipeline.errors import InputError, RunError
from preprocess.audit import audit_set, audit_shard
from preprocess.index import index_folder, main
from preprocess.published import published_shards

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny video and a tiny picture."""
    import av
    import numpy as np
    from PIL import Image

    path = tmp_path_factory.mktemp("media") / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=3, width=16, height=16, pix_fmt="yuvj420p")
        for number in range(4):
            pixels = np.full((16, 16, 3), 40 + 30 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(picture, format="JPEG")
    return {"mp4": path.read_bytes(), "jpg": picture.getvalue()}


def sample(key: str, media: dict[str, bytes], extension: str = "mp4") -> Members:
    """Media, JSON and caption under one key; the caption spells the key."""
    return [
        (f"{key}.json", json.dumps({"caption": f"json of {key}", "sha256": "of the picture before scaling"}).encode()),
        (f"{key}.{extension}", media[extension.lower()]),
        (f"{key}.txt", f"text of {key}\n".encode("utf-8", "replace")),
    ]


def write_tar(path: Path, members: Members, form: int = tarfile.GNU_FORMAT, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def batches_of(output: Path, batch: int, caption_from: str | None = None, **options: Any) -> Iterator[Batch]:
    source = SourceConfig(shards=str(output), caption_from=caption_from)
    config = DataConfig(sources=[source], num_frames=2, num_text_tokens=4, num_workers=0, shuffle=False, **options)
    return iter(
        Stream(
            config,
            global_batch_size=batch,
            image_size_px=16,
            tokenize=lambda texts: torch.ones(len(texts), 4, dtype=torch.int64),
            seed=1,
        )
    )


def findings(output: Path) -> list[str]:
    found = [*audit_set(output)]
    for shard in published_shards(output):
        found += audit_shard(output, shard)
    return [str(one) for one in found]


def check_agreement(foreign: Path, output: Path, num_samples: int, caption_from: str = "txt") -> dict[str, Any]:
    """So many samples, with a caption each, for the index, the audit and training; returns the statistics."""
    stats = index_folder(foreign, output, caption_from=caption_from, subtitle_from="")
    assert (stats["num_delivered"], stats["num_captions"]) == (num_samples, num_samples), stats
    assert findings(output) == []
    (batch,) = islice(batches_of(output, num_samples), 1)
    assert batch.bad == () and batch.valid_B.all() and batch.has_caption_B.all()
    return stats


LAYOUTS: dict[str, list[str]] = {
    "flat": ["000000", "000001"],
    "dot": ["./000000", "./000001"],
    "folder": ["train/000000", "train/000001"],
    "two folders with equal names": ["train/0", "val/0"],
    "dots in folders": ["a.b/c.d/0", "a.b/c.d/1"],
    "absolute": ["/data/0", "/data/1"],
    "doubled slashes": ["a//0", "a/./1"],
    "not ASCII": ["vidéo/0", "cafe\u0301"],
    "stray bytes": ["caf\udce9/0", "caf\udce91"],
    "spaces": ["my videos/clip 0", "my videos/clip 1"],
    "long": ["f" * 90 + "/" + "g" * 140 + "0", "f" * 90 + "/" + "g" * 140 + "1"],
    "prefix": ["f" * 90 + "/" + "g" * 80 + "0", "f" * 90 + "/" + "g" * 80 + "1"],
}


@pytest.mark.heavy
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["u", "g", "p"])
def test_keys_in_any_folder_and_form_are_found_by_all(form: int, media: dict[str, bytes], tmp_path: Path) -> None:
    """All layouts, a tar each: one index, one audit, one batch."""
    num_samples = 0
    for number, keys in enumerate(LAYOUTS.values()):
        members = [member for key in keys for member in sample(key, media, "MP4" if number % 2 else "mp4")]
        try:
            write_tar(tmp_path / f"foreign/{number:02d}.tar", members, form)
        except ValueError:
            (tmp_path / f"foreign/{number:02d}.tar").unlink()  # ustar has no room for the name
            continue
        num_samples += len(keys)
    assert num_samples >= 2 * (len(LAYOUTS) - 1)
    check_agreement(tmp_path / "foreign", tmp_path / "out", num_samples)


def noisy(media: dict[str, bytes]) -> Members:
    """What a Mac and a careless archiver leave between the members of two samples."""
    members: Members = [(".DS_Store", b"x"), ("README", b"x"), ("notes/LICENSE", b"x")]
    for key in ("000000", "sub/000001"):
        for name, content in sample(key, media):
            folder, _, base = name.rpartition("/")
            members += [(f"{folder}{'/' if folder else ''}._{base}", b"AppleDouble"), (name, content)]
            members += [("README", b"again")]
    return members


def test_what_no_sample_is_made_of_lies_between_members_and_is_named(media: dict[str, bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "foreign/0.tar", noisy(media))
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.SYMTYPE, "z.mp4"), (tarfile.LNKTYPE, "z.txt"), (tarfile.FIFOTYPE, "p.mp4")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "000000.mp4"
            tar.addfile(info)
        info = tarfile.TarInfo("folder.mp4")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    write_tar(tmp_path / "foreign/._0.tar", [])
    (tmp_path / "foreign/1.tar.gz").write_bytes(b"x")
    (tmp_path / "foreign/2.TGZ").write_bytes(b"x")
    stats = check_agreement(tmp_path / "foreign", tmp_path / "out", 2)
    counts = {kind.partition(" (")[0]: facts["count"] for kind, facts in stats["skipped"].items()}
    assert counts == {
        "AppleDouble members": 6,
        "names without an extension": 8,
        "names without a stem": 1,
        "symbolic or hard links": 2,
        "devices, pipes and other special members": 1,
        "AppleDouble files beside tars": 1,
        "compressed tars": 2,
    }
    assert all(facts["example"] for facts in stats["skipped"].values())
    assert json.loads((tmp_path / "out/stats.json").read_text())["skipped"] == stats["skipped"]


def test_images_and_json_captions_of_img2dataset_are_read_as_such(media: dict[str, bytes], tmp_path: Path) -> None:
    """Its `sha256` is that of the picture before it was scaled."""
    write_tar(tmp_path / "foreign/0.tar", sample("0", media, "jpg") + sample("1", media, "JPG"))
    check_agreement(tmp_path / "foreign", tmp_path / "out", 2, caption_from="json:caption")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar program")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_what_the_tar_program_writes_is_read(form: str, media: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in [*sample("000000", media), *sample("000001", media)]:
        path = tmp_path / "files/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.link(tmp_path / "files/train/000000.mp4", tmp_path / "files/train/000002.mp4")
    (tmp_path / "foreign").mkdir()
    command = [
        "tar",
        "--sort=name",
        f"--format={form}",
        "-cf",
        tmp_path / "foreign/0.tar",
        "-C",
        tmp_path / "files",
        ".",
    ]
    subprocess.run(command, check=True)
    stats = check_agreement(tmp_path / "foreign", tmp_path / "out", 2)
    assert [facts["count"] for facts in stats["skipped"].values()] == [1]


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar program")
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_named_and_their_samples_not_usable(
    form: str, media: dict[str, bytes], tmp_path: Path
) -> None:
    for name, content in [*sample("0", media), *sample("1", media)]:
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    with open(tmp_path / "files/1.mp4", "ab") as stream:
        stream.truncate(4 << 20)
    (tmp_path / "foreign").mkdir()
    command = ["tar", "--sort=name", "--sparse", f"--format={form}", "-cf", tmp_path / "foreign/0.tar"]
    subprocess.run(
        [*command, "-C", tmp_path / "files", "0.json", "0.mp4", "0.txt", "1.json", "1.mp4", "1.txt"], check=True
    )
    stats = check_agreement(tmp_path / "foreign", tmp_path / "out", 1)
    assert stats["reasons"] == {"no_video_stream": 1}
    assert [(kind.split()[0], facts["count"]) for kind, facts in stats["skipped"].items()] == [("sparse", 1)]


def damaged(kind: str, tar: bytes) -> bytes:
    second = tar.index(b"000001.json")
    return {
        "empty": b"",
        "no tar": b"x" * 3000,
        "a page of HTML": b"<!doctype html><html>not found</html>",
        "cut": tar[: second + 1700],
        "cut in padding": tar[: second + 700],
        "cut in a header": tar[: second + 100],
        "no end": tar[:second],
        "a flipped header": tar[:second] + b"\xff" + tar[second + 1 :],
        "zeros": bytes(4096),
        "gzip under the name of a tar": b"\x1f\x8b\x08\0" + tar[:1000],
        "zstd under the name of a tar": b"\x28\xb5\x2f\xfd" + tar[:1000],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "num_left"),
    [
        ("empty", 0),
        ("no tar", 0),
        ("a page of HTML", 0),
        ("cut", 1),
        ("cut in padding", 1),
        ("cut in a header", 1),
        ("no end", 1),
        ("a flipped header", 1),
        ("zeros", 0),
        ("gzip under the name of a tar", 0),
        ("zstd under the name of a tar", 0),
    ],
)
def test_one_damaged_tar_is_a_row_and_not_the_end(
    kind: str, num_left: int, media: dict[str, bytes], tmp_path: Path
) -> None:
    good = write_tar(tmp_path / "foreign/good.tar", sample("000000", media) + sample("000001", media))
    (tmp_path / "foreign/bad.tar").write_bytes(damaged(kind, good.read_bytes()))
    check_agreement(tmp_path / "foreign", tmp_path / "out", 2 + num_left)
    rows = pq.read_table(tmp_path / "out/failures/bad.parquet").to_pylist()
    assert all("bad.tar" in row["detail"] for row in rows)
    assert len(rows) == (0 if kind == "zeros" else 1)


@pytest.mark.parametrize("kind", ["empty", "no tar", "zeros", "texts only", "gzip under the name of a tar"])
def test_a_folder_in_which_nothing_is_usable_is_no_success(kind: str, media: dict[str, bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "foreign/0.tar", [one for one in sample("000001", media) if "mp4" not in one[0]])
    if kind != "texts only":
        path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(InputError, match="has no usable sample; the commonest reason is"):
        main([str(tmp_path / "foreign"), str(tmp_path / "out")])
    with pytest.raises(InputError, match="has no samples"):
        next(batches_of(tmp_path / "out", 1))
    assert any("holds no sample in any of its shards" in finding for finding in findings(tmp_path / "out"))


@pytest.mark.parametrize("names", [["0.tar.gz"], ["a.tgz", "b.tar.zst"], []])
def test_a_folder_without_plain_tars_is_refused_by_name(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"holds no .tar file.*{names[0] if names else ''}"):
        main([str(tmp_path), str(tmp_path.parent / "out")])


def test_members_that_lie_apart_are_told_what_to_do(media: dict[str, bytes], tmp_path: Path) -> None:
    one, two = sample("0", media), sample("1", media)
    write_tar(tmp_path / "foreign/0.tar", [one[0], two[0], one[1], two[1], one[2], two[2], *sample("2", media)])
    check_agreement(tmp_path / "foreign", tmp_path / "out", 1)
    details = pq.read_table(tmp_path / "out/failures/0.parquet")["detail"].to_pylist()
    assert sum("lie apart" in detail and "--sort=name" in detail for detail in details) == 4
    write_tar(tmp_path / "dotted/0.tar", [("a.1.mp4", media["mp4"]), ("a.2.mp4", media["mp4"]), *sample("2", media)])
    check_agreement(tmp_path / "dotted", tmp_path / "out2", 1)
    (detail,) = pq.read_table(tmp_path / "out2/failures/0.parquet")["detail"].to_pylist()
    assert "split at its first dot" in detail


def test_two_tars_in_one_file_are_noticed(media: dict[str, bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "foreign/0.tar", sample("0", media))
    path.write_bytes(2 * path.read_bytes())
    stats = check_agreement(tmp_path / "foreign", tmp_path / "out", 1)
    assert [kind[:24] for kind in stats["skipped"]] == ["bytes behind the end of "]


BAD_JSON = {
    "nested 200,000 deep": b"[" * 200_000,
    "an object nested deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no JSON": b"{caption: 1}",
    "a list": b"[1]",
    "5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "17 MB": b'{"a": "' + b"x" * (17 << 20) + b'"}',
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_no_parser_takes_is_one_bad_sample_for_all(
    kind: str, media: dict[str, bytes], tmp_path: Path
) -> None:
    bad = [("bad.json", BAD_JSON[kind]), ("bad.mp4", media["mp4"])]
    path = write_tar(tmp_path / "foreign/0.tar", [*bad, *sample("good", media)])
    stats = check_agreement(tmp_path / "foreign", tmp_path / "out", 1)
    assert stats["reasons"] == {"metadata_invalid": 1}
    # As a set of before holds it, in which that sample counts.
    content = path.read_bytes()
    add_row(tmp_path / "out", "bad", 0, content.index(b"good.json"))
    (batch,) = islice(batches_of(tmp_path / "out", 2), 1)
    assert [(bad.key, bad.reason) for bad in batch.bad] == [("bad", "json_invalid")]


def add_row(output: Path, key: str, offset: int, size: int) -> None:
    """One more row in the sidecar of the only shard, and the manifest of that."""
    sidecar = output / "shards/0.parquet"
    table = pq.read_table(sidecar)
    (row,) = table.to_pylist()
    rewrite(output, [row, {**row, "key": key, "clip_id": key, "offset": offset, "size": size}])


def rewrite(output: Path, rows: list[dict[str, Any]]) -> None:
    """Other rows for the only shard of a set."""
    import hashlib

    sidecar, manifest = output / "shards/0.parquet", pq.read_table(output / "manifest.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(sidecar)), sidecar)
    (shard,) = manifest.to_pylist()
    shard |= {"num_samples": len(rows), "sidecar_sha256": hashlib.sha256(sidecar.read_bytes()).hexdigest()}
    facts = json.loads(manifest.schema.metadata[METADATA_KEY])
    facts["manifest_hash"] = manifest_hash([(shard["shard"], shard["shard_sha256"], shard["sidecar_sha256"])])
    schema = manifest.schema.with_metadata({METADATA_KEY: json.dumps(facts).encode()})
    pq.write_table(pa.Table.from_pylist([shard], schema=schema), output / "manifest.parquet")


@pytest.mark.parametrize("folder", ["", "./", "train/", "a.b//"])
def test_indexes_of_before_are_audited_and_trained_on(folder: str, media: dict[str, bytes], tmp_path: Path) -> None:
    """They hold folders in their keys as the tar spells them."""
    keys = [f"{folder}00", f"{folder}01"]
    write_tar(tmp_path / "foreign/0.tar", [member for key in keys for member in sample(key, media)])
    index_folder(tmp_path / "foreign", tmp_path / "out", caption_from="txt", subtitle_from="")
    rows = pq.read_table(tmp_path / "out/shards/0.parquet").to_pylist()
    rewrite(tmp_path / "out", [{**row, "key": key} for row, key in zip(rows, keys, strict=True)])
    assert findings(tmp_path / "out") == []
    (batch,) = islice(batches_of(tmp_path / "out", 2), 1)
    assert batch.bad == () and batch.has_caption_B.all()


def test_an_error_of_the_file_system_is_no_fault_of_the_tar(
    media: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "foreign/0.tar", sample("0", media))

    def broken(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("preprocess.index_tar._read", broken)
    with pytest.raises(RunError, match=r"cannot read .*0\.tar: Input/output error"):
        index_folder(tmp_path / "foreign", tmp_path / "out", caption_from="txt", subtitle_from="")


def test_a_damaged_sidecar_of_the_index_is_written_anew(
    media: dict[str, bytes], tmp_path: Path, painted: Callable[..., Path]
) -> None:
    write_tar(tmp_path / "foreign/0.tar", sample("0", media))
    index_folder(tmp_path / "foreign", tmp_path / "out", caption_from="txt", subtitle_from="")
    sidecar = tmp_path / "out/shards/0.parquet"
    content = sidecar.read_bytes()
    other = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), other)
    for damage in (b"", content[: len(content) // 2], other.getvalue()):
        sidecar.write_bytes(damage)
        check_agreement(tmp_path / "foreign", tmp_path / "out", 1)
        assert sidecar.read_bytes() == content
