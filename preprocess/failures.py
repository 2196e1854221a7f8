"""The failures table: a row per clip that was not delivered, with its reason (`FAILURE_COLUMNS`).

with FailureTable(path, shard="shards/000012") as table:
    table.add(failure)
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.format import FAILURE_COLUMNS, FORMAT_VERSION
from preprocess.records import Failure

_ROWS_PER_GROUP = 50_000

FAILURE_SCHEMA = pa.schema(
    [(name, pa.type_for_alias(kind)) for name, kind in FAILURE_COLUMNS.items()],
    metadata={b"format_version": str(FORMAT_VERSION).encode()},
)


class FailureTable:
    """Writes one failures file, row group by row group."""

    def __init__(self, path: Path, shard: str) -> None:
        self._shard = shard
        self._rows: list[dict[str, str]] = []
        self._writer = pq.ParquetWriter(path, FAILURE_SCHEMA)
        self.num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left; a second time does nothing."""
        if self._writer.is_open:
            self._flush()
            self._writer.close()

    def add(self, failure: Failure) -> None:
        self._rows.append(failure.row(self._shard))
        self.num_rows += 1
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=FAILURE_SCHEMA))
            self._rows.clear()
