"""Which checkpoint is evaluated, and what the report says about the choice."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError
from pipeline.evaluation.selection import select_checkpoint


def write_run(folder: Path, split: str = "val", metric: str | None = "didemo_val/t2v_r1") -> Path:
    sets = [{"name": "didemo_val", "split": split}]
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluation": {"best_metric": metric, "sets": sets}}))
    values = {100: 0.3, 200: 0.5, 300: 0.5, 400: 0.4}
    rows = [{"step": 150, "train/loss": 1.0}]
    rows += [{"step": step, "eval/didemo_val/t2v_r1": value} for step, value in values.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (200, 400):
        (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    return folder


def test_last_is_the_run_itself(tmp_path: Path) -> None:
    assert select_checkpoint(write_run(tmp_path), "last") == (tmp_path, "the last step of the run")
    file = tmp_path / "model.pt"
    assert select_checkpoint(file, "last") == (file, "")


def test_best_is_the_first_highest_on_the_validation_split(tmp_path: Path) -> None:
    path, chosen_by = select_checkpoint(write_run(tmp_path), "best")
    assert path == tmp_path / "checkpoints" / "step_00000200"
    assert chosen_by == "best didemo_val/t2v_r1 (0.5000) of the val split, at step 200"


def test_choosing_on_the_test_split_is_said(tmp_path: Path) -> None:
    assert "chosen on the test split" in select_checkpoint(write_run(tmp_path, split="test"), "best")[1]


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        select_checkpoint(tmp_path / "model.pt", "best")
    write_run(tmp_path, metric=None)
    with pytest.raises(InputError, match="was not told how to choose"):
        select_checkpoint(tmp_path, "best")


def test_a_line_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    metrics = write_run(tmp_path) / "metrics.jsonl"
    before = metrics.read_text()
    for unfinished in ('{"step": 500, "eval/didemo_', '{"step": 500, "eval/didemo_val/t2v_r1": 0.9}'):
        metrics.write_text(before + unfinished)
        assert select_checkpoint(tmp_path, "best")[0].name == "step_00000200"
    metrics.write_text(before + "{cut\n" + before)
    with pytest.raises(InputError, match=r"metrics.jsonl:6 is damaged, so the best step is not known; use which=last"):
        select_checkpoint(tmp_path, "best")
