"""Indexes a foreign tar set (video2dataset, img2dataset, any webdataset layout) into our manifest, without copying it.

    python -m preprocess.index FOREIGN_FOLDER OUTPUT [--caption-from txt] [--subtitle-from json:subtitle]

The tars stay where they are; OUTPUT gets links to them, a sidecar for each and a manifest, and is a source like any
other. A sample is a run of adjacent members with one key; it counts if it holds a video or an image, and is listed in
the failures otherwise, as are a key that came before and the rest of a tar that is cut short. Nothing in a tar is
unpickled or run; only places and sizes are read, and the texts.
"""

import argparse
import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.format import DEFAULT_CAPTION_FROM, FORMAT_VERSION, Reason
from pipeline.data.frames import DamagedMedia, open_clip_bytes
from pipeline.errors import InputError, run_command
from preprocess.failures import FailureTable
from preprocess.merge import published_shards, summarise_shards
from preprocess.pack import read_facts, write_sidecar
from preprocess.publish import publish, remove_leftovers, temporary_path
from preprocess.records import Failure, clean_text, printable

VIDEO_EXTENSIONS = ("mp4", "mkv", "webm", "avi", "mov")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_BYTES = 1 << 20
FOREIGN = "foreign"
"""The config hash in the sidecars of foreign tars."""


@dataclass(slots=True)
class Members:
    """The members of one sample: extension -> (content offset, size)."""

    key: str
    offset: int
    end: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


def index_folder(foreign: Path, output: Path, *, caption_from: str, subtitle_from: str) -> dict[str, Any]:
    """Write sidecars and a manifest over all tars below `foreign`; returns the statistics."""
    tars = _find_tars(foreign)
    _check_output(foreign, output)
    for name in ("shards", "failures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    for shard in set(published_shards(output)) - set(tars):
        for path in (f"{shard}.parquet", f"{shard}.tar", f"failures/{Path(shard).name}.parquet"):
            (output / path).unlink(missing_ok=True)
    for shard, tar in tars.items():
        index_tar(tar, output, shard, caption_from=caption_from, subtitle_from=subtitle_from)
    return summarise_shards(output, subtitle_from=subtitle_from, caption_from=caption_from)


def _find_tars(foreign: Path) -> dict[str, Path]:
    """Shard name -> tar, for all tars below `foreign`."""
    tars: dict[str, Path] = {}
    for tar in sorted(foreign.rglob("*.tar")):
        shard = printable(f"shards/{'-'.join(tar.relative_to(foreign).with_suffix('').parts)}")
        if shard in tars:
            raise InputError(f"{tars[shard]} and {tar} would share the name {shard}; rename one of them")
        tars[shard] = tar
    if not tars:
        raise InputError(f"{foreign} holds no .tar file")
    return tars


def _check_output(foreign: Path, output: Path) -> None:
    """Refuse an output in which the index would take the place of anything that no index made."""
    if (output / "plan").exists():
        raise InputError(f"{output} is a shard set of ours; give the index another folder")
    links, source = (output / "shards").resolve(), foreign.resolve()
    if links.is_relative_to(source) or source.is_relative_to(links):
        raise InputError(
            f"the tars in {foreign} and the links in {output}/shards lie in one another; give the index "
            "a folder outside"
        )
    for path in (output / "shards").glob("*"):
        if (path.suffix == ".tar" and not path.is_symlink()) or (path.suffix == ".parquet" and not _is_ours(path)):
            raise InputError(f"{path} was made by no index; give the index another folder")


def _is_ours(sidecar: Path) -> bool:
    try:
        return bool(read_facts(sidecar)["config_hash"] == FOREIGN)
    except (OSError, ValueError, KeyError):
        return False


def index_tar(tar: Path, output: Path, shard: str, *, caption_from: str, subtitle_from: str) -> None:
    """The sidecar and the failures of one tar, and a link to it under the name of the shard."""
    rows: list[dict[str, Any]] = []
    sidecar, failures = output / f"{shard}.parquet", output / "failures" / f"{Path(shard).name}.parquet"
    for path in (sidecar, failures):
        remove_leftovers(path.parent, path.name)
    with FailureTable(temporary_path(failures), shard) as table, open(tar, "rb") as stream:
        for sample in read_samples(tar):
            if isinstance(sample, Failure):
                table.add(sample)
                continue
            row = describe(sample, stream, caption_from=caption_from, subtitle_from=subtitle_from)
            if isinstance(row, Failure):
                table.add(row)
            else:
                rows.append(row)
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {
        "format_version": FORMAT_VERSION,
        "shard": shard,
        "shard_sha256": digest,
        "shard_bytes": tar.stat().st_size,
        "num_samples": len(rows),
        "num_failures": table.num_rows,
        "config_hash": FOREIGN,
        "versions": {},
    }
    write_sidecar(temporary_path(sidecar), rows, facts)
    link = output / f"{shard}.tar"
    link.unlink(missing_ok=True)
    link.symlink_to(tar.resolve())
    publish(temporary_path(failures), failures)
    publish(temporary_path(sidecar), sidecar)


def read_samples(tar: Path) -> Iterator[Members | Failure]:
    """Runs of adjacent members with one key; a `Failure` for a key that came before, and for the rest of a cut tar."""
    seen: set[str] = set()
    cut_after = None
    size = tar.stat().st_size
    for sample in _read_runs(tar):
        if sample.key in seen:
            yield Failure(sample.key, "", Reason.DUPLICATE_CLIP, f"a key that came before in {tar.name}")
            continue
        seen.add(sample.key)
        if sample.end <= size:
            yield sample
        else:
            cut_after = sample.key
    with open(tar, "rb") as stream:
        stream.seek(-min(size, 2 * tarfile.BLOCKSIZE), io.SEEK_END)
        closed = not any(stream.read())
    if not closed:
        where = f"in sample {cut_after}" if cut_after is not None else f"after {len(seen)} samples"
        yield Failure(cut_after or "", "", Reason.VIDEO_UNREADABLE, f"{tar.name} is cut short {where}")


def _read_runs(tar: Path) -> Iterator[Members]:
    """As `webdataset` groups them: the key is the part of the name before the first dot after the last slash."""
    current: Members | None = None
    try:
        with tarfile.open(tar, "r:") as members:
            for member in members:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key, extension = printable(f"{folder}/{stem}" if folder else stem), extension.lower()
                if current is None or key != current.key or extension in current.places:
                    if current is not None:
                        yield current
                    current = Members(key, member.offset)
                current.places[extension] = (member.offset_data, member.size)
                current.end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except tarfile.TarError as error:
        if current is None:
            raise InputError(f"{tar} is no plain tar ({error}); unpack or remove it") from None
    if current is not None:
        yield current


def describe(sample: Members, stream: Any, *, caption_from: str, subtitle_from: str) -> dict[str, Any] | Failure:
    """The sidecar row of one foreign sample, or why it has none."""
    extension = next((ext for ext in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS) if ext in sample.places), None)
    if extension is None:
        return Failure(sample.key, "", Reason.NO_VIDEO_STREAM, f"members {sorted(sample.places)[:10]}, none is media")
    texts = _Texts(sample, stream)
    facts = texts.facts
    media = _read(stream, sample.places[extension])
    try:
        num_frames = open_clip_bytes(media, extension).num_frames
    except (DamagedMedia, ValueError) as error:
        return Failure(sample.key, "", Reason.VIDEO_UNREADABLE, str(error))
    places = {name: sample.places.get(name, (-1, 0)) for name in ("json", "txt")}
    return {
        "key": sample.key,
        "clip_id": printable(str(facts.get("clip_id") or facts.get("key") or sample.key)),
        "video_id": printable(str(facts.get("video_id") or facts.get("videoID") or "")),
        "offset": sample.offset,
        "size": sample.end - sample.offset,
        "media_ext": extension,
        "media_offset": sample.places[extension][0],
        "media_size": sample.places[extension][1],
        **{f"{name}_offset": place[0] for name, place in places.items()},
        **{f"{name}_size": place[1] for name, place in places.items()},
        "num_frames": num_frames,
        "duration_s": _duration_s(facts),
        "subtitle_chars": len(texts.get(subtitle_from) or ""),
        "caption_chars": len(texts.get(caption_from) or ""),
    }


class _Texts:
    """The texts of a foreign sample, by the words `txt` and `json:FIELD`."""

    def __init__(self, sample: Members, stream: Any) -> None:
        self._sample, self._stream = sample, stream
        self.facts: dict[str, Any] = {}
        if "json" in sample.places and sample.places["json"][1] <= MAX_TEXT_BYTES:
            try:
                facts = json.loads(_read(stream, sample.places["json"]).decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                facts = {}
            self.facts = facts if isinstance(facts, dict) else {}

    def get(self, place: str) -> str | None:
        if place.startswith("json:"):
            return clean_text(self.facts.get(place.removeprefix("json:")))
        if place == "txt" and "txt" in self._sample.places and self._sample.places["txt"][1] <= MAX_TEXT_BYTES:
            return clean_text(_read(self._stream, self._sample.places["txt"]).decode("utf-8", "replace"))
        return None


def _duration_s(facts: dict[str, Any]) -> float:
    try:
        duration_s = float(facts["end_s"]) - float(facts["start_s"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0
    return duration_s if math.isfinite(duration_s) else 0.0


def _read(stream: Any, place: tuple[int, int]) -> bytes:
    stream.seek(place[0])
    data = stream.read(place[1])
    assert isinstance(data, bytes)
    return data


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.index", description=__doc__.partition("\n")[0])
    parser.add_argument("foreign", type=Path, help="folder with tars, also in folders below it")
    parser.add_argument("output", type=Path, help="folder for sidecars and manifest")
    parser.add_argument("--caption-from", default="txt", help="where captions lie: txt, json:FIELD, or empty")
    parser.add_argument("--subtitle-from", default="", help="where subtitles lie: txt, json:FIELD, or empty")
    options = parser.parse_args(argv)
    for place in (options.caption_from, options.subtitle_from):
        if place not in ("", "txt") and not place.startswith("json:"):
            raise InputError(
                f"{place!r} is no place of a text; write txt or json:FIELD, such as {DEFAULT_CAPTION_FROM}"
            )
    stats = index_folder(
        options.foreign, options.output, caption_from=options.caption_from, subtitle_from=options.subtitle_from
    )
    print(
        f"{options.output}: {stats['num_delivered']:,} samples in {stats['num_shards']:,} shards, "
        f"{stats['num_failed']:,} not usable; {stats['num_captions']:,} captions, {stats['num_subtitles']:,} subtitles"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
