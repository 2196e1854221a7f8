"""Rows of a Parquet file as dicts of plain Python values, in bounded memory.

for row in parquet_rows(path): ...       # dict | BadRow
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DISK_TROUBLE, InputError
from pipeline.text_files import HEAD_BYTES, not_utf8_text
from preprocess.csv_rows import BadRow


def parquet_rows(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of `path`. What is no Parquet, or damaged, is an `InputError`."""
    number = 0
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
        if not head.startswith(b"PAR1"):
            raise InputError(f"{path} {not_utf8_text(head) or 'is not Parquet, whatever its name says'}")
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=4096):
                yield from _parquet_batch(batch, path, number)
                number += batch.num_rows
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
            raise
        problem = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"cannot read {path} as Parquet: {problem}; download it again") from None


def _parquet_batch(batch: pa.RecordBatch, path: Path, before: int) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch. Binary columns, as some writers store text, are read as UTF-8; of times a microsecond is
    the finest part, and a row that Python cannot hold (a time of year 10,000) is a bad one."""
    columns = [_plain_column(batch.column(index)) for index in range(batch.num_columns)]
    plain = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    try:
        yield from plain.to_pylist()
    except (ValueError, OverflowError):
        for index in range(plain.num_rows):
            try:
                yield plain.slice(index, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield BadRow(f"{path.name}: row {before + index + 1}", str(error))


def _plain_column(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain_column(column.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        texts = [None if value is None else value.decode("utf-8", "replace") for value in column.to_pylist()]
        return pa.array(texts, type=pa.large_string())
    if getattr(kind, "unit", "") == "ns":  # Python's times have microseconds
        coarse = {"time64": pa.time64("us"), "duration": pa.duration("us")}
        name = str(kind).partition("[")[0]
        return column.cast(coarse.get(name, pa.timestamp("us", getattr(kind, "tz", None))), safe=False)
    return column
