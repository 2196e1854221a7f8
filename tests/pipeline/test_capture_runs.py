"""Whole runs with captured towers, by their stand-in: in parts, with masked rows, evaluated between steps, resumed."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.log import read_metrics
from tests.pipeline import cases
from tests.pipeline.data.conftest import Clip, ShardSet
from tests.pipeline.ranks import RankPool
from tests.pipeline.tiny import FRAMES, TOKENS, write_config

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with texts of many lengths, one in five without a caption, and a held-out query."""
    base = tmp_path_factory.mktemp("captured")
    written = ShardSet(base / "set")
    clips = [
        Clip(number, subtitle=" ".join(["word"] * (number % 5 + 1)), caption="thing" if number % 5 else None)
        for number in range(40)
    ]
    written.add_shard(clips)
    (base / "queries.jsonl").write_text('{"query_id": "q", "text": "thing 3", "clip_id": "v0.3.mp4"}\n')
    return base


@pytest.mark.parametrize(("stage", "parts"), [(0, 1), (0, 2), (1, 2)])
def test_a_captured_run_is_the_eager_one_and_resumes_to_the_last_bit(folder, tmp_path, stage, parts):
    held_out = {"name": "held", "shards": str(folder / "set"), "queries": str(folder / "queries.jsonl")}
    held_out |= {"num_frames": FRAMES, "num_text_tokens": TOKENS, "num_workers": 0}
    changes: dict[str, Any] = {
        "steps": 7,
        "batch": {"global_batch_size": 6, "micro_batches": parts},
        "engine": {"zero_stage": stage},
        "evaluation": {"sets": [held_out], "every_steps": 2},
        "checkpoint": {"every_steps": 3},
    }
    rows = {}
    with RankPool(1) as pool:
        for name, capture, stops in (("eager", False, []), ("captured", True, []), ("resumed", True, [3, 5])):
            config = write_config(tmp_path, folder / "set", name=name, **changes)
            words = [str(config), f"engine.capture={str(capture).lower()}"]
            for stop in [*(f"stop_at_step={step}" for step in stops), "stop_at_step=null"]:
                assert pool.run(cases.training_case, [*words, stop]) == [0]
            rows[name] = kept(tmp_path / "runs" / name)
            assert said(tmp_path / "runs" / name) == (WITH if capture else WITHOUT)
    assert rows["resumed"] == rows["captured"]
    assert len(rows["eager"]) == 7
    for ours, eager in zip(rows["captured"], rows["eager"], strict=True):
        assert ours == pytest.approx(eager, rel=1e-3)


WITH = "the step runs with eager blocks, with captured towers"
WITHOUT = "the step runs with eager blocks, without captured graphs"


def said(run: Path) -> str:
    """Which way the last start of a run said that it runs; once a start."""
    log = (run / "logs" / "rank_00000.log").read_text()
    assert log.count("the step runs") == log.count("M parameters")
    return WITH if WITH in log else WITHOUT


def kept(run: Path) -> list[dict[str, float]]:
    """What was logged about losses and the held-out set."""
    names = ("step", "train/loss", "train/grad_norm", "eval/held/t2v_r1", "eval/held/t2v_mnr")
    return [{key: row[key] for key in names if key in row} for row in read_metrics(run / "metrics.jsonl")]
