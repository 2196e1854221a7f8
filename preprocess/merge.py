"""Sums the published shards up: `manifest.parquet` (what training pins), `stats.json`, and the account that adds up.

clips in the metadata = delivered + failed, by reason (+ pending, while shards are missing)

python -m preprocess.merge data/shards/hdvila
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.format import (
    DEFAULT_CAPTION_FROM,
    DEFAULT_SUBTITLE_FROM,
    FORMAT_VERSION,
    MANIFEST_COLUMNS,
    METADATA_KEY,
    manifest_hash,
)
from pipeline.errors import InputError, RunError, run_command
from preprocess.claim import find_mixture
from preprocess.pack import read_facts
from preprocess.plan import Plan
from preprocess.publish import publish, sole_writer, temporary_path, write_atomically
from preprocess.published import published_shards, refuse_damaged
from preprocess.rounds import count_reasons, standing_failures
from preprocess.swap import recover

_SHOWN_PROBLEMS = 20
USAGE = "usage: python -m preprocess.merge OUTPUT    (writes manifest.parquet and stats.json of a shard set)"


def merge(output: Path) -> dict[str, Any]:
    """Write the manifest and the statistics of all published shards; returns the statistics. Raises `RunError` where
    one of them is damaged."""
    plan = Plan.open(output / "plan")
    recover(output)
    refuse_damaged(output, published_shards(output))
    rows = [_manifest_row(output, shard) for shard in published_shards(output)]
    if mixture := find_mixture({row["shard"]: row["config_hash"] for row in rows}):
        raise RunError(mixture)
    published = {row["shard"] for row in rows}
    pending = sum(count for name, count in plan.clip_counts().items() if name not in published)
    stats = _totals(rows, count_reasons(output, published)) | {
        "num_clips": plan.facts["num_clips"] + plan.facts["num_rejected"],
        "num_pending": pending,
        "num_videos": plan.facts["num_videos"],
        "plan_hash": plan.facts["plan_hash"],
    }
    check_account(stats)
    _publish_summary(output, rows, stats, DEFAULT_SUBTITLE_FROM, DEFAULT_CAPTION_FROM)
    return stats


def summarise_shards(
    output: Path, *, subtitle_from: str, caption_from: str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Manifest and statistics (with `extra`) of a set without a plan, whose texts may lie elsewhere: foreign tars."""
    rows = [_manifest_row(output, shard) for shard in published_shards(output)]
    reasons: Counter[str] = Counter()
    for row in rows:
        table = pq.read_table(output / "failures" / f"{Path(row['shard']).name}.parquet", columns=["reason"])
        reasons.update(table["reason"].to_pylist())
    stats = _totals(rows, reasons)
    stats |= {"num_clips": stats["num_delivered"] + stats["num_failed"], "num_pending": 0, **(extra or {})}
    _publish_summary(output, rows, stats, subtitle_from, caption_from)
    return stats


def _totals(rows: list[dict[str, Any]], reasons: Counter[str]) -> dict[str, Any]:
    return {
        "num_delivered": sum(row["num_samples"] for row in rows),
        "num_failed": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "num_shards": len(rows),
        "num_subtitles": sum(row["num_subtitles"] for row in rows),
        "num_captions": sum(row["num_captions"] for row in rows),
        "hours": round(sum(row["duration_s"] for row in rows) / 3600, 4),
        "bytes": sum(row["shard_bytes"] for row in rows),
        **_subtitle_problems([row["subtitle_problems"] for row in rows if row["subtitle_problems"]]),
        "manifest_hash": manifest_hash((row["shard"], row["shard_sha256"], row["sidecar_sha256"]) for row in rows),
    }


def _subtitle_problems(of_shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Subtitle files that could not be read as a whole, where there are any."""
    if not of_shards:
        return {}
    examples = [example for problems in of_shards for example in problems["examples"]][:_SHOWN_PROBLEMS]
    num_files = sum(problems["num_files"] for problems in of_shards)
    return {"subtitle_problems": {"num_files": num_files, "examples": examples}}


def check_account(stats: dict[str, Any]) -> None:
    """Every clip of the metadata must be accounted for exactly once."""
    found = stats["num_delivered"] + stats["num_failed"] + stats["num_pending"]
    if found != stats["num_clips"]:
        raise RunError(
            f"the account does not add up: {stats['num_clips']} clips in the metadata, but {found} delivered, failed "
            "or pending; run python -m preprocess.audit on the folder"
        )


def account(stats: dict[str, Any]) -> str:
    """The account for people."""
    total = max(1, stats["num_clips"])
    volume = f"{stats['hours']:,.2f} h, {stats['bytes'] / 1e9:,.3f} GB in {stats['num_shards']:,} shards"
    lines = [
        f"clips in the metadata  {stats['num_clips']:>12,}",
        _account_line("delivered", stats["num_delivered"], total, volume),
    ]
    lines += [_account_line(reason, count, total, "not delivered") for reason, count in stats["reasons"].items()]
    if stats["num_pending"]:
        lines.append(_account_line("pending", stats["num_pending"], total, "in shards that are not written yet"))
    delivered = max(1, stats["num_delivered"])
    lines.append(
        f"of the delivered: {stats['num_subtitles'] / delivered:.2%} with a subtitle, "
        f"{stats['num_captions'] / delivered:.2%} with a caption"
    )
    if problems := stats.get("subtitle_problems"):
        named = "; ".join(problems["examples"])
        lines.append(f"of {problems['num_files']:,} subtitle files something could not be read: {named}")
    return "\n".join(lines)


def nothing_delivered(output: Path, stats: dict[str, Any]) -> InputError:
    """What is wrong with a set of which no clip was delivered: its commonest reason, with an example."""
    if not stats["reasons"]:
        return InputError(f"{output}: the metadata holds no clip; check metadata.files and metadata.layout")
    reason, count = next(iter(stats["reasons"].items()))
    rows = standing_failures(output, set(published_shards(output)))
    row = next(row for row in rows if row["reason"] == reason)
    where = f"clip {row['clip_id']!r}" if row["clip_id"] else "the metadata"
    return InputError(
        f"{output}: none of {stats['num_clips']:,} clips was delivered; {count:,} failed with {reason}, such as "
        f"{where} ({row['detail']}); mend that, then run python -m preprocess.retry, or give another output"
    )


def _account_line(name: str, count: int, total: int, remark: str) -> str:
    return f"  {name:<20} {count:>12,}  {count / total:7.2%}   {remark}"


def _manifest_row(output: Path, shard: str) -> dict[str, Any]:
    path = output / f"{shard}.parquet"
    facts = read_facts(path)
    table = pq.read_table(path, columns=["duration_s", "subtitle_chars", "caption_chars"])
    return {
        "shard": shard,
        "config_hash": facts["config_hash"],
        "subtitle_problems": facts.get("subtitle_problems"),
        "num_samples": facts["num_samples"],
        "num_failures": facts["num_failures"],
        "shard_bytes": facts["shard_bytes"],
        "shard_sha256": facts["shard_sha256"],
        "sidecar_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "duration_s": pc.sum(table["duration_s"].cast(pa.float64())).as_py() or 0.0,
        "num_subtitles": pc.sum(pc.greater(table["subtitle_chars"], 0)).as_py() or 0,
        "num_captions": pc.sum(pc.greater(table["caption_chars"], 0)).as_py() or 0,
    }


def _publish_summary(
    output: Path, rows: list[dict[str, Any]], stats: dict[str, Any], subtitle_from: str, caption_from: str
) -> None:
    facts = {
        "format_version": FORMAT_VERSION,
        "manifest_hash": stats["manifest_hash"],
        "num_samples": stats["num_delivered"],
        "subtitle_from": subtitle_from,
        "caption_from": caption_from,
    }
    schema = pa.schema(
        [(name, pa.type_for_alias(kind)) for name, kind in MANIFEST_COLUMNS.items()],
        metadata={METADATA_KEY: json.dumps(facts, sort_keys=True).encode()},
    )
    path, stats_path = output / "manifest.parquet", output / "stats.json"
    with sole_writer(output, path.name, stats_path.name):
        temporary = temporary_path(path)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)  # of a row, what the schema names
        publish(temporary, path)
        write_atomically(stats_path, (json.dumps(stats, indent=1) + "\n").encode())


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(USAGE)
        if argv and argv[0] in ("-h", "--help"):
            return 0
        raise InputError("name one shard set folder")
    stats = merge(Path(argv[0]))
    print(account(stats), flush=True)
    if stats["num_pending"]:
        raise RunError(
            f"{argv[0]} lacks shards ({stats['num_pending']} clips are pending); run the same command again that "
            "writes them, preprocess.run or slurm_shards.py: it writes only what is missing"
        )
    if stats["num_delivered"] == 0:
        raise nothing_delivered(Path(argv[0]), stats)
    return 0


if __name__ == "__main__":
    run_command(main)
