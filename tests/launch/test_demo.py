"""The demo: its own errors are one line each, whatever it finds."""

import sys
from pathlib import Path

import pytest

from launch import demo
from pipeline.errors import InputError, RunError


def test_where_and_how_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the demo takes no arguments, got --fast"):
        demo.main(["--fast"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="call the demo from the root of the repository"):
        demo.main([])


def test_a_training_that_fails_at_once_is_an_error_of_its_command(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(RunError, match="failed with exit code 3; its own message is above"):
        demo._train_until(failing, tmp_path / "metrics.jsonl", 10)
    done = [sys.executable, "-c", ""]
    assert demo._train_until(done, tmp_path / "metrics.jsonl", 10) == 0


def test_damaged_metrics_and_reports(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b'{"step": 3}\n' + b"\0" * 99 + b'\n{"step": 7}\n{"st')
    assert demo._last_step(metrics) == 7
    assert demo._last_step(tmp_path / "none.jsonl") == 0
    report = tmp_path / "evaluation" / "sample.json"
    report.parent.mkdir()
    for content in (b"", b"{}", b"[1]", b"\0" * 9, b'{"metrics": {}}'):
        report.write_bytes(content)
        with pytest.raises(RunError, match=r"sample.json is not the report of the demo; delete it"):
            demo._read_report(tmp_path)
