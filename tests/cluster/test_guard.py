"""The guard against a real SLURM, with an entry that only sleeps: who requeues what, and what stays cancelled."""

import time
from pathlib import Path

import pytest
from slurm import FINISHED, Cluster, wait_until

from launch.cluster import Resources, load_site
from launch.job import Work
from launch.run_folder import JobFolder, Row
from launch.submit import Job, submit

SAVED_STEP = 12
AWAY_S = 40.0
"""A moment is no fault: slurmctld fails over in some seconds."""
SITE = {"gpus_per_node": 0, "signal_lead_s": 20, "time": "30", "preflight": {"slow_node": "exclude"}}


class Sleeper:
    """One submitted job."""

    def __init__(self, cluster: Cluster, run: Path, *words: str, partition: str | None = None) -> None:
        self.cluster, self.run = cluster, run
        work = Work(
            kind="pretrain",
            run_folder=run,
            module="sleeper",
            argv=(str(run), *words),
            progress=str(run / "checkpoints" / "step_*" / "COMPLETE.json"),
            finished=(str(run / "COMPLETE"),),
        )
        self.job = submit(
            Job(work, Resources(nodes=2), name="sleeper"), load_site("cpu", SITE | {"partition": partition})
        )

    def await_step(self, step: int) -> None:
        path = self.run / "step"
        wait_until(lambda: path.exists() and int(path.read_text() or 0) >= step, 120, f"step {step}")

    def await_end(self) -> str:
        wait_until(lambda: self.cluster.state(self.job) in FINISHED, 240, "the job ends")
        return self.cluster.state(self.job)

    def endings(self) -> list[Row]:
        return [row for row in JobFolder(self.run).events(self.job) if row["event"] == "ended"]


@pytest.fixture
def sleeper(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """sleeper("--deaf") submits one."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    yield lambda *words, **options: Sleeper(cluster, tmp_path / "run", *words, **options)
    cluster.cancel_all()


def test_cancelled_stays_cancelled(sleeper, cluster: Cluster) -> None:
    job = sleeper()
    job.await_step(5)
    cluster.run("scancel", job.job)
    assert job.await_end() == "CANCELLED"
    wait_until(lambda: job.endings(), 30, "the guard has its say")
    assert [(row["action"], row["why"]) for row in job.endings()] == [("left", "cancelled")]


def test_user_signal_saves_and_requeues(sleeper, cluster: Cluster) -> None:
    job = sleeper()
    job.await_step(5)
    cluster.run("scancel", "--signal=USR1", job.job)
    assert job.await_end() == "COMPLETED"
    assert [row["action"] for row in job.endings()] == ["requeue", "done"]


def test_preempted_where_preemption_cancels(sleeper, cluster: Cluster) -> None:
    # PreemptMode=CANCEL: SLURM requeues nothing by itself.
    job = sleeper(partition="frail")
    job.await_step(SAVED_STEP)
    cluster.run("srun", "-p", "urgent", "-N", str(cluster.num_nodes), "--exclusive", "sleep", "1")
    assert job.await_end() == "COMPLETED"
    assert [row["action"] for row in job.endings()] == ["requeue", "done"]
    assert cluster.job(job.job)["Restarts"] == "1"


def test_time_limit_with_ranks_that_do_not_listen(sleeper, cluster: Cluster) -> None:
    # The ranks ignore all signals, so SLURM kills them, srun and the batch script; the guard's watcher requeues.
    job = sleeper("--deaf")
    job.await_step(SAVED_STEP)
    cluster.run("scontrol", "update", f"JobId={job.job}", "TimeLimit=1")
    wait_until(lambda: cluster.job(job.job)["Restarts"] == "1", 150, "the job is requeued")
    cluster.run("scontrol", "update", f"JobId={job.job}", "TimeLimit=30")
    assert job.await_end() == "COMPLETED"
    assert job.endings()[0]["why"] == "the time limit came before the ranks were done"


def test_a_rank_that_dies_while_slurmctld_is_away(sleeper, cluster: Cluster) -> None:
    job = sleeper()
    job.await_step(SAVED_STEP)
    cluster.stop_controller()
    try:
        # Both: srun asks slurmctld to end the others of a rank that died.
        for rank in (0, 1):
            cluster.kill_rank(job.job, rank)
        log = job.run / "jobs" / f"{job.job}_0_log.out"
        wait_until(lambda: "slurmctld does not answer" in log.read_text(), 120, "the guard waits")
        time.sleep(AWAY_S)
        assert job.endings() == [], "it has not given up"
    finally:
        cluster.start_controller()
    assert job.await_end() == "COMPLETED"
    assert [row["action"] for row in job.endings()] == ["requeue", "done"]
    assert cluster.job(job.job)["Restarts"] == "1"


def test_sick_node_is_left_out_after_the_requeue(sleeper, cluster: Cluster) -> None:
    job = sleeper("--sick-node")
    assert job.await_end() == "COMPLETED"
    starts = [row["nodes"] for row in JobFolder(job.run).events(job.job) if row["event"] == "started"]
    assert starts == ["n[1-2]", "n[2-3]"]
    assert cluster.job(job.job)["ExcNodeList"] == "n1"
