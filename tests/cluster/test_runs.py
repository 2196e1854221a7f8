"""Whole runs on eight nodes: the chain, other numbers of nodes, two jobs at once, and what is refused at the door."""

import json
import math

import pytest
from drill import NUM_STEPS, Bench, digests
from slurm import Cluster, wait_until

Losses = dict[int, float]


def test_chain_over_eight_nodes(bench: Bench, shards: object) -> None:
    before = {name: digests(bench.folder / "shards" / name) for name in ("train", "heldout")}
    for name in before:
        (bench.folder / "shards" / name).rename(bench.folder / "shards" / f"{name}_by_one_process")
    done = bench.launch(
        "slurm_chain.py", "--nodes", "8", "--name", "chain", "--wait", "--shards-per-task", "1",
        "--shards", bench.file("shards_train.yaml"), "--shards", bench.file("shards_heldout.yaml"),
        "--pretrain", bench.file("pretrain.yaml"), "--evaluate", bench.file("evaluate.yaml"),
        "pretrain.steps=6", "pretrain.checkpoint.every_steps=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "no warnings reach the user's terminal"
    after = {name: digests(bench.folder / "shards" / name) for name in before}
    assert after == before, "an array of tasks writes the same bytes as one process"
    assert len(bench.losses("chain_pretrain")) == 6
    report = next((bench.folder / "reports").glob("*.json"))
    assert json.loads(report.read_text())
    arrays = [line for line in done.stdout.splitlines() if line.startswith("queued array")]
    assert len(arrays) > 2, "more tasks than MaxArraySize allows are split over arrays"


def test_eight_nodes_then_four(bench: Bench, reference: Losses) -> None:
    words = ["--config", bench.file("pretrain.yaml"), "--name", "shrink", "--wait"]
    first = bench.launch("slurm_pretrain.py", *words, "--nodes", "8", "stop_at_step=20")
    assert first.returncode == 0, first.stdout + first.stderr
    assert bench.last_step("shrink") == 20
    second = bench.launch("slurm_pretrain.py", *words, "--nodes", "4", "--resume")
    assert second.returncode == 0, second.stdout + second.stderr
    losses = bench.losses("shrink")
    assert len(losses) == NUM_STEPS
    assert all(math.isclose(losses[step], reference[step], rel_tol=1e-3) for step in reference)


def test_two_jobs_on_the_same_nodes(bench: Bench, reference: Losses) -> None:
    # A node has two cores and a task takes one, so both jobs fit on n1 and n2.
    both = {name: bench.pretrain(name, "--setup", "true") for name in ("left", "right")}
    wait_until(lambda: all(bench.last_step(name) >= 1 for name in both), 400, "both jobs train at the same time")
    nodes = {name: bench.cluster.job(job)["NodeList"] for name, job in both.items()}
    assert nodes["left"] == nodes["right"], "the jobs were meant to share their nodes"
    for name, job in both.items():
        bench.await_end(job, name)
        assert bench.losses(name) == reference


def test_failed_link_cancels_what_depends_on_it(bench: Bench, shards: object) -> None:
    # An unwritable folder for the index of the stream fails the training link, not its checks on the login node.
    (bench.folder / "in_the_way").write_text("")
    done = bench.launch(
        "slurm_chain.py", "--nodes", "1", "--name", "broken", "--wait",
        "--pretrain", bench.file("pretrain.yaml"), "--evaluate", bench.file("evaluate.yaml"),
        f"pretrain.data.index_folder={bench.folder / 'in_the_way' / 'index'}",
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    jobs = [line.split()[2].rstrip(":") for line in done.stdout.splitlines() if line.startswith("queued job")]
    wait_until(lambda: bench.cluster.state(jobs[1]) == "CANCELLED", 60, "SLURM cancels the evaluation")
    assert not bench.events("broken_evaluate", jobs[1]), "the evaluation never started"
    status = bench.launch_status("broken_evaluate")
    assert f"job {jobs[0]} in {bench.run_folder('broken_pretrain')} failed before it" in status


def test_a_job_without_progress_stops(bench: Bench, shards: object) -> None:
    # So little CPU time is not enough to import torch: the rank dies every time.
    job = bench.pretrain("stuck", "--setup", "ulimit -t 2", nodes=1)
    wait_until(lambda: bench.cluster.state(job) == "FAILED", 300, "the job gives up", interval_s=1.0)
    ended = [row for row in bench.events("stuck", job) if row["event"] == "ended"]
    assert [row["action"] for row in ended] == ["requeue", "stop"]
    assert "no progress since the last requeue" in bench.launch_status("stuck")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "nowhere"], "no partition 'nowhere' on this cluster; it has batch, urgent"),
        (["--nodes", "9"], "partition batch has 8 nodes, but --nodes is 9"),
        (["--time", "1-00:00:00"], "lets a job run for 60 minutes"),
        (["optim.lrr=1"], "optim.lrr: unknown key"),
        (["data.sources=[{shards: /nowhere}]"], "/nowhere holds no manifest.parquet"),
        (["--constraint", "unheard_of"], "sbatch refused the job 'refused'"),
    ],
)
def test_bad_input_is_refused_at_the_door(bench: Bench, shards: object, words: list[str], message: str) -> None:
    before = bench.cluster.squeue()
    done = bench.launch("slurm_pretrain.py", "--config", bench.file("pretrain.yaml"), "--name", "refused", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, "one line"
    assert bench.cluster.squeue() == before, "nothing was queued"


def test_full_run_folder_is_refused(bench: Bench, reference: Losses) -> None:
    before = bench.cluster.squeue()
    words = ["--config", bench.file("pretrain.yaml"), "--name", "undisturbed", "--nodes", "2"]
    done = bench.launch("slurm_pretrain.py", *words)
    assert done.returncode == 2
    assert "holds a finished run" in done.stderr
    assert bench.cluster.squeue() == before


def test_status_without_accounting(bench: Bench, cluster: Cluster, reference: Losses) -> None:
    shown = bench.launch_status("undisturbed")
    assert f"step        {NUM_STEPS} of {NUM_STEPS}" in shown
    assert "finished    yes" in shown
    assert "slowest     rank" in shown
