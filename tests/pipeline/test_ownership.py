"""Two runs in one folder: the newer incarnation of a job takes over, an unrelated run is refused."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import ownership as module
from pipeline.errors import InputError, RunError
from pipeline.ownership import Ownership


@pytest.fixture
def as_job(monkeypatch):
    def set_job(job, restarts=0, host=None):
        for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", str(restarts))):
            if value is None or job is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        if host:
            monkeypatch.setattr(module.socket, "gethostname", lambda: host)

    set_job(None)
    return set_job


def test_a_second_run_on_this_machine_is_refused(tmp_path, as_job):
    first = Ownership.claim(tmp_path)
    with pytest.raises(InputError, match=f"in use by another run .process {os.getpid()} on"):
        Ownership.claim(tmp_path)
    first.check()
    first.release()
    Ownership.claim(tmp_path).release()


def test_a_dead_owner_on_this_machine_is_replaced(tmp_path, as_job):
    code = (
        f"from pathlib import Path; from pipeline.ownership import Ownership; Ownership.claim(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "owner.json").exists()
    Ownership.claim(tmp_path).release()


def test_a_requeued_job_takes_over_and_the_old_one_stops(tmp_path, as_job):
    as_job("77", restarts=0, host="node1")
    old = Ownership.claim(tmp_path)
    as_job("77", restarts=1, host="node2")
    new = Ownership.claim(tmp_path)
    new.check()
    with pytest.raises(RunError, match=r"belongs to job 77 .* now"):
        old.check()
    old.release()
    new.check()
    as_job("77", restarts=0, host="node1")
    with pytest.raises(InputError, match="in use by job 77"):
        Ownership.claim(tmp_path)
    new.release()


def test_another_node_is_judged_by_its_heartbeat(tmp_path, as_job):
    as_job("77", host="node1")
    first = Ownership.claim(tmp_path)
    as_job("78", host="node2")
    with pytest.raises(InputError, match="in use by job 77"):
        Ownership.claim(tmp_path)
    long_ago = time.time() - module.DEAD_AFTER_S - 60
    os.utime(tmp_path / "owner.json", (long_ago, long_ago))
    second = Ownership.claim(tmp_path)
    assert json.loads((tmp_path / "owner.json").read_text())["job"] == "78"
    first.release()
    second.release()


@pytest.fixture
def flaky(monkeypatch):
    """flaky(n): the next n reads of owner.json fail as a far file system's do now and then."""
    left, true_read = [0], Path.read_text

    def read(self, *arguments, **options):
        if self.name == "owner.json" and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return true_read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.0)
    return lambda times: left.__setitem__(0, times)


def test_a_read_that_fails_once_takes_the_folder_from_nobody(tmp_path, as_job, flaky, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    owner = Ownership.claim(tmp_path)
    flaky(2)
    owner.check()
    flaky(1000)
    with pytest.raises(RunError, match=r"cannot read .*owner.json \(Stale file handle\)"):
        owner.check()
    wait_for(lambda: ago(tmp_path) > -1)  # let the heartbeat meet the failure
    flaky(0)
    os.utime(tmp_path / "owner.json", (0, 0))
    wait_for(lambda: ago(tmp_path) < 60)
    flaky(1000)
    owner.release()


def ago(folder):
    return time.time() - (folder / "owner.json").stat().st_mtime


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_file_system_without_locks_is_named(tmp_path, as_job, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"cannot take .*Function not implemented.*flock"):
        Ownership.claim(tmp_path)


def test_a_removed_owner_file_stops_the_run(tmp_path, as_job):
    owner = Ownership.claim(tmp_path)
    (tmp_path / "owner.json").unlink()
    with pytest.raises(RunError, match="belongs to nobody"):
        owner.check()
    owner.release()
