"""`manifest.parquet` as `preprocess` wrote it: the facts of a shard set, and a row per shard.

manifest_facts("data/shards/sample_train")["manifest_hash"]
rows = read_manifest("s3://bucket/train")
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.cache import open_folder
from pipeline.data.format import FORMAT_VERSION, MANIFEST_COLUMNS, METADATA_KEY, SIDECAR_COLUMNS, manifest_hash
from pipeline.errors import InputError

_FACTS = ("manifest_hash", "num_samples", "subtitle_from", "caption_from")
_WAY_OUT = "write it again: python -m preprocess.merge SHARDS, or preprocess.index for foreign tars"


def manifest_facts(folder: str) -> dict[str, Any]:
    """The facts in manifest.parquet's schema metadata: manifest_hash, num_samples, subtitle_from, caption_from."""
    return _facts(_read_table_of(folder).schema, f"{folder}/manifest.parquet")


def read_manifest(folder: str) -> list[dict[str, Any]]:
    """The rows of manifest.parquet, sorted by shard, once they give the hash that the file states."""
    table = _read_table_of(folder)
    where = f"{folder}/manifest.parquet"
    facts = _facts(table.schema, where)
    lacking = sorted(set(MANIFEST_COLUMNS) - set(table.column_names))
    if lacking:
        raise InputError(f"{where} has no column {', '.join(lacking)}: it is no manifest; {_WAY_OUT}")
    rows: list[dict[str, Any]] = table.sort_by("shard").to_pylist()
    try:
        stated = manifest_hash((row["shard"], row["shard_sha256"], row["sidecar_sha256"]) for row in rows)
    except TypeError:
        stated = ""
    if stated != facts["manifest_hash"]:
        raise InputError(f"{where} is damaged (it does not carry the hash of its own rows); {_WAY_OUT}")
    return rows


def read_table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file that was read into memory.

    Not by Arrow's threads: one of them may still hold `content` when the interpreter ends, and a Python object that is
    let go of then, outside the main thread, aborts the process.
    """
    return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)


def sidecar_columns(content: bytes, name: str, columns: list[str]) -> pa.Table:
    """Columns of a sidecar that was read into memory, of the types that the format has. InputError names the file."""
    types = [(column, pa.type_for_alias(SIDECAR_COLUMNS[column])) for column in columns]
    try:
        table = read_table(content, columns).cast(pa.schema(types))
        table.validate(full=True)
        return table
    except Exception as error:  # whatever damaged bytes make the reader raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} is no sidecar of a shard ({reason}); write the shard and the manifest again"
        ) from None


def _read_table_of(folder: str) -> pa.Table:
    try:
        content = open_folder(folder).read_file("manifest.parquet")
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no manifest.parquet; write the shards first: python -m preprocess.run CONFIG.yaml"
        ) from None
    try:
        table = read_table(content)
        table.validate(full=True)  # text that is no text
        return table
    except Exception as error:  # foreign bytes: whatever the reader raises, the file is damaged
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}/manifest.parquet is damaged ({reason}); {_WAY_OUT}") from None


def _facts(schema: pa.Schema, where: str) -> dict[str, Any]:
    try:
        facts = json.loads((schema.metadata or {})[METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        facts = None
    lacking = {"format_version", *_FACTS} - set(facts if isinstance(facts, dict) else ())
    if not isinstance(facts, dict) or lacking:
        raise InputError(f"{where} holds no {METADATA_KEY.decode()} metadata, so it is no manifest; {_WAY_OUT}")
    if facts["format_version"] != FORMAT_VERSION:
        raise InputError(f"{where} has format {facts['format_version']}, this code reads {FORMAT_VERSION}")
    return facts
