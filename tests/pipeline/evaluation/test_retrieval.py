"""A whole set through a fake reader and encoder: exact N, several ranks, ties, missing videos, pairs, long texts."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from pipeline.errors import InputError, RunError
from pipeline.evaluation import RetrievalSetConfig, evaluate_retrieval, retrieval
from pipeline.evaluation.encoding import tokenize_texts
from pipeline.evaluation.protocol import read_questions
from pipeline.evaluation.report import console_table, csv_table, markdown_table, set_report
from pipeline.evaluation.rescored import rescored_metrics
from pipeline.evaluation.rescoring import RescoreMethod
from pipeline.evaluation.retrieval import retrieve
from pipeline.model.clip_vip import CLIPViP, Features
from pipeline.model.config import ModelConfig
from tests.pipeline.evaluation.painted import (
    BOS,
    EOS,
    NUM_CLIPS,
    PaintedReader,
    Tokenizer,
    encode,
    right_texts,
    write_set,
)
from tests.pipeline.model import tiny


@pytest.fixture(autouse=True)
def _painted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "ClipReader", PaintedReader)


def test_right_pairs_are_found_and_wrong_ones_counted(tmp_path: Path) -> None:
    texts = right_texts() | {"c1": "2", "c2": "1"}
    metrics = evaluate_retrieval(encode, Tokenizer, 8, write_set(tmp_path, texts))
    assert metrics["t2v_r1"] == metrics["v2t_r1"] == 10 / 12
    assert metrics["num_queries"] == metrics["num_queries_asked"] == metrics["num_videos"] == 12


def test_every_caption_of_a_list_is_a_query(tmp_path: Path) -> None:
    """t2v counts each caption; v2t takes a video's best caption, which its other captions do not push back."""
    texts = right_texts() | {"c1": ["1", "1 1", "2"]}
    found = retrieve(encode, Tokenizer, 8, write_set(tmp_path, texts))
    assert found.metrics()["num_queries"] == 14
    assert found.metrics()["t2v_r1"] == 13 / 14
    assert found.v2t.greater.tolist() == [0] * 12
    assert found.questions.query_ids[:3] == ["q0#0", "q0#1", "q0#2"]
    report = set_report(found, checkpoint="x")
    table = [line.split() for line in console_table(report).splitlines()]
    assert [line[-1] for line in table if "->" in line[:2]] == ["14", "12"], "video to text asks for 12 videos' texts"
    lines = [line.split(",") for line in csv_table(report).splitlines()[1:]]
    asked = {line[2]: line[-1] for line in lines}
    assert (asked["t2v_r1"], asked["v2t_r1"], asked["v2t_mnr"], asked["num_videos"]) == ("14", "12", "12", "")


def test_missing_videos_are_named_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PaintedReader, "broken", frozenset({"c3"}))
    texts = right_texts() | {"c77": "77"}
    with pytest.raises(RunError, match=r"2 of 13 videos .* c77 \(not in the shards\), c3 \(unreadable\)"):
        retrieve(encode, Tokenizer, 8, write_set(tmp_path, texts))
    found = retrieve(encode, Tokenizer, 8, write_set(tmp_path, texts, max_missing_fraction=0.2))
    assert found.missing == {"c77": "not in the shards", "c3": "unreadable"}
    assert found.metrics()["t2v_r1"] == 1.0
    report = set_report(found, checkpoint="x")
    assert "N = 11 of 13 queries, 11 videos" in console_table(report)
    assert "c3 (unreadable)" in markdown_table(report)


def test_a_set_of_which_nothing_is_left_is_no_result_whatever_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = frozenset(right_texts())
    monkeypatch.setattr(PaintedReader, "broken", every)
    config = write_set(tmp_path, right_texts(), max_missing_fraction=1.0)
    with pytest.raises(RunError, match=r"12 of 12 videos cannot be used.*\(unreadable\)"):
        retrieve(encode, Tokenizer, 8, config)
    # Videos of pairs alone are left: they are no answer to any query.
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"clip_id": "c0", "text": "1", "distractor": "2"}) + "\n")
    config = write_set(tmp_path, right_texts(), pairs={"motion": pairs}, max_missing_fraction=1.0)
    with pytest.raises(RunError, match=r"no query is left, its videos c1 \(unreadable\)"):
        retrieve(encode, Tokenizer, 8, config)


def test_pairs(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [("c1", "1", "2"), ("c2", "1", "2"), ("c0", "5", "5")]
    pairs.write_text(
        "".join(json.dumps(dict(zip(("clip_id", "text", "distractor"), r, strict=True))) for r in rows[:1])
    )
    lines = [json.dumps({"clip_id": c, "text": t, "distractor": d}) for c, t, d in rows]
    pairs.write_text("\n".join(lines))
    found = retrieve(encode, Tokenizer, 8, write_set(tmp_path, right_texts(), pairs={"motion": pairs}))
    assert found.metrics()["pairs_motion"] == 0.5  # right, wrong, and a tie that counts half
    assert found.metrics()["num_videos"] == 12  # c0 belongs to the pairs alone, not to the gallery
    assert "pairs motion: 50.0% of 3 right (chance 50%)" in console_table(set_report(found, checkpoint="x"))


def test_equal_sentences_show_all_tie_rules(tmp_path: Path) -> None:
    config = write_set(tmp_path, right_texts() | {"c1": "1", "c2": "1"})
    report = set_report(retrieve(encode, Tokenizer, 8, config), checkpoint="x")
    assert report["ties"]["by_rule"]["optimistic"]["v2t_r1"] >= 11 / 12
    assert report["ties"]["by_rule"]["average"]["v2t_r1"] == 10 / 12
    assert report["metrics"]["v2t_r1"] == 10 / 12
    assert "optimistic: R@1" in console_table(report)
    assert csv_table(report).splitlines()[1].startswith("painted,test,t2v_r1,")


def test_a_broken_model_is_said_to_be_one(tmp_path: Path) -> None:
    def broken(**inputs: Tensor) -> Features:
        features = encode(**inputs)
        return features._replace(video_BD=None if features.video_BD is None else features.video_BD * float("nan"))

    with pytest.raises(RunError, match="features that are not finite"):
        evaluate_retrieval(broken, Tokenizer, 8, write_set(tmp_path, right_texts()))


def test_long_texts_cut_or_windowed(tmp_path: Path) -> None:
    text = "1 2 3 4 5 6 7"
    cut = tokenize_texts(Tokenizer, [text, "8"], 5, window=False)
    windows = tokenize_texts(Tokenizer, [text, "8"], 5, window=True)
    assert cut[0].tolist() == [[BOS, 1, 2, 3, EOS]]
    assert windows[0].tolist() == [[BOS, 1, 2, 3, EOS], [BOS, 4, 5, 6, EOS], [BOS, 7, EOS, 0, 0]]
    assert windows[1].tolist() == cut[1].tolist()
    texts = right_texts() | {"c1": "2 3 1 1 1 1"}
    for long_texts, r1 in (("truncate", 11 / 12), ("window", 1.0)):
        config = write_set(tmp_path, texts, num_text_tokens=4, long_texts=long_texts)
        assert evaluate_retrieval(encode, Tokenizer, 8, config)["t2v_r1"] == r1


def test_windows_of_the_real_tokenizer_hold_every_token_of_a_paragraph() -> None:
    """300 words, four times what the model takes at once: 302 tokens in windows of 70, in order, none twice."""
    words = [f"{word}" for word in ("dog", "runs", "left", "a") * 75]
    config = ModelConfig(name="tiny", architecture=tiny.architecture() | {"text_cfg": {"width": 8, "layers": 1}})
    with torch.device("meta"):
        tokenizer = CLIPViP(config).tokenizer
    short, paragraph = tokenize_texts(tokenizer, ["a dog", " ".join(words)], 70, window=True)
    assert short.tolist() == tokenizer(70)(["a dog"]).tolist()
    assert paragraph.shape == (5, 70)
    content = [row[1 : int(row.argmax())].tolist() for row in paragraph]
    one = {word: tokenizer(3)([word])[0, 1].item() for word in words[:4]}
    assert [token for row in content for token in row] == [one[word] for word in words]
    assert [row[0].item() for row in paragraph] == [49406] * 5


def test_parts_of_a_video_are_averaged(tmp_path: Path) -> None:
    one = evaluate_retrieval(encode, Tokenizer, 8, write_set(tmp_path, right_texts()))
    three = evaluate_retrieval(encode, Tokenizer, 8, write_set(tmp_path, right_texts(), clips_per_video=3))
    assert one == three


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"queries.jsonl:1 is not JSON"),
        ("[]", r"queries.jsonl:1 is not a JSON object"),
        ('{"query_id": "a", "text": "x"}', r"queries.jsonl:1: the row has no 'clip_id'"),
        ('{"query_id": "a", "text": " ", "clip_id": "c"}', r"text must be a text that is not empty"),
        ("", r"holds no query"),
        ('{"query_id": "a", "text": ["x", "y"], "clip_id": "c"}\n' * 2, r"query_id 'a#0' appears twice"),
    ],
)
def test_wrong_queries_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        read_questions(RetrievalSetConfig(name="x", shards=tmp_path, queries=path))


def _whole_evaluation(config: RetrievalSetConfig) -> dict[str, float]:
    """Plain and re-scored metrics; the texts themselves serve as the bank of QB-Norm."""
    found = retrieve(encode, Tokenizer, 8, config)
    methods: tuple[RescoreMethod, ...] = ("dsl_official", "dsl", "qb_norm")
    rescored = {method: rescored_metrics(found, method, found.texts_ND) for method in methods}
    return found.metrics() | {f"{m}_{name}": value for m, values in rescored.items() for name, value in values.items()}


def _rank_main(rank: int, world_size: int, port: int, config: RetrievalSetConfig, folder: Path) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    metrics = _whole_evaluation(config)
    (folder / f"{world_size}_{rank}.json").write_text(json.dumps(metrics))
    dist.destroy_process_group()


def _equal_on_ranks(config: RetrievalSetConfig, world_size: int, folder: Path) -> None:
    """Every one of `world_size` ranks finds what one process finds alone."""
    alone = _whole_evaluation(config)
    assert not np.isnan(list(alone.values())).any()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Forked: a fresh interpreter per rank would spend most of the test importing torch.
    mp.start_processes(_rank_main, (world_size, port, config, folder), nprocs=world_size, start_method="fork")
    for rank in range(world_size):
        assert json.loads((folder / f"{world_size}_{rank}.json").read_text()) == alone


@pytest.mark.heavy
@pytest.mark.parametrize("world_size", [2, 5])
def test_any_number_of_ranks_gives_the_same_metrics(tmp_path: Path, world_size: int) -> None:
    """13 queries, 12 videos and batches of 3 over 2 and 5 ranks: ranks without a batch, ragged batches, no repeats."""
    texts = right_texts() | {"c1": ["2", "1 1 1 1 1"], "c5": "1"}
    _equal_on_ranks(write_set(tmp_path, texts, long_texts="window", num_text_tokens=4), world_size, tmp_path)


def test_more_ranks_than_queries(tmp_path: Path) -> None:
    """A rank without a query counts nothing, and the others do not lose it."""
    _equal_on_ranks(write_set(tmp_path, {"c1": "1", "c2": "3"}), 3, tmp_path)


def test_queries_find_videos_whose_names_have_another_unicode_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS hands out file names decomposed: the set was made there, the queries elsewhere."""

    class Decomposed(PaintedReader):
        def __init__(self, shards: Path, *, clip_ids: list[str] | None = None, **options: int) -> None:
            names = [f"c\u0327{number}" for number in range(NUM_CLIPS)]
            assert set(clip_ids or ()) <= set(names)
            super().__init__(shards, clip_ids=names if clip_ids is None else clip_ids, **options)

        def batches(self, *span: int) -> Iterator[Any]:
            self.clip_ids = [name.replace("\u0327", "") for name in self.clip_ids]
            return super().batches(*span)

    monkeypatch.setattr("pipeline.evaluation.retrieval.ClipReader", Decomposed)
    texts = {clip_id.replace("c", "\u00e7"): text for clip_id, text in right_texts().items()}
    found = retrieve(encode, Tokenizer, 8, write_set(tmp_path, texts))
    assert not found.missing and found.metrics()["t2v_r1"] == 1.0
