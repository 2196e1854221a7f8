"""slurmctld that is away, that refuses, and what it says of nodes: asked through stand-ins, on a clock that is ours."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch import guard
from launch.controller import Controller, JobNow
from launch.run_folder import JobFolder

AWAY = "Unable to contact slurm controller (connect failure)"


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def failing(count: int, answer: str, folder: Path, words: str = AWAY) -> str:
    """A scontrol that fails `count` times, then answers. Every question is kept."""
    asked = folder / "asked"
    return (
        f'echo "$*" >> {asked}; n=$(wc -l < {asked}); [ "$n" -gt {count} ] && {{ echo "{answer}"; exit 0; }}; '
        f'echo "{words}" >&2; exit 1'
    )


def questions(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Callable[[float], Controller]:
    return lambda timeout_s: Controller(timeout_s, clock=clock, sleep=clock.sleep, say=lambda text: None)


@pytest.mark.parametrize("words", [AWAY, "Socket timed out on send/recv operation", "Munge encode failed", ""])
def test_it_is_asked_again_for_as_long_as_the_site_says(
    tmp_path: Path, commands, clock: Clock, make: Callable[[float], Controller], words: str
) -> None:
    commands(scontrol=failing(12, "JobState=RUNNING Restarts=2 Partition=batch Features=(null)", tmp_path, words))
    assert make(600).job("7") == JobNow("RUNNING", "", 2, False, "batch")
    assert 60 < clock.now_s - 1000 < 600


def test_it_is_given_up_after_that_time_and_the_reason_is_kept(
    tmp_path: Path, commands, clock: Clock, make: Callable[[float], Controller]
) -> None:
    commands(scontrol=failing(10**6, "", tmp_path))
    assert make(600).job("7") == JobNow(problem=AWAY)
    assert clock.now_s == 1600
    assert len(questions(tmp_path)) < 60, "not asked every second: all jobs of the cluster do the same"
    assert make(600).requeue("7") == AWAY
    assert clock.now_s == 2200


def test_a_refusal_is_an_answer(tmp_path: Path, commands, clock: Clock, make: Callable[[float], Controller]) -> None:
    commands(scontrol=failing(10**6, "", tmp_path, "Invalid job id specified"))
    assert make(600).job("7").problem == "Invalid job id specified"
    assert clock.now_s == 1020


def test_a_scontrol_that_is_not_there_is_one_that_is_away(
    commands, clock: Clock, make: Callable[[float], Controller], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make(30).job("7").problem == "scontrol: No such file or directory"
    assert clock.now_s == 1030


def test_nodes_that_a_job_may_get(commands, make: Callable[[float], Controller]) -> None:
    rows = "n1|idle|cpu,big\nn2|mixed|cpu\nn3|down*|cpu,big\nn4|drained|cpu\nn1|idle|cpu,big\nn5|idle*|cpu"
    commands(sinfo=f'echo "$*" | grep -q -- "-p batch" || exit 1; echo "{rows}"')
    controller = make(0)
    assert controller.usable_nodes("batch", "") == ["n1", "n2"]
    assert controller.usable_nodes("batch", "big&cpu") == ["n1"]
    assert controller.usable_nodes("batch", "[big|cpu]") == ["n1", "n2"], "what is not understood leaves out none"
    assert controller.usable_nodes("other", "") == []


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JobFolder:
    """A task of an array ends in a batch script, as the guard sees it."""
    for name, value in (("SLURM_JOB_ID", "73"), ("SLURM_ARRAY_JOB_ID", "70"), ("SLURM_ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return JobFolder(tmp_path / "run")


def end(folder: JobFolder, controller: Controller, code: int, *words: str) -> int:
    return guard.main(["ended", str(folder.run_folder), "--code", str(code), *words], controller)


def test_a_rank_that_dies_while_slurmctld_is_away_is_requeued_when_it_is_back(
    tmp_path: Path, commands, job: JobFolder, make: Callable[[float], Controller]
) -> None:
    commands(scontrol=failing(12, "JobState=RUNNING Restarts=0", tmp_path))
    assert end(job, make(600), 137) == 137
    assert [row["action"] for row in job.events("70_2")] == ["requeue"]
    assert questions(tmp_path)[-1] == "requeue 70_2"


def test_slurmctld_that_stays_away_is_said_or_left_to_its_return(
    tmp_path: Path, commands, job: JobFolder, make: Callable[[float], Controller]
) -> None:
    commands(scontrol=failing(10**6, "", tmp_path))
    assert end(job, make(600), 137) == 137
    (row,) = job.events("70_2")
    assert row["action"] == "stop"
    assert row["why"] == (
        f"a rank was ended by SIGKILL; SLURM cannot be asked to requeue it ({AWAY}): run the same command again "
        "(training: with --resume) to go on"
    )
    other = JobFolder(tmp_path / "other")
    assert end(other, make(600), 137, "--requeue-exit-code", "99") == 99
    assert other.events("70_2")[-1]["action"] == "requeue"
    assert not any("requeue" in question for question in questions(tmp_path)), "there is nobody to ask"


def fault(folder: JobFolder, node: str) -> None:
    row = {"time": 1.0, "rank": 0, "node": node, "code": 1, "error": "/mnt is empty"}
    folder.add_exit("70_2", 0, 0, row | {"exclude": [node], "machine_fault": True})


SHOWN = "JobState=RUNNING Restarts=0 Partition=batch ExcNodeList={excluded}"


def test_a_machine_fault_leaves_the_node_out_for_the_task_and_for_what_waits_in_its_array(
    tmp_path: Path, commands, job: JobFolder, make: Callable[[float], Controller]
) -> None:
    commands(
        scontrol=failing(0, SHOWN.format(excluded="n[1-2]"), tmp_path),
        sinfo="for n in 1 2 3 4 5 6; do echo n$n\\|idle\\|; done",
    )
    fault(job, "n3")
    job.add_event("70_1", {"event": "ended", "restart": 0, "action": "requeue", "excluded": "n5"})
    assert end(job, make(600), 1) == 1
    assert questions(tmp_path)[1:] == [
        "requeue 70_2",
        "update JobId=70_2 ExcNodeList=n1,n2,n5,n3",
        "update JobId=70 ExcNodeList=n1,n2,n5,n3",
    ], "beside the user's own, and what another task found"
    (row,) = job.events("70_2")
    assert (row["action"], row["why"]) == ("requeue", "rank 0 on n3 failed by a fault of its machine: /mnt is empty")


@pytest.mark.parametrize(("excluded", "again", "why"), [("n[1-3]", "", "no usable node"), ("(null)", "n4", "again")])
def test_no_requeue_where_no_node_is_left_or_leaving_out_does_not_help(
    tmp_path: Path, commands, job: JobFolder, make: Callable[[float], Controller], excluded: str, again: str, why: str
) -> None:
    commands(
        scontrol=failing(0, SHOWN.format(excluded=excluded), tmp_path),
        sinfo="for n in 1 2 3 4; do echo n$n\\|idle\\|; done; echo n5\\|down\\|",
    )
    for restart in range(2 if again else 0):
        job.add_event("70_2", {"event": "ended", "restart": restart, "action": "requeue", "excluded": again})
    fault(job, "n4")
    assert end(job, make(600), 1) == 1
    row = job.events("70_2")[-1]
    assert row["action"] == "stop" and why in row["why"] and "/mnt is empty" in row["why"]
    assert len(questions(tmp_path)) == 1, "nothing is requeued or updated"


def test_two_tasks_do_not_leave_out_all_nodes_together(
    tmp_path: Path, commands, job: JobFolder, make: Callable[[float], Controller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two nodes has a fault, and the other task says so just before this one is requeued."""
    commands(
        scontrol=failing(0, SHOWN.format(excluded="(null)"), tmp_path), sinfo="echo n1\\|idle\\|; echo n2\\|idle\\|"
    )
    fault(job, "n1")
    record = JobFolder.add_event

    def both(folder: JobFolder, name: str, row: dict[str, object]) -> None:
        record(folder, name, row)
        record(folder, "70_1", {"event": "ended", "restart": 0, "action": "requeue", "excluded": "n2"})

    monkeypatch.setattr(JobFolder, "add_event", both)
    assert end(job, make(600), 1) == 1
    assert [row["action"] for row in job.events("70_2")] == ["requeue", "stop"]
    assert "no usable node of partition batch is left" in job.events("70_2")[-1]["why"]
    assert len(questions(tmp_path)) == 1, "nothing is requeued, and what waits keeps its nodes"
