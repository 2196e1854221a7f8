"""Site files, time limits, and the sbatch parameters that follow."""

from pathlib import Path

import pytest

from launch.cluster import Resources, load_site, minutes_of, sbatch_parameters, training_resources
from launch.job import Work
from launch.submit import Job, batch_script
from pipeline.errors import InputError


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("12:00:00", 720), ("2-12", 3600), ("1-00:30", 1470), ("1-00:00:01", 1441)],
)
def test_time_notation(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "0", "-5", "0:00:00"])
def test_time_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time limit"):
        minutes_of(text)


def test_command_line_overrides_site(site_file: str) -> None:
    site = load_site(site_file, {"partition": "long", "time": "12:00:00", "gpus_per_node": 4, "mem": None})
    assert (site.partition, site.time, site.gpus_per_node, site.mem) == ("long", "12:00:00", 4, None)


def test_unknown_site_names_the_known() -> None:
    with pytest.raises(InputError, match=r"no site 'nowhere'.*cpu, default"):
        load_site("nowhere", {})


def test_wrong_site_value(site_file: str) -> None:
    with pytest.raises(InputError, match="time: a time limit is written"):
        load_site(site_file, {"time": "forever"})


def test_shipped_sites_load() -> None:
    assert load_site("default", {}).gpus_per_node == 8
    assert load_site("cpu", {}).gpus_per_node == 0


def test_a_task_per_gpu_or_node(site_file: str) -> None:
    assert training_resources(load_site(site_file, {}), 3) == Resources(nodes=3)
    gpus = load_site(site_file, {"gpus_per_node": 8, "cpus_per_gpu": 6})
    assert training_resources(gpus, 4) == Resources(4, tasks_per_node=8, gpus_per_node=8, cpus_per_task=6)
    assert training_resources(gpus, 4).num_tasks == 32


def test_cpu_jobs_take_the_cpu_partition(site_file: str) -> None:
    site = load_site(site_file, {"partition": "gpu", "cpu_partition": "cpu"})
    assert sbatch_parameters(site, Resources(), name="x", setup=[])["partition"] == "cpu"
    on_gpu = Resources(gpus_per_node=8)
    assert sbatch_parameters(site, on_gpu, name="x", setup=[])["partition"] == "gpu"


def test_the_sites_own_sbatch_words_replace_ours(tmp_path: Path) -> None:
    site = load_site("default", {"sbatch": {"gpus-per-node": "h100:8", "mail-type": "FAIL"}})
    work = Work("pretrain", tmp_path / "runs" / "x", "pipeline.train", ())
    script = batch_script(Job(work, training_resources(site, 2), name="x"), site).splitlines()
    assert [line for line in script if "gpus" in line] == ["#SBATCH --gpus-per-node=h100:8"]
    assert "#SBATCH --mail-type=FAIL" in script
    assert not any("wckey" in line for line in script), "submitit's own, which some sites refuse"


def test_the_interface_is_also_that_of_nccl_and_gloo() -> None:
    site = load_site("default", {"interface": "ib0", "env": {"NCCL_SOCKET_IFNAME": "ib1"}})
    assert (site.job_env["GLOO_SOCKET_IFNAME"], site.job_env["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib1")
    assert "GLOO_SOCKET_IFNAME" not in load_site("default", {}).job_env


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 5_000,
        b"a: " + b"{b: " * 5_000,
        b"time: 2024-13-41",
        b"? [1, 2]\n: 3",
        b"time: !!int x",
        b"\0\0\0",
        b"\xff\xfet\0i\0m\0e\0",
        b"time: &x [*x]",
        b"time: '60",
        b"- time",
        b"time: !!python/object/apply:os.getpid []",
    ],
    ids=[
        "deep_list",
        "deep_map",
        "no_date",
        "list_as_key",
        "no_int",
        "nul",
        "utf16",
        "itself",
        "open",
        "list",
        "python",
    ],
)
def test_a_damaged_site_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_site(str(path), {})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
