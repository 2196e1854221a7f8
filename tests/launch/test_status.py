"""What status.py makes of a run folder, with and without SLURM."""

import json
import os
from pathlib import Path

import pytest

from launch.run_folder import JobFolder, write_json
from launch.status import main
from pipeline.errors import InputError


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that was requeued once and then failed."""
    run = tmp_path / "runs" / "b32"
    folder = JobFolder(run)
    folder.add_submission({"job": "7", "kind": "pretrain", "nodes": 2, "after": []})
    folder.add_event("7", {"event": "started", "restart": 0, "nodes": "n[1-2]"})
    folder.add_event(
        "7", {"event": "ended", "restart": 0, "code": 137, "action": "requeue", "why": "a rank was ended by SIGKILL"}
    )
    folder.add_event("7", {"event": "started", "restart": 1, "nodes": "n[1-2]"})
    failed = [{"rank": 1, "node": "n2", "code": 1, "error": "disk full", "time": 1.0}]
    row = {
        "event": "ended",
        "restart": 1,
        "code": 1,
        "action": "stop",
        "why": "failed with exit code 1, and no progress",
    }
    folder.add_event("7", row | {"failed_ranks": failed})
    folder.log("7", 0).write_text("all is well here\n")
    folder.log("7", 1).write_text("first\nOSError: disk full\n")
    rows = [{"rank": rank, "node": f"n{rank + 1}", "product_s": 0.01 * (rank + 1)} for rank in (0, 1)]
    write_json(folder.path / "preflight" / "7.0.json", {"rows": rows, "findings": ["n2 is slow"], "fatal": []})
    metrics = {"step": 40, "train/loss": 3.25, "speed/clips_per_s": 512.0, "speed/step_median_s": 2.0}
    metrics |= {"speed/slowest_rank": 0, "speed/slowest_ratio": 1.75}
    (run / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    (run / "logs").mkdir()
    (run / "logs" / "rank_00000.log").write_text("1.6 M parameters, 100 steps of 1024 clips on 2 rank(s)\n")
    (run / "checkpoints" / "step_00000040").mkdir(parents=True)
    (run / "checkpoints" / "step_00000040" / "COMPLETE.json").write_text("{}")
    return run


def test_after_the_job_is_gone(run_folder: Path, commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands()
    assert main([str(run_folder)]) == 0
    captured = capsys.readouterr()
    for part in (
        "7 (pretrain, 2 nodes): gone from SLURM",
        "stop: failed with exit code 1, and no progress",
        "requeues    1",
        "a rank was ended by SIGKILL",
        "step        40 of 100",
        "loss        3.2500",
        "512 clips/s, 2.00 s a step, 2 min 0 s left",
        "checkpoint  step_00000040",
        "slowest     rank 0 on n1: data and forward passes take 1.75 times the median rank's",
        "preflight   slowest is rank 1 on n2: 20.0 ms a product",
        "n2 is slow",
        "OSError: disk full",
    ):
        assert part in captured.out, part
    assert "all is well here" not in captured.out, "the log of the failed rank is the one that matters"
    assert captured.err == ""


def test_one_query_while_it_runs(
    run_folder: Path, commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(
        squeue=f"echo asked >> {tmp_path}/asked; echo '7|7|7|RUNNING|None'", sacct=f"echo asked >> {tmp_path}/asked"
    )
    assert main([str(run_folder)]) == 0
    assert "7 (pretrain, 2 nodes): RUNNING" in capsys.readouterr().out
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_cancelled_link_says_which_job_failed_before(
    run_folder: Path, commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(squeue="echo '8|8|8|CANCELLED|DependencyNeverSatisfied'")
    evaluate = JobFolder(run_folder.parent / "evaluate_b32")
    evaluate.add_submission({"job": "8", "kind": "evaluate", "nodes": 2, "after": ["7"]})
    assert main([str(evaluate.run_folder)]) == 0
    shown = capsys.readouterr().out
    assert f"job 7 in {run_folder} failed before it: disk full" in shown


def test_arrays_that_still_run(tmp_path: Path, commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands(squeue="echo '20_3|23|20|RUNNING|None'; echo '30|30|30|PENDING|Dependency'")
    folder = JobFolder(tmp_path / "shards_hdvila")
    (tmp_path / "set").mkdir()
    for number in range(5):
        (tmp_path / "set" / f"{number:06d}.parquet").touch()
    array = {"kind": "shards", "nodes": 1, "tasks": 4, "array": True, "progress": str(tmp_path / "set" / "*.parquet")}
    folder.add_submission(array | {"job": "20"})
    folder.add_submission({"job": "30", "kind": "merge", "nodes": 1, "tasks": 1, "array": False})
    for task, action in ((0, "done"), (1, "stop"), (2, "")):
        folder.add_event(f"20_{task}", {"event": "started", "restart": 0, "nodes": "n1"})
        if action:
            folder.add_event(f"20_{task}", {"event": "ended", "action": action, "code": 0, "why": "x", "restart": 0})
    folder.add_event("20_2", {"event": "ended", "action": "requeue", "code": 1, "excluded": "n7", "restart": 0})
    assert main([str(folder.run_folder)]) == 0
    shown = capsys.readouterr().out
    assert "30 (merge, 1 nodes): PENDING (Dependency)" in shown
    assert "array       20 (4 tasks): RUNNING; 1 done, 1 failed, 1 begun; 5 shards written" in shown
    assert "left out    n7" in shown, "though the newest job is the merge"


def test_by_name(
    run_folder: Path, commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    monkeypatch.chdir(run_folder.parent.parent)
    assert main(["b32"]) == 0
    assert str(run_folder) in capsys.readouterr().out


def test_damaged_metrics_and_a_loss_that_is_no_number_are_shown(run_folder: Path, commands, capsys) -> None:
    """As a power cut leaves them: the rows on both sides of the damage count."""
    commands()
    rows = (run_folder / "metrics.jsonl").read_bytes()
    (run_folder / "metrics.jsonl").write_bytes(rows + bytes(512) + b'{"step": 41, "train/loss": "nan"}\n{"step": 4')
    assert main([str(run_folder)]) == 0
    shown = capsys.readouterr().out
    assert "step        41 of 100" in shown and "loss        nan" in shown and "n2" in shown


def test_no_such_run() -> None:
    with pytest.raises(InputError, match="no run at nowhere"):
        main(["nowhere"])


def test_a_job_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").touch()
    folder = JobFolder(tmp_path)
    alive, gone = os.getpid(), 2**22 + 1  # pid_max is at most 2**22
    cases = (("local-a", alive, [], "running"), ("local-b", gone, [0], "killed"), ("local-c", gone, [0, 1], "ended"))
    for job, pid, ranks, state in cases:
        folder.add_submission({"job": job, "pid": pid, "kind": "finetune", "cluster": "local", "tasks": 2})
        for rank in ranks:
            (folder.path / job).mkdir(exist_ok=True)
            (folder.path / job / f"{pid}_{rank}_result.pkl").touch()
        assert main([str(tmp_path)]) == 0
        assert f"{job} (finetune, 2 processes): {state}" in capsys.readouterr().out
    folder.add_exit("local-c", 0, 1, {"time": 1.0, "rank": 1, "code": 1, "error": "disk full"})
    assert main([str(tmp_path)]) == 0
    assert "failed: disk full" in capsys.readouterr().out


DAMAGE = (b"\0" * 300, b'{"step": 41, "train/lo', b"[" * 5000, b"7", b'{"step": null, "train/loss": "x"}', b"\xff\xfe")


def test_damaged_lines_of_every_file_are_skipped(
    run_folder: Path, commands, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a power cut and a full disk leave: NUL bytes, torn lines, rows without their fields."""
    commands()
    jobs = run_folder / "jobs"
    for path in (run_folder / "metrics.jsonl", jobs / "submissions.jsonl", jobs / "events" / "7.jsonl"):
        whole = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(whole[0] + b"".join(line + b"\n" for line in DAMAGE) + b"".join(whole[1:]) + DAMAGE[1])
    with open(jobs / "7_1_log.out", "ab") as stream:
        stream.write(b"\0" * 4096)
    assert main([str(run_folder)]) == 0
    captured = capsys.readouterr()
    for part in ("step        40 of 100", "requeues    1", "stop: failed with exit code 1", "OSError: disk full"):
        assert part in captured.out, part
    assert "damaged     7 lines of metrics.jsonl cannot be read" in captured.out
    assert "\0" not in captured.out and captured.err == ""


def test_files_with_nothing_but_damage(tmp_path: Path, commands, capsys: pytest.CaptureFixture[str]) -> None:
    commands()
    run = tmp_path / "run"
    for name in ("submissions.jsonl", "events/7.jsonl", "preflight/7.0.json"):
        (run / "jobs" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "jobs" / name).write_bytes(DAMAGE[0])
    assert main([str(run)]) == 0
    assert "none was submitted for this folder" in capsys.readouterr().out
    (run / "jobs" / "submissions.jsonl").write_text('{"job": "7"}\n')
    (run / "jobs" / "events" / "7.jsonl").write_text('{"event": "started"}\n{"event": "ended"}\n')
    (run / "jobs" / "preflight" / "7.0.json").write_text("[]")
    assert main([str(run)]) == 0
    assert "7 (unknown, ? nodes): gone from SLURM" in capsys.readouterr().out


def test_without_a_run_all_are_listed(
    run_folder: Path, commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(squeue="echo '7|7|7|RUNNING|None'")
    monkeypatch.chdir(run_folder.parent.parent)
    monkeypatch.setattr("launch.overview.ROOT", run_folder.parent.parent)
    begun = run_folder.parent / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").touch()
    (run_folder.parent / "no_run").mkdir()
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "b32    pretrain 7 RUNNING; step_00000040" in shown
    assert "begun  no job, no checkpoint" in shown
    assert "no_run" not in shown
    with pytest.raises(InputError, match="give one run"):
        main(["a", "b"])
