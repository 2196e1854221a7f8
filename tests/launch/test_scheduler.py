"""What SLURM's commands say, read from stand-ins."""

from pathlib import Path

import pytest

from launch.cluster import Resources, load_site
from launch.run_folder import JobFolder
from launch.scheduler import Partition, accounted_state, check_cluster, cluster_facts, job_states
from pipeline.errors import InputError
from tests.launch.conftest import BATCH, cluster

SCONTROL = cluster(
    BATCH,
    "long Default=NO MaxNodes=3 MaxTime=UNLIMITED State=UP TotalNodes=4",
    "old Default=NO MaxNodes=UNLIMITED MaxTime=1-00:00:00 State=DOWN TotalNodes=4",
    max_array_size=6,
)


def test_one_call_tells_everything_about_the_cluster(commands, tmp_path) -> None:
    commands(scontrol=f"echo asked >> {tmp_path}/asked\n{SCONTROL}")
    facts = cluster_facts()
    assert facts is not None
    assert facts.partitions["batch"] == Partition("batch", True, 60, 8, None, True)
    assert facts.partitions["long"] == Partition("long", False, None, 4, 3, True)
    assert facts.partitions["old"] == Partition("old", False, 1440, 4, None, False)
    assert facts.max_array_size == 6
    assert cluster_facts() is facts
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(
    ("given", "nodes", "message"),
    [
        ({"partition": "gpu"}, 1, "no partition 'gpu' on this cluster; it has batch, long, old"),
        ({"partition": "batch,gpu"}, 1, "no partition 'gpu' on this cluster"),
        ({"partition": "long,old"}, 5, "partition long has 4 nodes, but --nodes is 5"),
        ({"partition": "long"}, 5, "partition long has 4 nodes, but --nodes is 5"),
        ({"partition": "long"}, 4, "lets a job have 3 nodes, but --nodes is 4"),
        ({"time": "2:00:00"}, 1, "lets a job run for 60 minutes, but --time is 2:00:00"),
    ],
)
def test_refusals(commands, site_file: str, given: dict[str, str], nodes: int, message: str) -> None:
    commands(scontrol=SCONTROL)
    with pytest.raises(InputError, match=message):
        check_cluster(load_site(site_file, given), Resources(nodes=nodes), ())


def test_one_of_several_partitions_is_enough(commands, site_file: str) -> None:
    commands(scontrol=SCONTROL)
    assert check_cluster(load_site(site_file, {"partition": "long,batch"}), Resources(nodes=8), ()) == []


def test_jobs_to_wait_for_must_exist(commands, site_file: str, tmp_path: Path) -> None:
    jobs = "JobId=41 ArrayJobId=40 ArrayTaskId=3 JobState=RUNNING\nJobId=50 JobState=RUNNING"
    commands(scontrol=SCONTROL.replace("scontrol: show config", f"{jobs}\nscontrol: show config") + "\nexit 1")
    site = load_site(site_file, {"runs_dir": str(tmp_path)})
    JobFolder(tmp_path / "b32").add_submission({"job": "30"})
    assert check_cluster(site, Resources(), ("40", "40_3", "50", "30")) == [], "30 has ended and is remembered"
    with pytest.raises(InputError, match="--after 60: SLURM knows no such job"):
        check_cluster(site, Resources(), ("50", "60"))


def test_findings(commands, site_file: str) -> None:
    commands(scontrol=SCONTROL)
    assert check_cluster(load_site(site_file, {}), Resources(nodes=8), ()) == []
    assert "not up" in check_cluster(load_site(site_file, {"partition": "old"}), Resources(), ())[0]


def test_without_slurm_nothing_is_known(commands, site_file: str) -> None:
    commands()
    assert cluster_facts() is None
    assert job_states(["1"]) == {}
    assert accounted_state("1") is None
    assert "no SLURM answers here" in check_cluster(load_site(site_file, {}), Resources(), ())[0]


def test_job_states(commands, capfd: pytest.CaptureFixture[str]) -> None:
    rows = ["7|7|7|RUNNING|None", "8|8|8|PENDING|Dependency", "9_0|10|9|COMPLETED|None", "9_1|9|9|RUNNING|None"]
    commands(
        squeue="\n".join(f"echo '{row}'" for row in rows),
        sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1",
    )
    states = job_states(["7", "8", "9"])
    assert (states["7"], states["8"], states["9"], states["9_0"]) == (
        "RUNNING",
        "PENDING (Dependency)",
        "RUNNING",
        "COMPLETED",
    )
    assert accounted_state("7") is None
    assert capfd.readouterr().err == "", "no warning from polling reaches the terminal"


def test_accounted_states_of_an_array_are_counted(commands) -> None:
    commands(sacct="echo COMPLETED; echo FAILED; echo COMPLETED")
    assert accounted_state("9") == "COMPLETED 2, FAILED 1"
    commands(sacct="echo 'CANCELLED by 0'")
    assert accounted_state("9") == "CANCELLED by 0"
