"""`--wait` follows a job by its files and asks SLURM rarely."""

from pathlib import Path

import pytest

from launch import wait
from launch.run_folder import JobFolder
from launch.wait import wait_for
from pipeline.errors import RunError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    monkeypatch.setattr(wait, "POLL_S", 0.01)
    return JobFolder(tmp_path)


@pytest.mark.parametrize(
    ("action", "code", "returned"), [("done", 0, 0), ("stop", 2, 2), ("stop", 0, 1), ("done", 1, 1)]
)
def test_the_exit_code_is_that_of_the_job(folder: JobFolder, action: str, code: int, returned: int) -> None:
    folder.add_event("7", {"event": "started", "restart": 0, "nodes": "n1"})
    folder.add_event("7", {"event": "ended", "restart": 0, "code": 1, "action": "requeue", "why": "x"})
    folder.add_event("7", {"event": "ended", "restart": 1, "code": code, "action": action, "why": "x"})
    assert wait_for("7", folder) == returned


def test_a_finished_job_needs_no_query(folder: JobFolder, commands, tmp_path: Path) -> None:
    commands(squeue=f"touch {tmp_path}/asked")
    folder.add_event("7", {"event": "ended", "restart": 0, "code": 0, "action": "done", "why": "finished"})
    wait_for("7", folder)
    assert not (tmp_path / "asked").exists()


def test_a_cancelled_job_is_noticed(folder: JobFolder, commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "QUERY_INTERVAL_S", 0.0)
    commands(squeue="echo '7|7|7|CANCELLED|None'")
    with pytest.raises(RunError, match="job 7 ended as CANCELLED"):
        wait_for("7", folder)


def test_a_controller_that_is_away_for_a_moment(
    folder: JobFolder, commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "QUERY_INTERVAL_S", 0.0)
    commands(squeue=f"echo squeue >> {tmp_path}/asked; exit 1", sacct=f"echo sacct >> {tmp_path}/asked")
    with pytest.raises(RunError, match="gone from SLURM"):
        wait_for("7", folder)
    assert (tmp_path / "asked").read_text().split() == ["squeue", "sacct", "squeue"], "one query a minute"


def test_accounting_knows_a_job_that_squeue_forgot(
    folder: JobFolder, commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "QUERY_INTERVAL_S", 0.0)
    commands(squeue="exit 1", sacct="echo FAILED")
    with pytest.raises(RunError, match="job 7 ended as FAILED"):
        wait_for("7", folder)
