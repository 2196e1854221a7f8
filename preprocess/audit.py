"""Re-reads a shard set as training will, and names everything that is wrong with it.

    python -m preprocess.audit data/shards/hdvila [--shards 0::100] [--workers 8]

Checks the hashes of tars and sidecars against sidecars and manifest, each member's place, each sample's JSON, text and
media (hash, number of frames, every frame decodes), and the account. Exit code 1 on any finding.
"""

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.data.format import METADATA_KEY, SAMPLE_JSON_FIELDS, Reason, manifest_hash, sample_key
from pipeline.data.frames import DamagedMedia, open_clip_bytes
from pipeline.errors import InputError, PipelineError, run_command
from preprocess.merge import published_shards
from preprocess.pack import read_facts
from preprocess.plan import Plan
from preprocess.rounds import standing_failures


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and where."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


def audit(output: Path, shards: list[str], num_workers: int) -> Iterator[Finding]:
    """All findings; the shards are read by worker processes."""
    yield from audit_set(output)
    with ProcessPoolExecutor(num_workers, mp_context=get_context("forkserver")) as pool:
        answers = pool.map(audit_shard, [output] * len(shards), shards)
        for findings in tqdm(answers, total=len(shards), unit=" shards", desc="audit"):
            yield from findings


def audit_set(output: Path) -> Iterator[Finding]:
    """The manifest against the sidecars, files that belong to nothing, and the account."""
    published = published_shards(output)
    try:
        manifest = pq.read_table(output / "manifest.parquet")
        rows = {row["shard"]: row for row in manifest.to_pylist()}
        pinned = json.loads((manifest.schema.metadata or {})[METADATA_KEY])["manifest_hash"]
    except (OSError, ValueError, KeyError) as error:
        yield Finding("manifest.parquet", f"cannot be read ({error}); run python -m preprocess.merge")
        return
    for shard in sorted(set(rows) - set(published)):
        yield Finding(shard, "is in the manifest, but its sidecar is gone")
    for shard in sorted(set(published) - set(rows)):
        yield Finding(shard, "is not in the manifest; run python -m preprocess.merge")
    for path in sorted((output / "shards").glob("*.tar")):
        if f"shards/{path.stem}" not in published:
            yield Finding(f"shards/{path.name}", "has no sidecar, so it does not exist for training")
    triples = [(row["shard"], row["shard_sha256"], row["sidecar_sha256"]) for row in rows.values()]
    if manifest_hash(triples) != pinned:
        yield Finding("manifest.parquet", "does not carry the hash of its own rows")
    for shard in sorted(set(rows) & set(published)):
        if _file_hash(output / f"{shard}.parquet") != rows[shard]["sidecar_sha256"]:
            yield Finding(f"{shard}.parquet", "differs from the manifest")
    yield from _audit_account(output, published)


def _audit_account(output: Path, published: list[str]) -> Iterator[Finding]:
    """Every planned clip is in exactly one place: delivered or failed, once its shard is published."""
    try:
        base = Plan.open(output / "plan")
        delivered: list[str] = []
        for shard in published:
            delivered += pq.read_table(output / f"{shard}.parquet", columns=["clip_id"])["clip_id"].to_pylist()
        failed = list(standing_failures(output, set(published)))
    except (PipelineError, OSError, ValueError) as error:
        yield Finding("the account", f"cannot be made: {error}")
        return
    pending = sum(count for name, count in base.clip_counts().items() if name not in published)
    if len(set(delivered)) != len(delivered):
        yield Finding("the account", f"{len(delivered) - len(set(delivered))} clips were delivered twice")
    total = base.facts["num_clips"] + base.facts["num_rejected"]
    if total != len(delivered) + len(failed) + pending:
        yield Finding(
            "the account",
            f"{total} clips in the metadata, but {len(delivered)} delivered, {len(failed)} failed, {pending} pending",
        )
    for row in failed:
        if row["reason"] not in set(Reason):
            yield Finding(f"failures of {row['shard']}", f"unknown reason {row['reason']!r}")


def audit_shard(output: Path, shard: str) -> list[Finding]:
    """All findings in one shard."""
    findings: list[Finding] = []
    try:
        for finding in _audit_shard(output, shard):
            findings.append(finding)
    except Exception as error:  # whatever a damaged file makes a library raise is a finding, not our failure
        findings.append(Finding(shard, f"cannot be read: {type(error).__name__}: {error}"))
    return findings


def _audit_shard(output: Path, shard: str) -> Iterator[Finding]:
    facts = read_facts(output / f"{shard}.parquet")
    rows = pq.read_table(output / f"{shard}.parquet").to_pylist()
    tar_path = output / f"{shard}.tar"
    if not tar_path.exists():
        yield Finding(f"{shard}.tar", "is gone")
        return
    if _file_hash(tar_path) != facts["shard_sha256"]:
        yield Finding(f"{shard}.tar", "differs from its sidecar (sha256)")
    failures = pq.read_table(output / "failures" / f"{Path(shard).name}.parquet")
    if len(failures) != facts["num_failures"] or len(rows) != facts["num_samples"]:
        yield Finding(shard, "holds another number of rows than its sidecar says")
    members = _members(tar_path)
    with open(tar_path, "rb") as tar:
        for row in rows:
            expected = {"media": row["media_ext"], "json": "json", "txt": "txt"}
            for column, extension in expected.items():
                place = (row[f"{column}_offset"], row[f"{column}_size"])
                if members.pop(f"{row['key']}.{extension}", None) != place:
                    yield Finding(f"{shard}.tar {row['key']}.{extension}", "is not where the sidecar says")
            content = {column: _slice(tar, row[f"{column}_offset"], row[f"{column}_size"]) for column in expected}
            for problem in sample_problems(row, content["media"], content["json"], content["txt"]):
                yield Finding(f"{shard}.tar {row['key']}", problem)
    for name in sorted(name for name in members if not name.endswith(".mka")):
        yield Finding(f"{shard}.tar {name}", "is a member that no row speaks of")


def sample_problems(row: dict[str, Any], media: bytes, description: bytes, text: bytes) -> Iterator[str]:
    """What is wrong with one sample."""
    try:
        facts = json.loads(description)
        caption = text.decode("utf-8")
    except ValueError as error:
        yield f"its json or txt cannot be read: {error}"
        return
    if missing := [name for name in SAMPLE_JSON_FIELDS if name not in facts]:
        yield f"its json lacks {', '.join(missing)}"
        return
    if facts["clip_id"] != row["clip_id"] or sample_key(facts["clip_id"]) != row["key"]:
        yield f"its json speaks of {facts['clip_id']!r}"
    if caption != (facts["subtitle"] or ""):
        yield "its txt is not the subtitle of its json"
    lengths = (len(facts["subtitle"] or ""), len(facts["caption"] or ""))
    if lengths != (row["subtitle_chars"], row["caption_chars"]):
        yield "its texts have other lengths than the sidecar says"
    if hashlib.sha256(media).hexdigest() != facts["sha256"]:
        yield "its media differs from the hash in its json"
    try:
        clip = open_clip_bytes(media, row["media_ext"])
        frames = clip.read(range(clip.num_frames))
    except (DamagedMedia, ValueError) as error:
        yield f"its media cannot be decoded: {error}"
        return
    if not facts["num_frames"] == row["num_frames"] == len(frames):
        yield f"it has {len(frames)} frames, but {facts['num_frames']} in its json"
    if frames.shape[1:3] != (facts["height_px"], facts["width_px"]) or frames.dtype != np.uint8:
        yield f"its frames are {frames.shape[2]}x{frames.shape[1]}, not as its json says"


def _members(path: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def _slice(stream: io.BufferedReader, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the shard set")
    parser.add_argument("--shards", default="::", help="which shards to read, as a Python slice of the sorted list")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--max-findings", type=int, default=100, help="print at most this many")
    options = parser.parse_args(argv)
    if not (options.output / "shards").is_dir():
        raise InputError(f"{options.output} is no shard set: it holds no folder shards")
    try:
        part = slice(*(int(word) if word else None for word in options.shards.split(":")))
    except (ValueError, TypeError):
        raise InputError(f"--shards {options.shards!r} is no slice; write start:stop:step") from None
    shards = published_shards(options.output)[part]
    findings = list(audit(options.output, shards, max(1, options.workers)))
    for finding in findings[: options.max_findings]:
        print(finding)
    print(f"{options.output}: {len(shards)} shards read, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    run_command(main)
