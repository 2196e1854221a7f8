"""Features of videos and texts as two tables, from any model: read and ranked, or written for others.

    videos.parquet   clip_id (or video_id, path, id), feature: a list of D floats, 16, 32 or 64 bits
    texts.parquet    text, or query_id, or both; feature

    tables = read_tables(Path("videos.parquet"), Path("texts.parquet"))
    found = retrieve_given(tables, config)          # a Retrieval, as if a model had been asked
    write_tables(found, bank, facts, folder)        # what `read_tables` reads

Similarity is the cosine: a vector whose length is not 1 within UNIT_TOLERANCE is scaled to it, the others are taken bit
for bit. The tables hold every video and every text that the set asks for, each id once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.evaluation.directions import rank_both_ways
from pipeline.evaluation.protocol import Questions, RetrievalSetConfig, read_questions, without_videos
from pipeline.evaluation.retrieval import Retrieval

FEATURE_COLUMNS = ("feature", "features", "embedding", "embeddings", "vector")
VIDEO_COLUMNS = ("clip_id", "video_id", "path", "id")
TEXT_COLUMN, QUERY_COLUMN = "text", "query_id"
FACTS_KEY = b"clip_vip_evaluation"
UNIT_TOLERANCE = 1e-3
SAME_TEXT_TOLERANCE = 1e-3
"""Two rows of one text may differ so far in any place: what half precision and batching do."""
NAMED = 3


@dataclass(frozen=True)
class FeatureRows:
    """One table: a row of `features` (float32 [n, D], unit norm) for each id."""

    path: Path
    ids: dict[str, int]
    features: NDArray[np.float32]
    facts: dict[str, Any]
    """What the writer said of them: checkpoint, chosen_by, precision, missing videos. Empty for other models."""

    def rows(self, wanted: Sequence[str], what: str) -> Tensor:
        """[len(wanted), D]. InputError names the first ids that the table lacks."""
        lacking = [name for name in wanted if name not in self.ids]
        if lacking:
            named = ", ".join(repr(name) for name in lacking[:NAMED]) + (", ..." if len(lacking) > NAMED else "")
            raise InputError(f"{self.path} lacks {len(lacking)} of {len(wanted)} {what}: {named}; add a row for each")
        return torch.from_numpy(self.features[[self.ids[name] for name in wanted]])


@dataclass(frozen=True)
class FeatureTables:
    """Both sides of a retrieval set."""

    videos: FeatureRows
    texts: FeatureRows
    texts_by_query: bool
    """The table of texts has no column of texts: its ids are those of the queries."""


def read_tables(videos: Path, texts: Path) -> FeatureTables:
    """Both tables, checked: ids once, vectors of one length, finite and not zero. InputError names file and row."""
    video_rows, _ = _read(videos, VIDEO_COLUMNS)
    text_rows, column = _read(texts, (TEXT_COLUMN, QUERY_COLUMN))
    widths = video_rows.features.shape[1], text_rows.features.shape[1]
    if widths[0] != widths[1]:
        raise InputError(
            f"{videos} holds vectors of {widths[0]} numbers, {texts} of {widths[1]}; give both from one model"
        )
    return FeatureTables(_with_stems(video_rows), text_rows, column == QUERY_COLUMN)


def retrieve_given(
    tables: FeatureTables, config: RetrievalSetConfig, *, device: torch.device | str = "cpu"
) -> Retrieval:
    """Rank one set by features that are given. InputError where a video or a text has none. Collective."""
    asked = read_questions(config)
    known_missing = tables.videos.facts.get("missing", {})
    missing = {clip_id: known_missing[clip_id] for clip_id in asked.clip_ids if clip_id in known_missing}
    questions = without_videos(asked, missing)
    videos_VD = tables.videos.rows(questions.clip_ids, f"videos of set {config.name}")
    texts_ND = _texts_by_query(tables.texts, questions) if tables.texts_by_query else _texts(tables.texts, questions)
    t2v, v2t = rank_both_ways(texts_ND, videos_VD, questions, block_size=config.block_size, device=device)
    return Retrieval(config, questions, len(asked.query_ids), missing, texts_ND, videos_VD, t2v, v2t)


def bank_features(tables: FeatureTables, texts: Sequence[str]) -> Tensor:
    """Features of the texts of a query bank, out of the table of texts."""
    if tables.texts_by_query:
        raise InputError(f"{tables.texts.path} needs a column {TEXT_COLUMN!r} for the texts of the query bank")
    return tables.texts.rows(texts, "texts of the query bank")


def write_tables(
    found: Retrieval, bank: tuple[Sequence[str], Tensor] | None, facts: dict[str, Any], folder: Path
) -> list[Path]:
    """{set}_videos.parquet and {set}_texts.parquet, float32; `facts` and the missing videos lie in their metadata."""
    texts = dict(zip(found.questions.texts, found.texts_ND, strict=True))
    for text, feature in zip(*bank, strict=True) if bank is not None else ():
        texts.setdefault(text, feature)
    metadata = {FACTS_KEY: json.dumps(facts | {"missing": found.missing})}
    paths = []
    for side, column, ids, features in (
        ("videos", "clip_id", found.questions.clip_ids, found.videos_VD),
        ("texts", TEXT_COLUMN, list(texts), torch.stack(list(texts.values()))),
    ):
        values = pa.array(features.numpy().reshape(-1), pa.float32())
        rows = {column: pa.array(ids), "feature": pa.FixedSizeListArray.from_arrays(values, features.shape[1])}
        path = folder / f"{found.config.name}_{side}.parquet"
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(pa.table(rows).replace_schema_metadata(metadata), temporary)
        temporary.replace(path)
        paths.append(path)
    return paths


def _texts(rows: FeatureRows, questions: Questions) -> Tensor:
    return rows.rows(questions.texts, "texts")


def _texts_by_query(rows: FeatureRows, questions: Questions) -> Tensor:
    """Of every text the features of its first query. Distractors of minimal pairs have no query, thus no features."""
    if questions.pairs:
        raise InputError(f"{rows.path} needs a column {TEXT_COLUMN!r}: minimal pairs have texts that no query has")
    of_queries_QD = rows.rows(questions.query_ids, "queries")
    texts_ND = torch.zeros(len(questions.texts), of_queries_QD.shape[1])
    # Backwards, so that the first query of a text comes last and stays. Texts of missing videos keep zeros.
    for query in reversed(range(len(questions.query_ids))):
        texts_ND[int(questions.text_of_query[query])] = of_queries_QD[query]
    apart_Q = (of_queries_QD - texts_ND[torch.from_numpy(questions.text_of_query)]).abs().amax(1)
    if float(apart_Q.max()) > SAME_TEXT_TOLERANCE:
        query = int(apart_Q.argmax())
        text = questions.texts[questions.text_of_query[query]]
        raise InputError(f"{rows.path}: query {questions.query_ids[query]!r} has another vector than the same {text!r}")
    return texts_ND


def _read(path: Path, id_columns: Sequence[str]) -> tuple[FeatureRows, str]:
    """The rows of a table, and the column that their ids are from: the first of `id_columns` that is there."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:150]}") from None
    id_column = next((name for name in id_columns if name in table.column_names), None)
    feature_column = next((name for name in FEATURE_COLUMNS if name in table.column_names), None)
    if id_column is None or feature_column is None or not table.num_rows:
        raise InputError(
            f"{path} needs rows of {' or '.join(id_columns)}, and feature; it has {table.num_rows} rows of "
            f"{', '.join(table.column_names) or 'nothing'}"
        )
    ids = [str(name) for name in table[id_column].to_pylist()]
    features = _unit_rows(path, ids, _matrix(path, ids, table[feature_column]))
    facts = json.loads((table.schema.metadata or {}).get(FACTS_KEY, b"{}"))
    return FeatureRows(path, _numbered(path, id_column, ids, features), features, facts), id_column


def _matrix(path: Path, ids: list[str], column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of lists as float32 [n, D]."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise InputError(f"{path}: the features are {kind}, not lists of numbers")
    lengths = pc.list_value_length(column).to_pylist()
    width = lengths[0]
    for name, length in zip(ids, lengths, strict=True):
        if length is None or length == 0 or length != width:
            raise InputError(f"{path}: {name!r} has {length or 'no'} numbers, {ids[0]!r} has {width or 'none'}")
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32).reshape(len(ids), -1)
    return matrix


def _unit_rows(path: Path, ids: list[str], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows at unit length; those that have it stay as they are."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1)
    unusable = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(unusable):
        name, length = ids[unusable[0]], lengths[unusable[0]]
        what = "is zero" if length == 0 else "holds NaN or Inf"
        raise InputError(f"{path}: the vector of {name!r} {what}, as are {len(unusable) - 1} others; encode them again")
    off = np.abs(lengths - 1) > UNIT_TOLERANCE
    scaled = features.copy()
    scaled[off] = features[off] / lengths[off, None]
    return scaled


def _numbered(path: Path, column: str, ids: list[str], features: NDArray[np.float32]) -> dict[str, int]:
    """id -> row. A text that stands in several rows (one a query) is one, if its vectors agree."""
    numbers: dict[str, int] = {}
    for row, name in enumerate(ids):
        first = numbers.setdefault(name, row)
        if first != row and column != TEXT_COLUMN:
            raise InputError(f"{path}: {column} {name!r} stands in rows {first} and {row}; every id has one row")
        if first != row and np.abs(features[first] - features[row]).max() > SAME_TEXT_TOLERANCE:
            raise InputError(f"{path}: rows {first} and {row} have different vectors of the same text {name!r}")
    return numbers


def _with_stems(rows: FeatureRows) -> FeatureRows:
    """Videos may be named by their paths: `videos/video7010.mp4` is also `video7010`, where only one has that stem."""
    stems: dict[str, int] = {}
    twice: set[str] = set()
    for name, row in rows.ids.items():
        stem = Path(name).stem
        if stem in stems:
            twice.add(stem)
        stems[stem] = row
    extra = {stem: row for stem, row in stems.items() if stem not in twice and stem not in rows.ids}
    return FeatureRows(rows.path, rows.ids | extra, rows.features, rows.facts)
