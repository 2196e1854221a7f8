"""What follows the end of a job."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.decision import Ending, count_futile, count_unrecorded, decide, why_none_left
from launch.run_folder import JobFolder, progress_mark

FAILED = Ending(code=1, restart=0, state="RUNNING", state_reason="None", restarts_now=0, finished=False)


@pytest.mark.parametrize(
    ("change", "action", "why"),
    [
        ({"finished": True, "code": 0}, "done", "finished"),
        ({"code": 2}, "stop", "wrong input"),
        ({"code": 137, "rank_codes": (2,)}, "stop", "wrong input"),
        ({}, "requeue", "exit code 1"),
        ({"code": 137}, "requeue", "SIGKILL"),
        ({"code": 0}, "requeue", "stopped by a signal"),
        ({"state": "COMPLETING", "state_reason": "TimeLimit", "code": 143}, "requeue", "time limit"),
        ({"state": "TIMEOUT", "state_reason": "TimeLimit", "code": 143}, "requeue", "time limit"),
        ({"state": "COMPLETING", "code": 143}, "left", "cancelled"),
        ({"state": "COMPLETING", "code": 0, "preempted": True}, "requeue", "state saved"),
        ({"state": "PREEMPTED", "code": 143, "preempted": True}, "requeue", "preempted"),
        ({"state": "COMPLETING", "preempted": True, "restarts_now": 1}, "left", "SLURM requeued"),
        ({"state": "COMPLETING", "restarts_now": 1}, "left", "SLURM requeued"),
        ({"state": "PENDING", "restarts_now": 1}, "left", "SLURM requeued"),
        ({"state": "", "slurm_problem": "no route"}, "stop", "SLURM cannot be asked to requeue it (no route)"),
        ({"state": "", "requeue_exit_code": 99}, "requeue", "exit code 99 tells slurmctld to requeue it"),
        ({"state": "", "requeue_exit_code": 99, "futile": 1}, "stop", "no progress"),
        ({"unrecorded": 2}, "requeue", "exit code 1"),
        ({"unrecorded": 3}, "stop", "the run folder cannot be written"),
        ({"machine_fault": True, "excluded": "n3", "futile": 9, "first_failure": "no mount"}, "requeue", "no mount"),
        ({"machine_fault": True, "excluded": "n3", "no_exclusion": "none is left"}, "stop", "none is left"),
        ({"futile": 1}, "stop", "no progress"),
        ({"futile": 1, "code": 143}, "requeue", "SIGTERM"),
        ({"futile": 3, "code": 143}, "stop", "no progress"),
        ({"futile": 1, "excluded": "n3"}, "requeue", "n3"),
        ({"futile": 5, "excluded": "n3"}, "stop", "n3"),
        (
            {"rank_codes": (1,), "first_failure": "rank 3 on n2 failed: by zero"},
            "requeue",
            "rank 3 on n2 failed: by zero",
        ),
        ({"may_requeue": False}, "stop", "not requeued"),
    ],
)
def test_decisions(change: dict[str, object], action: str, why: str) -> None:
    decision = decide(replace(FAILED, **change))
    assert decision.action == action
    assert why in decision.why


def test_requeues_without_progress_are_counted() -> None:
    rows = [{"event": "ended", "action": "requeue", "progress": mark} for mark in ("", "1 a", "2 b", "2 b")]
    rows.insert(3, {"event": "started"})
    assert count_futile(rows, "2 b") == 2
    assert count_futile(rows, "3 c") == 0
    assert count_futile([], "") == 0


def test_a_fault_on_every_node_is_no_fault_of_a_node() -> None:
    nodes = [f"n{number}" for number in range(40)]
    assert why_none_left(nodes[:7], nodes[:8], "batch") == "", "of a small partition any one node will do"
    assert "no usable node of partition batch is left" in why_none_left(nodes[:8], nodes[:8], "batch")
    assert why_none_left(nodes[:20], nodes, "batch") == ""
    assert "over half of those it may get" in why_none_left(nodes[:21], nodes, "batch")
    assert why_none_left(nodes[:16], [], "batch") == "", "SLURM does not say how many there are"
    assert why_none_left(nodes[:17], [], "batch")


def test_requeues_without_a_record_are_counted() -> None:
    rows = [{"event": "started", "restart": 0}, {"event": "ended", "restart": 0}, {"event": "ended", "restart": 2}]
    assert [count_unrecorded(rows, restart) for restart in (0, 1, 2, 3)] == [0, 0, 1, 1]
    assert count_unrecorded([], 3) == 3


def test_progress_mark_changes_with_every_file(tmp_path: Path) -> None:
    pattern = str(tmp_path / "step_*" / "COMPLETE.json")
    marks = [progress_mark(pattern)]
    for step in ("step_1", "step_2"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "COMPLETE.json").touch()
        marks.append(progress_mark(pattern))
    (tmp_path / "step_1" / "COMPLETE.json").unlink()  # pruned: still a different mark than before step_2
    marks.append(progress_mark(pattern))
    assert len(set(marks)) == 4
    assert "step_2" in marks[-1]


def test_one_decision_per_incarnation(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert folder.claim_decision("7", 0)
    assert not folder.claim_decision("7", 0)
    assert folder.claim_decision("7", 1)
