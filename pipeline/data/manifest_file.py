"""`manifest.parquet` as `preprocess` wrote it: the facts of a shard set, and a row per shard.

manifest_facts("data/shards/sample_train")["manifest_hash"]
rows = read_manifest("s3://bucket/train")
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.cache import open_folder
from pipeline.data.format import FORMAT_VERSION, METADATA_KEY
from pipeline.errors import InputError


def manifest_facts(folder: str) -> dict[str, Any]:
    """The facts in manifest.parquet's schema metadata: manifest_hash, num_samples, subtitle_from, caption_from."""
    return _facts(_read_table_of(folder).schema, f"{folder}/manifest.parquet")


def read_manifest(folder: str) -> list[dict[str, Any]]:
    """The rows of manifest.parquet, sorted by shard."""
    return _read_table_of(folder).sort_by("shard").to_pylist()  # type: ignore[no-any-return]


def read_table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file that was read into memory.

    Not by Arrow's threads: one of them may still hold `content` when the interpreter ends, and a Python object that is
    let go of then, outside the main thread, aborts the process.
    """
    return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)


def _read_table_of(folder: str) -> pa.Table:
    try:
        content = open_folder(folder).read_file("manifest.parquet")
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no manifest.parquet; write the shards first: python -m preprocess.run CONFIG.yaml"
        ) from None
    try:
        return read_table(content)
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}/manifest.parquet is damaged ({reason}); merge the set again") from None


def _facts(schema: pa.Schema, where: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
    except (KeyError, ValueError):
        raise InputError(f"{where} holds no {METADATA_KEY.decode()} metadata; write it with preprocess") from None
    if facts["format_version"] != FORMAT_VERSION:
        raise InputError(f"{where} has format {facts['format_version']}, this code reads {FORMAT_VERSION}")
    return facts
