"""Re-reads a shard set as training will, and names everything that is wrong with it.

    python -m preprocess.audit data/shards/hdvila [--shards 0::100] [--workers 8]

Checks the hashes of tars and sidecars against sidecars and manifest, each member's place, each sample's JSON, texts,
media and audio (hash, every frame decodes), that each planned clip of a shard is in exactly one place, and over all
shards the account. A foreign set that `preprocess.index` took up has no plan
and no hashes of its own; what it has is checked. Exit code 1 on any finding.
"""

import argparse
import contextlib
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from pipeline.data.format import FAILURE_COLUMNS, Reason, name_hash
from pipeline.data.index import Place as SamplePlace
from pipeline.data.manifest_file import manifest_facts, read_manifest
from pipeline.errors import InputError, PipelineError, run_command
from preprocess.audit_sample import foreign_problems, sample_problems
from preprocess.claim import find_mixture, round_of
from preprocess.index import FOREIGN
from preprocess.lifeline import end_with_parent
from preprocess.pack import read_facts
from preprocess.plan import Plan
from preprocess.published import published_shards
from preprocess.rounds import count_doubles, standing_failures


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
    context = get_context("forkserver")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent) as pool:
        answers = pool.map(audit_shard, [output] * len(shards), shards)
        for findings in tqdm(answers, total=len(shards), unit=" shards", desc="audit"):
            yield from findings


def audit_set(output: Path) -> Iterator[Finding]:
    """The manifest against the sidecars, files that belong to nothing, and the account."""
    published = published_shards(output)
    if not published:
        yield Finding("the set", "holds no shard; run python -m preprocess.run, or preprocess.index for foreign tars")
    try:
        rows = {row["shard"]: row for row in read_manifest(str(output))}
    except PipelineError as error:
        yield Finding("manifest.parquet", f"{error}; run {_maker_of_manifest(output, published)}")
        return
    if rows and not sum(row["num_samples"] for row in rows.values()):
        yield Finding("the set", "holds no sample in any of its shards; see failures/ for the reasons")
    for shard in sorted(set(rows) - set(published)):
        yield Finding(shard, "is in the manifest, but its sidecar is gone")
    for shard in sorted(set(published) - set(rows)):
        yield Finding(shard, f"is not in the manifest; run {_maker_of_manifest(output, published)}")
    for path in sorted((output / "shards").glob("*.tar")):
        if f"shards/{path.stem}" not in published:
            yield Finding(f"shards/{path.name}", "has no sidecar, so it does not exist for training")
    for shard in sorted(set(rows) & set(published)):
        if _file_hash(output / f"{shard}.parquet") != rows[shard]["sidecar_sha256"]:
            yield Finding(f"{shard}.parquet", "differs from the manifest")
    yield from _audit_configs(output, published)
    if (output / "plan").exists() or not rows:
        yield from _audit_account(output, published)
        return
    for shard in sorted(set(rows) & set(published)):
        try:
            config_hash = read_facts(output / f"{shard}.parquet")["config_hash"]
            num_samples = pq.read_metadata(output / f"{shard}.parquet").num_rows
        except (OSError, ValueError, KeyError):
            continue  # a finding of its shard
        if config_hash != FOREIGN:
            yield Finding("plan", "is gone, so the account cannot be made; run python -m preprocess.run")
            break
        if num_samples != rows[shard]["num_samples"]:
            yield Finding(shard, "holds another number of samples than the manifest says")


def _maker_of_manifest(output: Path, published: list[str]) -> str:
    """The command that writes the manifest of this set."""
    for shard in published:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if read_facts(output / f"{shard}.parquet")["config_hash"] == FOREIGN:
                return "python -m preprocess.index"
    return "python -m preprocess.merge"


def _audit_configs(output: Path, published: list[str]) -> Iterator[Finding]:
    """Every round is of one config; a sidecar that cannot be read is a finding of its shard."""
    hashes = {}
    for shard in published:
        with contextlib.suppress(OSError, ValueError, KeyError):
            hashes[shard] = read_facts(output / f"{shard}.parquet")["config_hash"]
    if mixture := find_mixture(hashes):
        yield Finding("the shards", mixture)


def _audit_account(output: Path, published: list[str]) -> Iterator[Finding]:
    """The numbers add up, and no clip was delivered in two rounds; within a shard, `_audit_plan` looks at each clip."""
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    shards = set(published)
    try:
        base = Plan.open(output / "plan")
        delivered = sum(pq.read_metadata(output / f"{shard}.parquet").num_rows for shard in published)
        for row in standing_failures(output, shards):
            reasons[row["reason"]] += 1
            first.setdefault(row["reason"], row["shard"])
        num_doubles = count_doubles(output, shards)
    except (PipelineError, OSError, ValueError, KeyError) as error:
        yield Finding("the account", f"cannot be made: {type(error).__name__}: {error}")
        return
    pending = sum(count for name, count in base.clip_counts().items() if name not in shards)
    if num_doubles:
        yield Finding("the account", f"{num_doubles} clips were tried again after they had been delivered")
    total, failed = base.facts["num_clips"] + base.facts["num_rejected"], reasons.total()
    if total != delivered + failed + pending:
        yield Finding(
            "the account",
            f"{total} clips in the metadata, but {delivered} delivered, {failed} failed, {pending} pending",
        )
    for reason in sorted(set(reasons) - set(Reason)):
        yield Finding(f"failures of {first[reason]}", f"unknown reason {reason!r}")


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
    if lacking := sorted(set(FAILURE_COLUMNS) - set(failures.column_names)):
        yield Finding(f"failures of {shard}", f"are no failures table: there is no column {', '.join(lacking)}")
        return
    if len(failures) != facts["num_failures"] or len(rows) != facts["num_samples"]:
        yield Finding(shard, "holds another number of rows than its sidecar says")
    if (output / "plan").exists():
        clip_ids = [*(row["clip_id"] for row in rows), *failures["clip_id"].to_pylist()]
        yield from _audit_plan(output, shard, clip_ids)
    audit_samples = _audit_foreign_samples if facts["config_hash"] == FOREIGN else _audit_samples
    yield from audit_samples(output, shard, rows)


def _audit_samples(output: Path, shard: str, rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Each sample of a shard of ours, and that the tar holds nothing else."""
    tar_path = output / f"{shard}.tar"
    places = _members(tar_path)
    with open(tar_path, "rb") as tar:
        for number, row in enumerate(rows):
            members = _sample_members(row, places)
            for name, place in members.values():
                if places.pop(name, None) != place:
                    yield Finding(f"{shard}.tar {name}", "is not where the sidecar says")
            content = {extension: _slice(tar, *place) for extension, (_, place) in members.items()}
            block = _slice(tar, row["offset"], row["size"])
            for problem in sample_problems(row, content, block, _place(shard, number, row)):
                yield Finding(f"{shard}.tar {row['key']}", problem)
    for name in sorted(places):
        yield Finding(f"{shard}.tar {name}", "is a member that no row speaks of")


def _audit_foreign_samples(output: Path, shard: str, rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Each sample that the index counted; other members of a foreign tar are its owner's business."""
    facts = manifest_facts(str(output))
    with open(output / f"{shard}.tar", "rb") as tar:
        for number, row in enumerate(rows):
            block = _slice(tar, row["offset"], row["size"])
            place = _place(shard, number, row)
            for problem in foreign_problems(row, block, place, facts["subtitle_from"], facts["caption_from"]):
                yield Finding(f"{shard}.tar {row['key']}", problem)


def _place(shard: str, number: int, row: dict[str, Any]) -> SamplePlace:
    return SamplePlace(number, shard, row["offset"], row["size"], name_hash(row["key"]))


def _audit_plan(output: Path, shard: str, clip_ids: list[str]) -> Iterator[Finding]:
    """Every clip planned for the shard is in exactly one place, its rows or its failures, and no other clip is."""
    plan = Plan.open(output / "plan" / round_of(shard))
    number = int(shard.rpartition("/")[2].rpartition("_")[2])
    if number >= plan.num_shards:
        yield Finding(shard, "is not in the plan")
        return
    planned = Counter(clip.clip_id for video in plan.shard(number, verify=False).videos for clip in video.clips)
    found = Counter(clip_ids)
    for problem, clips in (
        ("planned for it are neither delivered nor failed", planned - found),
        ("in it were planned for another place, or are in it twice", found - planned),
    ):
        if clips:
            yield Finding(shard, f"{clips.total()} clips {problem}, first {min(clips)!r}")


Place = tuple[int, int]
"""Offset and size of a member's content in its tar."""


def _sample_members(row: dict[str, Any], places: dict[str, Place]) -> dict[str, tuple[str, Place]]:
    """extension -> (name in the tar, place by the sidecar; by the tar for audio, which the sidecar does not list)."""
    found: dict[str, tuple[str, Place]] = {}
    for column, extension in (("media", row["media_ext"]), ("json", "json"), ("txt", "txt")):
        place = (row[f"{column}_offset"], row[f"{column}_size"])
        if place[0] >= 0:
            found[extension] = (f"{row['key']}.{extension}", place)
    audio = f"{row['key']}.mka"
    if audio in places:
        found["mka"] = (audio, places[audio])
    return found


def _members(path: Path) -> dict[str, Place]:
    with tarfile.open(path, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def _slice(stream: io.BufferedReader, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pick(shards: list[str], words: str) -> list[str]:
    """`shards[words]`, for a number or a slice. One that picks nothing is an `InputError`, not a clean audit."""
    try:
        numbers = [int(word) if word else None for word in words.split(":")]
        part = slice(numbers[0], (numbers[0] or 0) + 1) if words.isdigit() else slice(*numbers)
    except (ValueError, TypeError):
        raise InputError(f"--shards {words!r} is no number and no slice; write start:stop:step") from None
    if shards and not shards[part]:
        raise InputError(f"--shards {words!r} picks none of {len(shards)} shards")
    return shards[part]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the shard set")
    parser.add_argument("--shards", default="::", help="a number, or a Python slice of the sorted list of shards")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--max-findings", type=int, default=100, help="print at most this many")
    options = parser.parse_args(argv)
    if not (options.output / "shards").is_dir() and not (options.output / "manifest.parquet").exists():
        raise InputError(f"{options.output} is no shard set: it holds neither a folder shards nor a manifest.parquet")
    if options.workers < 1:
        raise InputError(f"--workers must be at least 1, got {options.workers}")
    shards = _pick(published_shards(options.output), options.shards)
    findings = list(audit(options.output, shards, options.workers))
    for finding in findings[: options.max_findings]:
        print(finding)
    print(f"{options.output}: {len(shards)} shards read, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    run_command(main)
