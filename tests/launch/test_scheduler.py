"""What SLURM's commands say, read from stand-ins."""

import pytest

from launch.cluster import Resources, load_site
from launch.scheduler import accounted_state, check_partition, job_states, max_array_size, partitions
from pipeline.errors import InputError

SINFO = "printf 'batch*|1:00:00|6|up\\nbatch*|1:00:00|2|up\\nlong|infinite|4|up\\nold|1:00:00|4|down\\n'"


def test_partitions(commands) -> None:
    commands(sinfo=SINFO)
    found = partitions()
    assert found is not None
    assert found["batch"].num_nodes == 8
    assert found["batch"].is_default
    assert found["batch"].time_limit_minutes == 60
    assert found["long"].time_limit_minutes is None


@pytest.mark.parametrize(
    ("given", "nodes", "message"),
    [
        ({"partition": "gpu"}, 1, "no partition 'gpu' on this cluster; it has batch, long, old"),
        ({"partition": "long"}, 5, "partition long has 4 nodes, but --nodes is 5"),
        ({"time": "2:00:00"}, 1, "lets a job run for 60 minutes, but --time is 2:00:00"),
    ],
)
def test_refusals(commands, site_file: str, given: dict[str, str], nodes: int, message: str) -> None:
    commands(sinfo=SINFO)
    with pytest.raises(InputError, match=message):
        check_partition(load_site(site_file, given), Resources(nodes=nodes))


def test_findings(commands, site_file: str) -> None:
    commands(sinfo=SINFO)
    assert check_partition(load_site(site_file, {}), Resources(nodes=8)) == []
    assert "not up" in check_partition(load_site(site_file, {"partition": "old"}), Resources())[0]


def test_without_slurm_nothing_is_known(commands, site_file: str) -> None:
    commands()
    assert partitions() is None
    assert job_states(["1"]) == {}
    assert accounted_state("1") is None
    assert max_array_size() is None
    assert "no sinfo here" in check_partition(load_site(site_file, {}), Resources())[0]


def test_job_states(commands, capfd: pytest.CaptureFixture[str]) -> None:
    rows = ["7|7|7|RUNNING|None", "8|8|8|PENDING|Dependency", "9_0|10|9|COMPLETED|None", "9_1|9|9|RUNNING|None"]
    commands(
        squeue="\n".join(f"echo '{row}'" for row in rows),
        sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1",
        scontrol="echo 'MaxArraySize            = 1001'",
    )
    states = job_states(["7", "8", "9"])
    assert (states["7"], states["8"], states["9"], states["9_0"]) == (
        "RUNNING",
        "PENDING (Dependency)",
        "RUNNING",
        "COMPLETED",
    )
    assert accounted_state("7") is None
    assert max_array_size() == 1001
    assert capfd.readouterr().err == "", "no warning from polling reaches the terminal"
