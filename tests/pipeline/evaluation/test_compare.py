"""One table of several runs: the paper's rows beside, unlike galleries marked, wrong input named."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.evaluation.compare import comparison_rows, load_reports, markdown, write_comparison


def write_report(folder: Path, name: str = "msrvtt_1ka", **changes: Any) -> None:
    metrics = {"t2v_r1": 0.5, "t2v_r5": 0.75, "t2v_r10": 0.8, "t2v_mdr": 1.0, "v2t_r1": 0.4, "v2t_r5": 0.7}
    metrics |= {"v2t_r10": 0.75, "num_queries": 1000.0, "num_queries_asked": 1000.0, "num_videos": 1000.0}
    report = {
        "set": name,
        "split": "test",
        "checkpoint": "x",
        "protocol": {},
        "metrics": metrics | changes.pop("metrics", {}),
        "rescored": {"dsl_official": {"sees_test_queries": True, "metrics": {"t2v_r1": 0.55}}},
        "chosen_by": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report | changes))


def test_runs_stand_beside_the_paper(tmp_path: Path) -> None:
    write_report(tmp_path / "clip" / "evaluation", metrics={"t2v_r1": 0.301})
    write_report(tmp_path / "tuned" / "evaluation")
    rows = comparison_rows(load_reports([tmp_path / "clip", tmp_path / "tuned"]))
    assert [(row["model"], row["t2v_r1"]) for row in rows[:3]] == [
        ("clip", pytest.approx(30.1)),
        ("tuned", 50.0),
        ("CLIP-ViP B/32 (paper)", 50.1),
    ]
    assert rows[1]["dsl_official_t2v_r1"] == pytest.approx(55)
    table = markdown(rows)
    assert "| tuned " in table and "55.9" in table and "1,000" in table
    paths = write_comparison(rows, tmp_path / "out")
    assert [path.suffix for path in paths] == [".json", ".md", ".csv"]
    assert next(csv.DictReader(paths[2].read_text().splitlines()))["model"] == "clip"


def test_what_makes_rows_unlike_is_said(tmp_path: Path) -> None:
    write_report(tmp_path / "a", metrics={"num_queries": 990.0, "num_videos": 990.0})
    write_report(tmp_path / "b_evaluation", split="val", chosen_by="t2v_r1 on the test split (choose_on_test)")
    rows = comparison_rows(load_reports([tmp_path / "a", tmp_path / "b_evaluation" / "msrvtt_1ka.json"]))
    assert rows[0]["note"] == "of 1,000 queries asked; 990 videos: not the same gallery"
    assert rows[1]["model"] == "b"
    assert "validation split; t2v_r1 on the test split (choose_on_test)" in rows[1]["note"]


def test_unlike_protocols_are_said(tmp_path: Path) -> None:
    write_report(tmp_path / "a", protocol={"num_frames": 12, "num_text_tokens": 50, "long_texts": "truncate"})
    write_report(tmp_path / "b", protocol={"num_frames": 12, "num_text_tokens": 70, "long_texts": "window"})
    notes = [row["note"] for row in comparison_rows(load_reports([tmp_path / "a", tmp_path / "b"]))[:2]]
    assert notes == ["num_text_tokens 50; long_texts truncate", "num_text_tokens 70; long_texts window"]


def test_sets_that_the_paper_lacks(tmp_path: Path) -> None:
    write_report(tmp_path / "run", name="mine")
    assert [row["model"] for row in comparison_rows(load_reports([tmp_path / "run"]))] == ["run"]


def test_wrong_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no evaluation; run: python"):
        load_reports([tmp_path / "empty"])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="is no evaluation result"):
        load_reports([tmp_path / "other.json"])
