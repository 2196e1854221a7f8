"""The guard in a run folder that takes nothing: full, read-only, over quota, or gone. It decides all the same."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launch import guard, run_folder
from launch.cluster import ROOT
from launch.controller import Controller
from launch.run_folder import JobFolder, read_rows, write_json

RUNNING = 'echo "$*" >> {asked}; [ "$1" = requeue ] || echo JobState=RUNNING Restarts=${{SLURM_RESTART_COUNT:-0}}'
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EACCES)


@pytest.fixture
def asked(tmp_path: Path, commands, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guard asks SLURM, line by line."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    commands(scontrol=RUNNING.format(asked=tmp_path / "asked"))
    return tmp_path / "asked"


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["add_event", "claim_decision", "exits"])
def test_each_error_is_said_and_the_job_is_requeued(
    tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int,
    where: str,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr(JobFolder, where, fail)
    assert guard.main(["started", str(tmp_path)], Controller(0)) == 0
    assert guard.main(["ended", str(tmp_path), "--code", "137"], Controller(0)) == 137
    assert asked.read_text().splitlines()[-1] == "requeue 7"
    captured = capfd.readouterr()
    assert f"{os.strerror(number)} ({tmp_path}/x)" in captured.out
    assert captured.err == ""


def test_a_job_that_cannot_be_recorded_is_not_requeued_for_ever(
    tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "_append", fail)
    for restart in range(4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        assert guard.main(["started", str(tmp_path)]) == 0
        assert guard.main(["ended", str(tmp_path), "--code", "1"], Controller(0)) == 1
    assert asked.read_text().splitlines().count("requeue 7") == 3
    assert "the run folder cannot be written: make room there" in capfd.readouterr().out


def write_nothing() -> None:
    """No file of this process and its children can grow: EFBIG at every write, as a full disk has ENOSPC."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.heavy
def test_in_a_batch_script_with_a_log_on_the_same_full_disk(tmp_path: Path, asked: Path, commands) -> None:
    commands(scontrol=f'mkdir -p {tmp_path}/said_$1; [ "$1" = requeue ] || echo JobState=RUNNING Restarts=0')
    for words, code in ((["started"], 0), (["ended", "--code", "137"], 137)):
        command = [sys.executable, "-m", "launch.guard", words[0], str(tmp_path), *words[1:]]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, timeout=60, preexec_fn=write_nothing
            )
        assert (done.returncode, done.stderr) == (code, "")
    assert (tmp_path / "said_requeue").is_dir()
    assert JobFolder(tmp_path).events("7") == [], "nothing could be written"


def test_a_row_that_was_cut_off_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.add_event("7", {"event": "started"})
    path = tmp_path / "jobs" / "events" / "7.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    folder.add_event("7", {"event": "ended"})
    assert [row["event"] for row in folder.events("7")] == ["ended"]


def test_what_did_not_fit_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, text: str) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "exits" / "7.0.0", {})
    assert list((tmp_path / "exits").iterdir()) == []


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    deep = b"[" * 200_000
    path.write_bytes(b'{"event": "a"}\n' + b"\0" * 512 + b'\n{"ev\n' + deep + b'\n3\n{"event": "b\xe2\x80\xa8c"}\n')
    assert [row["event"] for row in read_rows(path)] == ["a", "b\u2028c"]
