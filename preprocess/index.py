"""Indexes a foreign tar set (video2dataset, img2dataset, any webdataset layout) into our manifest, without copying it.

    python -m preprocess.index FOREIGN_FOLDER OUTPUT [--caption-from txt] [--subtitle-from json:subtitle]

The tars stay where they are; OUTPUT gets links to them, a sidecar for each and a manifest, and is a source like any
other. A sample is a run of adjacent members with one key; it counts if training can read it, and is listed in the
failures otherwise, as are a key that came before and the rest of a tar that is damaged. What no sample is made of
(links, AppleDouble files, compressed tars) is counted and named. Nothing in a tar is unpickled or run.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.data.format import DEFAULT_CAPTION_FROM, FORMAT_VERSION
from pipeline.errors import InputError, run_command
from preprocess.failures import FailureTable
from preprocess.index_tar import ForeignTar, Skipped, file_system_errors_named
from preprocess.merge import summarise_shards
from preprocess.pack import read_facts, write_sidecar
from preprocess.publish import publish, remove_leftovers, temporary_path
from preprocess.published import published_shards
from preprocess.records import Failure, printable

FOREIGN = "foreign"
"""The config hash in the sidecars of foreign tars."""
_COMPRESSED_SUFFIXES = (
    ".tar.gz",
    ".tgz",
    ".tar.zst",
    ".tzst",
    ".tar.bz2",
    ".tbz",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.lz4",
)


def index_folder(foreign: Path, output: Path, *, caption_from: str, subtitle_from: str) -> dict[str, Any]:
    """Write sidecars and a manifest over all tars below `foreign`; returns the statistics.

    They are those of every shard set and `skipped`: kind -> {"count", "example"}.
    """
    skipped = Skipped()
    tars = _find_tars(foreign, skipped)
    _check_output(foreign, output)
    for name in ("shards", "failures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    for shard in set(published_shards(output)) - set(tars):
        for path in (f"{shard}.parquet", f"{shard}.tar", f"failures/{Path(shard).name}.parquet"):
            (output / path).unlink(missing_ok=True)
    for shard, tar in tars.items():
        skipped.update(index_tar(tar, output, shard, caption_from=caption_from, subtitle_from=subtitle_from))
    extra = {"skipped": skipped.facts()}
    return summarise_shards(output, subtitle_from=subtitle_from, caption_from=caption_from, extra=extra)


def _find_tars(foreign: Path, skipped: Skipped) -> dict[str, Path]:
    """Shard name -> tar, for all tars below `foreign`; folders that are links are entered."""
    if not foreign.is_dir():
        raise InputError(f"{foreign} holds no .tar file: there is no such folder; name the one that holds the tars")
    tars: dict[str, Path] = {}
    for path in sorted(_files_below(foreign)):
        name, relative = path.name.lower(), str(path.relative_to(foreign))
        if name.endswith(_COMPRESSED_SUFFIXES):
            skipped.add("compressed tars (samples are read by offset: decompress them)", relative)
        if not name.endswith(".tar"):
            continue
        if name.startswith("._"):
            skipped.add("AppleDouble files beside tars (._*)", relative)
            continue
        shard = printable(f"shards/{'-'.join(path.relative_to(foreign).with_suffix('').parts)}")
        if shard in tars:
            raise InputError(f"{tars[shard]} and {path} would share the name {shard}; rename one of them")
        tars[shard] = path
    if not tars:
        named = "".join(f"; skipped: {line}" for line in skipped_lines(skipped.facts()))
        raise InputError(f"{foreign} holds no .tar file{named}")
    return tars


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder; a folder that is reached twice, by links, counts once."""
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (path for name in names if (path := Path(place) / name).is_file())


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
    """Whether an index wrote it. One that cannot be read is known by the link beside it, and written anew."""
    try:
        return bool(read_facts(sidecar)["config_hash"] == FOREIGN)
    except (OSError, ValueError, KeyError):
        return sidecar.with_suffix(".tar").is_symlink()


def index_tar(tar: Path, output: Path, shard: str, *, caption_from: str, subtitle_from: str) -> Skipped:
    """The sidecar and the failures of one tar, and a link to it under the name of the shard."""
    rows: list[dict[str, Any]] = []
    sidecar, failures = output / f"{shard}.parquet", output / "failures" / f"{Path(shard).name}.parquet"
    for path in (sidecar, failures):
        remove_leftovers(path.parent, path.name)
    reader = ForeignTar(tar, shard, caption_from=caption_from, subtitle_from=subtitle_from)
    with FailureTable(temporary_path(failures), shard) as table:
        for item in reader:
            if isinstance(item, Failure):
                table.add(item)
            else:
                rows.append(item)
    with file_system_errors_named(tar), open(tar, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        num_bytes = stream.tell()
    facts = {
        "format_version": FORMAT_VERSION,
        "shard": shard,
        "shard_sha256": digest,
        "shard_bytes": num_bytes,
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
    return reader.skipped


def skipped_lines(skipped: dict[str, dict[str, Any]]) -> list[str]:
    """A line per kind for people."""
    return [f"{facts['count']:,} {kind}, such as {facts['example']}" for kind, facts in skipped.items()]


def _commonest_failure(output: Path, stats: dict[str, Any]) -> str:
    """The commonest reason, and the first row of the failures that has it."""
    for path in sorted((output / "failures").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["reason"] == next(iter(stats["reasons"])):
                return f"{row['reason']} ({row['clip_id'] or path.stem}: {row['detail']})"
    return "no tar holds a member with a key and an extension"


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
    for reason, count in stats["reasons"].items():
        print(f"  not usable: {count:,} {reason}")
    for line in skipped_lines(stats["skipped"]):
        print(f"  skipped: {line}")
    if not stats["num_delivered"]:
        raise InputError(
            f"{options.foreign} has no usable sample; the commonest reason is "
            f"{_commonest_failure(options.output, stats)}; see {options.output}/failures"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
