"""Two runs in one folder: the later restart of a job takes over, any other start is refused while the owner lives."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import liveness
from pipeline import ownership as module
from pipeline.errors import InputError, RunError
from pipeline.liveness import Clock, this_process
from pipeline.ownership import LEASE_S, Ownership


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


class Time:
    """A clock that passes only while somebody sleeps; `each_second` is what others do meanwhile."""

    def __init__(self, each_second: Callable[[float], Any] = lambda now: None) -> None:
        self.now = 1000.0
        self.each_second = each_second

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each_second(self.now)

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, sleep=self.sleep)


def no_wait(seconds: float) -> None:
    raise AssertionError("nothing is to be waited for where the process numbers prove it")


AT_ONCE = Clock(sleep=no_wait)
ELSEWHERE = ({"pid_namespace": "pid:[4026532999]"}, {"boot_id": "another kernel"}, {"boot_id": None})
"""Another container of this host, another host, a system without /proc: all with the same process numbers."""


@pytest.fixture(params=ELSEWHERE, ids=("another container", "another host", "no proc"))
def go_elsewhere(request, monkeypatch):
    """What starts after a call of it is elsewhere."""

    def go() -> None:
        facts = this_process() | request.param
        monkeypatch.setattr(module, "this_process", lambda: facts)
        monkeypatch.setattr(liveness, "this_process", lambda: facts)

    return go


def touch(folder, seconds):
    os.utime(folder / "owner.json", (seconds, seconds))


@pytest.mark.parametrize("wall_clock", [lambda now: now, lambda now: 5e9 - 3600 * now, lambda now: 2.0])
def test_a_heartbeat_that_changes_refuses_whatever_the_numbers_say(tmp_path, as_job, go_elsewhere, wall_clock):
    """Also when the clock that writes the beats is an hour off, runs backwards, or was set to one second for ever."""
    first = Ownership.claim(tmp_path)
    go_elsewhere()
    beats = []

    def beat(now: float) -> None:
        if now % 20 == 0:
            touch(tmp_path, wall_clock(now))
            beats.append(now)

    time_passes = Time(beat)
    with pytest.raises(InputError, match="in use by another run"):
        Ownership.claim(tmp_path, time_passes.clock)
    assert len(beats) == 1 and time_passes.now <= 1020
    first.check()


@pytest.mark.parametrize("age_s", [-3600, 0, 2, 3600, 10**6])
def test_a_heartbeat_that_stands_still_for_a_lease_is_dead_whatever_its_age(
    tmp_path, as_job, go_elsewhere, caplog, age_s
):
    """The claimant's clock or the file server's may have been stepped either way since the last beat."""
    first = Ownership.claim(tmp_path)
    go_elsewhere()
    touch(tmp_path, time.time() - age_s)
    time_passes = Time()
    second = Ownership.claim(tmp_path, time_passes.clock)
    assert LEASE_S <= time_passes.now - 1000 <= LEASE_S + 2
    assert "watching its heartbeat for up to 90 s" in caplog.text
    with pytest.raises(RunError, match="this run stops without writing"):
        first.check()
    second.release()


def test_a_folder_that_is_given_back_while_one_watches_is_taken(tmp_path, as_job, go_elsewhere):
    first = Ownership.claim(tmp_path)
    go_elsewhere()
    time_passes = Time(lambda now: first.release() if now == 1007 else None)
    Ownership.claim(tmp_path, time_passes.clock).check()
    assert time_passes.now == 1007


def test_an_owner_of_before_boots_were_noted_is_judged_by_its_heartbeat(tmp_path, as_job):
    Ownership.claim(tmp_path)
    owner = json.loads((tmp_path / "owner.json").read_text())
    old = {key: owner[key] for key in ("token", "job", "incarnation", "host", "pid")}
    (tmp_path / "owner.json").write_text(json.dumps(old | {"process_started": time.time()}))
    time_passes = Time()
    Ownership.claim(tmp_path, time_passes.clock).check()
    assert time_passes.now - 1000 >= LEASE_S


@pytest.mark.parametrize("steps", [(None, None), ("0", "1")], ids=("no srun", "two steps"))
def test_a_second_start_within_one_allocation_is_refused(tmp_path, as_job, monkeypatch, steps):
    as_job("77")
    for number, step in enumerate(steps):
        if step is not None:
            monkeypatch.setenv("SLURM_STEP_ID", step)
        if number == 0:
            first = Ownership.claim(tmp_path)
    with pytest.raises(InputError, match="in use by job 77"):
        Ownership.claim(tmp_path, AT_ONCE)
    first.check()


@pytest.mark.parametrize("step_s", [2, 3600, -2, -3600])
def test_a_step_of_the_wall_clock_does_not_make_a_live_owner_dead(tmp_path, as_job, monkeypatch, step_s):
    first = Ownership.claim(tmp_path)
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + step_s)
    with pytest.raises(InputError, match="in use by another run"):
        Ownership.claim(tmp_path, AT_ONCE)
    first.check()


def test_a_number_that_is_another_processs_by_now_is_proof(tmp_path, as_job):
    Ownership.claim(tmp_path)
    owner = json.loads((tmp_path / "owner.json").read_text())
    (tmp_path / "owner.json").write_text(json.dumps(owner | {"start_ticks": owner["start_ticks"] - 1}))
    Ownership.claim(tmp_path, AT_ONCE).check()


def test_a_killed_owner_that_nobody_has_waited_for_is_dead(tmp_path, as_job):
    child = start_owner(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    Ownership.claim(tmp_path, AT_ONCE).check()
    child.wait()


def test_a_live_owner_in_another_namespace_of_this_host_is_seen(tmp_path, as_job, monkeypatch):
    """A container as the kernel makes it: there the owner is process 1, which here is another one's number."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("may not make a namespace here")
    monkeypatch.setattr(liveness, "POLL_S", 0.02)
    child = start_owner(tmp_path, *unshare)
    try:
        with pytest.raises(InputError, match=r"in use by another run \(process 1 on"):
            Ownership.claim(tmp_path)
    finally:
        child.kill()
        child.wait()
    monkeypatch.setattr(module, "LEASE_S", 0.5)
    Ownership.claim(tmp_path).release()


def start_owner(folder: Path, *prefix: str) -> "subprocess.Popen[str]":
    """A process that has claimed `folder`, beats often, and waits to be killed."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline import ownership\n"
        f"ownership.HEARTBEAT_S = 0.1; owner = ownership.Ownership.claim(Path({str(folder)!r}))\n"
        "print('claimed', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([*prefix, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "claimed\n"
    child.stdout.close()
    return child


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
