"""Gaps that are known beforehand: none between halves of one source, all between sources that lie apart."""

import json
from collections import Counter
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.analysis import domain_gap
from pipeline.analysis.domain_gap import DomainGapConfig, interval, main, measure, nmi, project
from pipeline.analysis.pools import Place, read_pool
from pipeline.encode import CLIPViP
from pipeline.errors import InputError
from tests.pipeline.data.conftest import Clip, ShardSet
from tests.pipeline.tiny import architecture, model_config


def cloud(centre: int, num: int = 300, spread: float = 0.05, width: int = 8, seed: int = 0) -> np.ndarray:
    """Unit vectors around one axis."""
    rng = np.random.default_rng([seed, centre])
    points = rng.normal(0, spread, (num, width)) + np.eye(width)[centre]
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def config(**changes: Any) -> DomainGapConfig:
    return DomainGapConfig.model_validate({"sources": {"a": "x", "b": "y"}, "sample_size": 200, "seeds": 3} | changes)


def test_separated_sources_have_a_gap_of_one_and_halves_of_one_source_none() -> None:
    apart = measure({"a": cloud(0), "b": cloud(1)}, config(clusters=[2]))
    assert apart["pairs"]["a / b"].mean == pytest.approx(1.0, abs=0.02)
    mixed = np.random.default_rng(0).permutation(np.concatenate([cloud(0, 600), cloud(1, 600)]))
    together = measure({"a": mixed[:600], "b": mixed[600:]}, config(sample_size=600, clusters=[2, 4]))
    for found in (together["pairs"]["a / b"], *together["together"].values()):
        assert found.mean < 0.02 and found.shuffled < 0.02
        assert found.low <= found.mean <= found.high


def test_all_sources_together_are_found_at_their_own_number_of_clusters() -> None:
    found = measure({name: cloud(number) for number, name in enumerate("abcd")}, config(clusters=[2, 4, 8]))
    gaps = {k: value.mean for k, value in found["together"].items()}
    assert gaps["4"] == pytest.approx(1.0, abs=0.02)
    assert max(gaps["2"], gaps["8"]) < 0.95


@pytest.mark.parametrize("average", ["arithmetic", "geometric", "min", "max"])
def test_nmi_is_its_definition(average: Any) -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 3, 500), rng.integers(0, 4, 500).astype(np.int32)
    other[one == 1] = 2

    def entropy(values: list[Any]) -> float:
        return -sum(count / 500 * log(count / 500) for count in Counter(values).values())

    mutual = entropy(list(one)) + entropy(list(other)) - entropy(list(zip(one, other, strict=True)))
    x, y = entropy(list(one)), entropy(list(other))
    mean = {"arithmetic": (x + y) / 2, "geometric": (x * y) ** 0.5, "min": min(x, y), "max": max(x, y)}[average]
    assert nmi(one, other, average) == pytest.approx(mutual / mean, abs=1e-9)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    bounds = [interval(list(0.5 + 0.02 * rng.normal(size=5))) for _ in range(2000)]
    assert np.mean([low <= 0.5 <= high for low, high in bounds]) == pytest.approx(0.95, abs=0.02)


def test_lengths_matter_only_without_normalisation() -> None:
    same = cloud(0, spread=0.5)
    pools = {"short": same[:150], "long": 50 * same[150:]}
    assert measure(pools, config(clusters=[2]))["pairs"]["short / long"].mean < 0.05
    assert measure(pools, config(clusters=[2], normalize=False))["pairs"]["short / long"].mean > 0.3


def test_the_projection_keeps_what_lies_apart_apart() -> None:
    points = project({"a": cloud(0), "b": cloud(1)}, 100)
    assert {name: len(of) for name, of in points.items()} == {"a": 100, "b": 100}
    between = np.linalg.norm(points["a"].mean(0) - points["b"].mean(0))
    assert between == pytest.approx(2**0.5, abs=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CLIPViP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPViP.from_config(model_config(architecture=architecture(vocabulary=49408, text_width=8))).eval()


def rows(features: np.ndarray) -> set[bytes]:
    return {row.round(4).tobytes() for row in features}


def test_every_kind_of_source_gives_the_features_of_its_items(model: CLIPViP, tmp_path: Path) -> None:
    written = ShardSet(tmp_path / "set")
    written.add_shard([Clip(number, caption="seen" if number % 2 else None) for number in range(8)])
    texts = ["a dog", "line\u2028separated", "", 'a cat, "quoted"']
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"sentence": texts}), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text(
        'sentence\na dog\n"line\u2028separated"\n""\n"a cat, ""quoted"""\n', encoding="utf-8"
    )
    expected = rows(model.encode_texts([text for text in texts if text]).numpy())
    places = ["t.txt", "t.jsonl:sentence", "t.parquet:sentence", "t.csv:sentence"]
    for place in places:
        assert rows(read_pool(f"{tmp_path}/{place}", 100, model, np.random.default_rng(0))) == expected, place

    captions = read_pool(f"{tmp_path}/set:caption", 100, model, np.random.default_rng(0))
    assert rows(captions) == rows(model.encode_texts([f"seen {number}" for number in (1, 3, 5, 7)]).numpy())
    assert len(read_pool(f"{tmp_path}/set:subtitle", 3, model, np.random.default_rng(0))) == 3
    videos = read_pool(f"{tmp_path}/set:video", 100, model, np.random.default_rng(0))
    assert videos.shape == (8, 16) and len(rows(videos)) > 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("subtitles", "captions", "queries")):
        vectors = cloud(min(number, 1), seed=number)
        pq.write_table(pa.table({"id": np.arange(300), "feature": list(vectors)}), tmp_path / f"{name}.parquet")
    words = [f"sources.{name}={tmp_path}/{name}.parquet" for name in ("subtitles", "captions", "queries")]
    assert main([*words, "sample_size=100", "seeds=2", f"output={tmp_path / 'gap'}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " / " in line]
    assert [line.split(" | ")[0] for line in lines] == [
        "| subtitles / captions", "| subtitles / queries", "| captions / queries"]  # fmt: skip
    found = json.loads((tmp_path / "gap/domain_gap.json").read_text())
    assert found["pairs"]["captions / queries"]["mean"] < 0.1 < 0.9 < found["pairs"]["subtitles / queries"]["mean"]
    with Image.open(tmp_path / "gap/domain_gap.png") as picture:
        assert picture.width == 1200


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"a": "nowhere.txt"}, "there is no source .*nowhere.txt"),
        ({"a": "t.txt"}, "has to be encoded: name a model"),
        ({"a": "."}, "is a folder: say which part"),
        ({"a": "f16.parquet"}, "different lengths"),
        ({"a": "nan.parquet"}, "zero, NaN or Inf"),
        ({"a": "few.parquet"}, "has 3 items"),
    ],
)
def test_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: dict[str, str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("a dog\n")
    tables = {"f8": cloud(0), "f16": cloud(0, width=16), "few": cloud(0, num=3), "nan": cloud(0) * np.nan}
    for name, vectors in tables.items():
        pq.write_table(pa.table({"feature": list(vectors)}), f"{name}.parquet")
    words = [f"sources.{name}={place}" for name, place in sources.items()]
    with pytest.raises(InputError, match=message):
        main([*words, "sources.z=f8.parquet"])


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_gap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"clip-vip-pipeline\[analysis\]"):
        main(["sources.a=x", "sources.b=y"])


def test_a_colon_in_a_path_is_no_field(tmp_path: Path) -> None:
    (tmp_path / "a:b.txt").write_text("x\n")
    assert Place.parse(f"{tmp_path}/a:b.txt").field == ""
    assert [Place.parse(f"{tmp_path}/a:b.txt:c").field] == ["c"]
