"""The shards of a set that exist, and whether what lies on the disk is still what was published.

published_shards(output)                    # ["shards/000000", ...]
refuse_damaged(output, shards)              # RunError that names the first damaged file and the way out

The size of a tar is compared with its sidecar, so a look costs a few reads a shard; hashes are the audit's work.
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.errors import RunError
from preprocess.faults import refuse_trouble
from preprocess.pack import read_facts


def published_shards(output: Path) -> list[str]:
    """Names of the shards that exist, sorted."""
    return sorted(f"shards/{path.stem}" for path in (output / "shards").glob("*.parquet"))


def clips_of(output: Path, shard: str) -> set[str] | None:
    """The ids of all clips of a shard, delivered or failed; None where its tables cannot be read."""
    tables = (output / f"{shard}.parquet", failures_of(output, shard))
    try:
        return {
            clip_id for path in tables for clip_id in pq.read_table(path, columns=["clip_id"])["clip_id"].to_pylist()
        }
    except (OSError, ValueError, KeyError) as error:
        refuse_trouble(error, output / shard)
        return None


def failures_of(output: Path, shard: str) -> Path:
    """The failures table of a shard."""
    return output / "failures" / f"{Path(shard).name}.parquet"


def damage_of(output: Path, shard: str) -> str:
    """The file of a published shard that is not as it was written, and why; empty where all are."""
    sidecar, tar, failures = output / f"{shard}.parquet", output / f"{shard}.tar", failures_of(output, shard)
    path = sidecar
    try:
        facts = read_facts(sidecar)
        size, num_failures = int(facts["shard_bytes"]), int(facts["num_failures"])
        if (num_rows := pq.read_metadata(sidecar).num_rows) != facts["num_samples"]:
            return f"{sidecar} has {num_rows} rows instead of {facts['num_samples']}"
        path = tar
        if not tar.is_file() or tar.stat().st_size != size:
            return f"{tar} {f'has {tar.stat().st_size} bytes' if tar.is_file() else 'is gone'} instead of {size} bytes"
        path = failures
        if (num_rows := pq.read_metadata(failures).num_rows) != num_failures:
            return f"{failures} has {num_rows} rows instead of {num_failures}"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        refuse_trouble(error, path)
        said = " ".join(str(error).split()) or "it is empty"
        return f"{path} cannot be read ({said[:200]})"
    return ""


def refuse_damaged(output: Path, shards: Iterable[str]) -> None:
    """Raise a `RunError` where any of these published shards is damaged."""
    found = [(shard, problem) for shard in shards if (problem := damage_of(output, shard))]
    if found:
        shard, problem = found[0]
        raise RunError(
            f"{len(found)} published shards are damaged, first {problem}; if the videos are still there, remove "
            f"{output / shard}.parquet and .tar and run python -m preprocess.run, which writes the same bytes again, "
            "else bring the file back from a backup; python -m preprocess.audit looks at all of it"
        )
