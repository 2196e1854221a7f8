"""Features from tables: our own, exported and read back, give byte-equal reports; anyone else's are checked first."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import evaluate
from pipeline.errors import InputError
from pipeline.evaluate import main
from pipeline.evaluation import page, retrieval
from tests.pipeline.evaluation.painted import NUM_CLIPS, TABLE, PaintedModel, PaintedReader, right_texts, write_queries


@pytest.fixture
def painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run and the config of the painted set, re-scored in all ways, with minimal pairs."""
    monkeypatch.setattr(retrieval, "ClipReader", PaintedReader)
    monkeypatch.setattr(page, "ClipReader", PaintedReader)
    monkeypatch.setattr(evaluate, "load_model", lambda path: PaintedModel())
    texts = right_texts() | {"c1": "2", "c2": ["1", "1 3"], "c7": "2 7"}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"clip_id": "c3", "text": "3", "distractor": "4 5"}\n')
    config = {
        "shards": str(tmp_path),
        "queries": str(write_queries(tmp_path / "queries.jsonl", texts)),
        "pairs": {"count": str(pairs)},
        "num_frames": 4,
        "rescoring": ["dsl_official", "dsl", "qb_norm"],
        "query_bank": str(write_queries(tmp_path / "texts.jsonl", {"c1": "1 2", "c3": "4"})),
    }
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"sets": {"painted": config}, "device": "cpu"}))
    (tmp_path / "run").mkdir()
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".parquet"}


def features(folder: Path, *words: str) -> int:
    tables = [str(folder / f"{side}.parquet") for side in ("videos", "texts")]
    return main(["features", *tables, str(folder / "set.yaml"), f"output={folder / 'given'}", *words])


def write(file: Path, /, **columns: Any) -> None:
    pq.write_table(pa.table(columns), file)


def write_both(folder: Path, scale: float = 1.0, dtype: Any = np.float32) -> None:
    """The features of the painted encoder, as somebody else would write them."""
    numbers = range(1, NUM_CLIPS)
    write(
        folder / "videos.parquet",
        clip_id=[f"c{number}" for number in numbers],
        embedding=[(TABLE[number].numpy() * scale).astype(dtype) for number in numbers],
    )
    texts = [str(number) for number in numbers] + ["1 3", "2 7", "4 5", "1 2"]
    sums = [TABLE[[int(word) for word in text.split()]].sum(0) for text in texts]
    vectors = [((value / value.norm()).numpy() * scale).astype(dtype) for value in sums]
    write(folder / "texts.parquet", text=texts, feature=vectors)


@pytest.mark.parametrize("broken", [frozenset(), frozenset({"c4"})])
def test_exported_and_read_back(painted: Path, monkeypatch: pytest.MonkeyPatch, broken: frozenset[str]) -> None:
    monkeypatch.setattr(PaintedReader, "broken", broken)
    words = [str(painted / "set.yaml"), "sets.painted.max_missing_fraction=0.2"]
    main([str(painted / "run"), *words, "export_features=true"])
    written = painted / "run" / "evaluation"
    tables = [str(written / f"painted_{side}.parquet") for side in ("videos", "texts")]
    assert main(["features", *tables, *words, f"output={painted / 'given'}"]) == 0
    assert len(content(written)) == 4
    assert content(painted / "given") == content(written)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, np.float32), (7.5, np.float64), (1.0, np.float16)])
def test_another_model_has_the_same_numbers(painted: Path, scale: float, dtype: Any) -> None:
    """Length and precision of the vectors do not matter beyond their rounding; the shards need not be there."""
    write_queries(
        painted / "queries.jsonl", right_texts() | {"c1": "2", "c2": "1"}
    )  # no exact ties to be rounded apart
    main([str(painted / "run"), str(painted / "set.yaml")])
    write_both(painted, scale, dtype)
    assert features(painted, "name=other", "sets.painted.shards=/nowhere") == 0
    ours, theirs = (
        (folder / "painted.csv").read_text() for folder in (painted / "run" / "evaluation", painted / "given")
    )
    assert ours == theirs
    assert "other" in (painted / "given" / "painted.md").read_text()


def test_texts_by_query_and_videos_by_path(painted: Path) -> None:
    write_both(painted)
    by_text = dict(
        zip(*(pq.read_table(painted / "texts.parquet")[name].to_pylist() for name in ("text", "feature")), strict=True)
    )
    queries = {"q0": "2", "q1#0": "1", "q1#1": "1 3", "q6": "2 7"}
    queries |= {f"q{number - 1}": str(number) for number in range(3, NUM_CLIPS) if number != 7}
    write(painted / "texts.parquet", query_id=list(queries), feature=[by_text[text] for text in queries.values()])
    videos = pq.read_table(painted / "videos.parquet")
    paths = [f"videos/{name}.mp4" for name in videos["clip_id"].to_pylist()]
    write(painted / "videos.parquet", path=paths, feature=videos["embedding"])
    content_of_set = yaml.safe_load((painted / "set.yaml").read_text())
    del content_of_set["sets"]["painted"]["pairs"]
    (painted / "set.yaml").write_text(yaml.safe_dump(content_of_set))
    words = ["sets.painted.rescoring=[dsl]", "sets.painted.query_bank=null"]
    assert features(painted, *words) == 0
    main([str(painted / "run"), str(painted / "set.yaml"), *words])
    ours, theirs = ((painted / place / "painted.csv").read_text() for place in ("run/evaluation", "given"))
    assert ours == theirs


def _videos(**changes: Any) -> dict[str, Any]:
    number = np.arange(1, NUM_CLIPS)
    return {"clip_id": [f"c{n}" for n in number], "feature": [TABLE[n].numpy() for n in number]} | changes


def _with(place: int, value: Any) -> dict[str, Any]:
    rows = _videos()
    rows["feature"][place] = value
    return rows


BAD = {
    "a video without a row": ({name: rows[1:] for name, rows in _videos().items()}, "lacks 1 of 12 videos.*'c1'"),
    "a video twice": (_videos(clip_id=["c1", "c1", *(f"c{n}" for n in range(3, NUM_CLIPS))]), "'c1' stands in rows 0"),
    "NaN": (_with(2, TABLE[3].numpy() * np.nan), "'c3' holds NaN"),
    "infinite": (_with(2, np.full(16, np.inf, np.float32)), "'c3' holds NaN or Inf"),
    "zero": (_with(2, np.zeros(16, np.float32)), "'c3' is zero"),
    "ragged": (_with(2, TABLE[3, :5].numpy()), "'c3' has 5 numbers, 'c1' has 16"),
    "null": (_with(2, None), "'c3' has no numbers"),
    "another width": (_videos(feature=[TABLE[n, :8].numpy() for n in range(1, NUM_CLIPS)]), "8 numbers, .* of 16"),
    "no feature": ({"clip_id": ["c1"], "size": [3]}, "needs rows of clip_id .* has 1 rows of clip_id, size"),
    "no list": ({"clip_id": ["c1"], "feature": ["1, 2"]}, "not lists of numbers"),
    "no rows": ({"clip_id": pa.array([], pa.string()), "feature": pa.array([], pa.list_(pa.float32()))}, "0 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named_in_one_line(painted: Path, case: str) -> None:
    columns, message = BAD[case]
    write_both(painted)
    write(painted / "videos.parquet", **columns)
    with pytest.raises(InputError, match=message) as caught:
        features(painted)
    assert "\n" not in str(caught.value) and "videos.parquet" in str(caught.value)
    assert not list((painted / "given").glob("*"))


def test_other_wrong_input(painted: Path) -> None:
    write_both(painted)
    texts = pq.read_table(painted / "texts.parquet")
    write(
        painted / "texts.parquet",
        text=[*texts["text"].to_pylist(), "5"],
        feature=[*texts["feature"].to_pylist(), TABLE[6].tolist()],
    )
    with pytest.raises(InputError, match="different vectors of the same text '5'"):
        features(painted)
    (painted / "texts.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"texts.parquet cannot be read as Parquet"):
        features(painted)
    with pytest.raises(InputError, match="give one table of videos and one of texts"):
        main(["features", str(painted / "videos.parquet"), str(painted / "set.yaml")])
    with pytest.raises(InputError, match="are for checkpoints"):
        features(painted, "export_features=true")
