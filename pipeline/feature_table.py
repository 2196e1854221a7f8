"""A Parquet table of features that grows batch by batch and survives interruptions.

    table = FeatureTable.open(Path("features.parquet"), facts={"model": "0a1b..."})
    if "a.mp4" not in table:
        table.add(["a.mp4"], features_BD)
    table.close(["a.mp4"])

Parts lie in `features.parquet.parts/` until `close` joins them; each appears under its name only when it is whole.
Rows are path (string), feature (D float32); the facts are in the schema metadata, and rows of other facts are refused.
"""

import json
import shutil
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError

METADATA_KEY = b"clip_vip_features"


class FeatureTable:
    """The rows of one output file, those of its unjoined parts included."""

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        """An empty table; `open` also reads what is there."""
        self.path = path
        self._facts = facts
        self._parts_folder = path.with_name(path.name + ".parts")
        self._tables: list[pa.Table] = []
        self._known: set[str] = set()

    @classmethod
    def open(cls, path: Path, facts: dict[str, str]) -> Self:
        """The table at `path` with every row written so far. InputError when they were made with other facts."""
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: no folder {path.parent}")
        table = cls(path, facts)
        for file in [path, *sorted(table._parts_folder.glob("*.parquet"))]:
            if file.exists():
                table._append(_read(file, facts))
        return table

    def __contains__(self, path: str) -> bool:
        return path in self._known

    def add(self, paths: list[str], features_BD: NDArray[np.float32]) -> None:
        """Publish a batch of rows."""
        values = pa.array(features_BD.reshape(-1), pa.float32())
        columns = {"path": pa.array(paths), "feature": pa.FixedSizeListArray.from_arrays(values, features_BD.shape[1])}
        rows = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(self._facts)})
        self._parts_folder.mkdir(exist_ok=True)
        number = len(list(self._parts_folder.glob("*.parquet")))
        _publish(rows, self._parts_folder / f"{number:08d}.parquet")
        self._append(rows)

    def close(self, order: list[str]) -> int:
        """Join everything into the output, rows of `order` first and in that order; returns the number of rows."""
        if not self._tables:
            return 0
        joined = pa.concat_tables(self._tables)
        places = {path: place for place, path in enumerate(order)}
        keys = [places.get(path, len(places)) for path in joined["path"].to_pylist()]
        joined = joined.take(pa.array(np.argsort(keys, kind="stable")))
        _publish(joined, self.path)
        shutil.rmtree(self._parts_folder, ignore_errors=True)
        return int(joined.num_rows)

    def _append(self, rows: pa.Table) -> None:
        paths = rows["path"].to_pylist()
        fresh = [path not in self._known for path in paths]  # a crash between join and clean-up leaves rows twice
        self._tables.append(rows.filter(pa.array(fresh)))
        self._known.update(paths)


def _read(file: Path, facts: dict[str, str]) -> pa.Table:
    try:
        rows = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file} is not a table of features: {error}; choose another --out") from None
    found = json.loads((rows.schema.metadata or {}).get(METADATA_KEY, b"null"))
    if found != facts:
        raise InputError(f"{file} was made with {found}, this run is {facts}; choose another --out")
    return rows


def _publish(rows: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(rows, temporary)
    temporary.replace(path)
