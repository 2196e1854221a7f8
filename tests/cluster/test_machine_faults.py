"""Faults of single machines and of slurmctld, with an entry that only sleeps, on a real SLURM."""

from pathlib import Path

import pytest
from slurm import FINISHED, Cluster, wait_until

from launch.cluster import Resources, load_site
from launch.job import Work
from launch.rendezvous import expand_nodes
from launch.run_folder import JobFolder, Row
from launch.submit import Job, submit

NUM_TASKS = 6


@pytest.fixture
def array(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """array("n1") submits an array whose tasks meet a fault of their machine on these nodes; its id."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def start(*faulty: str, **site: object) -> str:
        work = Work(kind="shards", run_folder=tmp_path / "run", module="sleeper", argv=())
        tasks = tuple((str(tmp_path / "run"), f"--faulty={','.join(faulty)}", f"--mark={n}") for n in range(NUM_TASKS))
        job = Job(work, Resources(cpus_per_task=2), name="sleeper", array=tasks, throttle=2)
        return submit(job, load_site("cpu", {"time": "30", "signal_lead_s": 20} | site))

    yield start
    cluster.cancel_all()


def await_all(cluster: Cluster, job: str) -> set[str]:
    """The states in which the tasks of an array ended."""
    tasks = [f"{job}_{n}" for n in range(NUM_TASKS)]
    wait_until(lambda: all(cluster.squeue().get(task) in FINISHED for task in tasks), 400, "all tasks end")
    return {cluster.squeue()[task] for task in tasks}


def rows(run: Path, job: str, event: str) -> list[Row]:
    folder = JobFolder(run)
    return [row for n in range(NUM_TASKS) for row in folder.events(f"{job}_{n}") if row["event"] == event]


def test_a_faulty_node_draws_each_task_once_at_most(cluster: Cluster, array, tmp_path: Path) -> None:
    job = array("n1", "n2")
    assert await_all(cluster, job) == {"COMPLETED"}
    ended = rows(tmp_path / "run", job, "ended")
    requeued = [row for row in ended if row["action"] == "requeue"]
    assert {row["excluded"] for row in requeued} == {"n1", "n2"}
    assert "by a fault of its machine: n1 has no videos" in "".join(row["why"] for row in requeued)
    # Two tasks run at a time, and meet the two nodes; those that wait leave both out without having seen them.
    assert len(requeued) <= 4, "what waits in the array leaves the nodes out as well"
    kept_off = [set(expand_nodes(cluster.job(f"{job}_{n}")["ExcNodeList"])) for n in range(NUM_TASKS)]
    assert kept_off[-1] == {"n1", "n2"}, kept_off


def test_a_fault_on_every_node_stops_with_its_reason(cluster: Cluster, array, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "NodeName=n[3-8]", "State=DRAIN", "Reason=test")
    try:
        job = array("n1", "n2")
        assert await_all(cluster, job) == {"FAILED"}
    finally:
        cluster.run("scontrol", "update", "NodeName=n[3-8]", "State=RESUME")
    stopped = [row["why"] for row in rows(tmp_path / "run", job, "ended") if row["action"] == "stop"]
    assert len(stopped) == NUM_TASKS
    wrong = [why for why in stopped if "no usable node of partition batch is left" not in why]
    assert not wrong and all("has no videos" in why for why in stopped)


def test_the_site_may_want_no_node_left_out(cluster: Cluster, array, tmp_path: Path) -> None:
    job = array("n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", faulty_node="report")
    assert await_all(cluster, job) == {"FAILED"}
    assert not any("excluded" in row for row in rows(tmp_path / "run", job, "ended"))
