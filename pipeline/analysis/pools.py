"""Named sources of texts or videos, and a random pool of features of each.

    path                         what is taken
    data/shards/hdvila:subtitle  subtitles of a shard set (also :caption, :video)
    queries.jsonl:text           one field of JSON lines; of .csv, .tsv and .parquet one column
    sentences.txt                a text a line
    features.parquet             vectors that lie there already: a column feature, embedding or vector

    pool = read_pool("data/shards/hdvila:subtitle", 2000, model, rng)      # float32 [n, D]

Rows are drawn without replacement; empty texts are passed over. A source of any size costs no more than its pool: shard
sets and Parquet are read at random places, other files once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.data.cache import open_folder
from pipeline.data.frames import DamagedMedia, open_clip_bytes, uniform_indices
from pipeline.data.index import Manifest
from pipeline.data.manifest_file import manifest_facts
from pipeline.data.sample import Sample, open_block, read_block
from pipeline.data.storage import DamagedSample
from pipeline.data.transform import WHOLE, FrameFit
from pipeline.encode import CLIPViP
from pipeline.errors import InputError
from pipeline.text_files import read_json_rows, read_text_lines

Features = NDArray[np.float32]
VECTOR_COLUMNS = ("feature", "features", "embedding", "embeddings", "vector")
OF_SHARDS = ("subtitle", "caption", "video")
VIDEOS_AT_ONCE = 16


@dataclass(frozen=True)
class Place:
    """Where a source lies: a path, and the field of its rows that is taken (empty: the only one)."""

    path: Path
    field: str
    kind: Literal["shards", "table", "features"]

    @classmethod
    def parse(cls, text: str) -> "Place":
        """From `path` or `path:field`. InputError where there is nothing."""
        path, field = Path(text), ""
        if not path.exists():
            before, _, field = text.rpartition(":")
            path = Path(before or text)
        if not path.exists():
            raise InputError(f"there is no source {text}; give a shard set, a .jsonl, .csv, .parquet or .txt file")
        if path.is_dir():
            if field not in OF_SHARDS:
                raise InputError(
                    f"{path} is a folder: say which part of its clips, as {path}:{' or :'.join(OF_SHARDS)}"
                )
            return cls(path, field, "shards")
        is_vectors = path.suffix == ".parquet" and (field or _vector_column(path)) in VECTOR_COLUMNS
        return cls(path, field, "features" if is_vectors else "table")

    @property
    def needs_model(self) -> bool:
        """Whether features must be computed."""
        return self.kind != "features"


def read_pool(source: str, size: int, model: CLIPViP | None, rng: np.random.Generator) -> Features:
    """Features [n, D] of at most `size` random items of a source. InputError where it holds none."""
    place = Place.parse(source)
    if place.kind == "features":
        features = _vectors(place, size, rng)
    elif model is None:
        raise InputError(f"{source} has to be encoded: name a model, as model=runs/b32")
    elif place.kind == "table":
        texts = _table_texts(place)
        chosen = rng.permutation(len(texts))[:size]
        features = model.encode_texts([texts[number] for number in sorted(chosen)]).numpy()
    else:
        features = _of_shards(place, size, model, rng)
    if not len(features):
        raise InputError(f"{source} holds nothing that can be used: no {place.field or 'text'} that is not empty")
    return features


def _vector_column(path: Path) -> str:
    names = pq.read_schema(path).names
    return next((name for name in VECTOR_COLUMNS if name in names), "")


def _vectors(place: Place, size: int, rng: np.random.Generator) -> Features:
    column = place.field or _vector_column(place.path)
    values = pq.read_table(place.path, columns=[column])[column]
    chosen = np.sort(rng.permutation(len(values))[:size])
    rows = values.take(pa.array(chosen)).to_pylist()
    if len({len(row or ()) for row in rows}) > 1:
        raise InputError(f"{place.path}: {column} holds vectors of several lengths")
    features = np.array(rows, dtype=np.float32)
    if not np.isfinite(features).all() or not features.any(axis=1).all():
        raise InputError(f"{place.path}: {column} holds vectors that are zero, NaN or Inf")
    return features


def _table_texts(place: Place) -> list[str]:
    """All texts of a file that are not empty."""
    suffix = place.path.suffix.lower()
    if suffix == ".txt":
        return [line for _, line in read_text_lines(place.path)]
    if suffix == ".jsonl":
        return list(_json_texts(place))
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"{place.path} is no .txt, .jsonl, .csv, .tsv or .parquet file")
    try:
        if suffix == ".parquet":
            table = pq.read_table(place.path)
        else:
            delimiter = "\t" if suffix == ".tsv" else ","
            options = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            table = pyarrow.csv.read_csv(place.path, parse_options=options)
    except pa.ArrowException as error:
        raise InputError(f"{place.path} cannot be read: {' '.join(str(error).split())[:150]}") from None
    column = place.field or "text"
    if column not in table.column_names:
        raise InputError(f"{place.path} has no column {column!r}; it has {', '.join(table.column_names)}")
    return [text for text in map(str, filter(None, table[column].to_pylist())) if text.strip()]


def _json_texts(place: Place) -> Iterator[str]:
    field = place.field or "text"
    for where, row in read_json_rows(place.path):
        if field not in row:
            raise InputError(f"{where} has no field {field!r}; it has {', '.join(row)}")
        values = row[field] if isinstance(row[field], list) else [row[field]]
        yield from (value for value in values if isinstance(value, str) and value.strip())


def _of_shards(place: Place, size: int, model: CLIPViP, rng: np.random.Generator) -> Features:
    samples = _samples(place, rng)
    if place.field == "video":
        return _encode_videos(samples, size, model)
    texts: list[str] = []
    for sample in samples:
        text = sample.subtitle if place.field == "subtitle" else sample.caption
        if text:
            texts.append(text)
        if len(texts) == size:
            break
    return model.encode_texts(texts).numpy()


def _samples(place: Place, rng: np.random.Generator) -> Iterator[Sample]:
    """The samples of a shard set in random order; damaged ones are passed over."""
    folder = str(place.path)
    facts, manifest, storage = manifest_facts(folder), Manifest.open(folder), open_folder(folder)
    for row in rng.permutation(manifest.num_samples):
        (where,) = manifest.places(np.array([row]))
        try:
            yield open_block(
                read_block(storage, where),
                where,
                subtitle_from=facts["subtitle_from"],
                caption_from=facts["caption_from"],
            )
        except DamagedSample:
            continue


def _encode_videos(samples: Iterator[Sample], size: int, model: CLIPViP) -> Features:
    fit = FrameFit(model.image_size_px, "squash")
    features: list[Features] = []
    waiting: list[NDArray[np.uint8]] = []
    num_read = 0
    for sample in samples:
        if num_read == size:
            break
        try:
            waiting.append(_frames(sample, model, fit))
        except DamagedMedia:
            continue
        num_read += 1
        if len(waiting) == VIDEOS_AT_ONCE:
            features.append(_encoded(waiting, model))
            waiting = []
    if waiting:
        features.append(_encoded(waiting, model))
    return np.concatenate(features) if features else np.zeros((0, model.architecture.embed_dim), np.float32)


def _frames(sample: Sample, model: CLIPViP, fit: FrameFit) -> NDArray[np.uint8]:
    """uint8 [T, S, S, 3]: the frames that evaluation takes."""
    clip = open_clip_bytes(sample.media, sample.ext)
    frames = clip.read(uniform_indices(clip.num_frames, model.num_frames))
    squares = np.empty((len(frames), fit.size_px, fit.size_px, 3), np.uint8)
    for frame, square in zip(frames, squares, strict=True):
        fit.place(frame, WHOLE, square)
    return squares


def _encoded(videos: Sequence[NDArray[np.uint8]], model: CLIPViP) -> Features:
    video_BTCHW = torch.from_numpy(np.stack(videos)).permute(0, 1, 4, 2, 3)
    features: Features = model.encode_frames(video_BTCHW).numpy()
    return features
