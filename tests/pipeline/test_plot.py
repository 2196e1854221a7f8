"""Curves of runs: which values, from which rows, and that a picture comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.plot import curves_of, main, running_mean


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(num_steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": step, "train/loss": 10 / step, "train/lr": 1e-3, "speed/clips_per_s": 100.0}
        for step in range(1, num_steps + 1)
    ]
    rows[-1] |= {"eval/heldout/t2v_r1": 0.25, "eval/other/t2v_r1": 0.5}
    return rows


def test_a_step_counts_once_and_non_finite_values_are_left_out() -> None:
    rows = [
        {"step": 1, "train/loss": 3.0},
        {"step": 2, "train/loss": 9.0},
        {"step": 2, "train/loss": 2.0},
        {"step": 3, "train/loss": float("nan")},
        {"step": 4, "train/loss": None},
    ]
    (curve,) = curves_of({"run": rows}, "train/loss")
    assert (curve.label, curve.steps, curve.values) == ("run", [1, 2], [3.0, 2.0])


def test_a_curve_for_every_run_and_set() -> None:
    curves = curves_of({"a": rows_of(3), "b": rows_of(2)}, "eval/*/t2v_r1")
    assert [(curve.label, curve.steps, curve.values) for curve in curves] == [
        ("a, heldout", [3], [25.0]),
        ("a, other", [3], [50.0]),
        ("b, heldout", [2], [25.0]),
        ("b, other", [2], [50.0]),
    ]


def test_the_running_mean_is_the_plain_one() -> None:
    values = [float(value * value % 17) for value in range(40)]
    steps, means = running_mean(list(range(40)), values, 7)
    assert steps == list(range(6, 40))
    assert means == [sum(values[step - 6 : step + 1]) / 7 for step in steps]
    assert running_mean([1, 2], [5.0, 6.0], 7) == ([1, 2], [5.0, 6.0])


def test_a_picture_of_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs/one", rows_of(60))
    write_run(tmp_path / "runs/two", rows_of(20))
    monkeypatch.chdir(tmp_path)
    assert main(["one", "runs/two", "output=pictures/both.png"]) == 0
    assert "pictures/both.png: one, two" in capsys.readouterr().out
    with Image.open("pictures/both.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    blue, orange = (31, 119, 180), (255, 127, 14)
    assert {blue, orange} <= {colour for _, colour in colours}, "a line for each of the runs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no run at nowhere"),
        (["output=x.png"], "no run is named"),
        (["run", "output=x.jpg"], "is no PNG"),
        (["run", "smoth=3"], "smooth"),
        (["empty"], "no step was logged yet"),
    ],
)
def test_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    write_run(tmp_path / "run", rows_of(2))
    write_run(tmp_path / "empty", [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(words)
