"""Whole runs: the chain over eight nodes, other numbers of nodes, two jobs at once, and this machine without SLURM."""

import itertools
import json
import math

import pytest
import yaml
from drill import NUM_STEPS, Bench, digests
from slurm import wait_until

Losses = dict[int, float]
POLLS = ("squeue", "sacct")


def test_chain_over_eight_nodes(bench: Bench, shards) -> None:
    for name in ("train", "heldout"):
        config = yaml.safe_load((bench.folder / f"shards_{name}.yaml").read_text())
        config["output"] = str(bench.folder / "chain" / name)
        (bench.folder / f"chain_{name}.yaml").write_text(yaml.safe_dump(config))
    done = bench.launch(
        "slurm_chain.py", "--nodes", "8", "--name", "chain", "--wait", "--shards-per-task", "1",
        "--shards", bench.file("chain_train.yaml"), "--shards", bench.file("chain_heldout.yaml"),
        "--pretrain", bench.file("pretrain.yaml"), "--evaluate", bench.file("evaluate.yaml"),
        "pretrain.steps=6", "pretrain.checkpoint.every_steps=3",
        f"pretrain.data.sources=[{{shards: {bench.folder}/chain/train}}]",
        f"evaluate.sets.heldout.shards={bench.folder}/chain/heldout",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "no warnings reach the user's terminal"
    for name in ("train", "heldout"):
        assert digests(bench.folder / "chain" / name) == digests(shards / name), "an array writes what one process does"
    assert len(bench.losses("chain_pretrain")) == 6
    started = bench.events("chain_pretrain", queued(done.stdout, "pretrain"))[0]
    assert started["nodes"] == f"n[1-{bench.cluster.num_nodes}]"
    report = next((bench.folder / "reports").glob("*.json"))
    assert json.loads(report.read_text())["metrics"]["num_queries"] > 0
    arrays = [line for line in done.stdout.splitlines() if line.startswith("queued array")]
    assert len(arrays) > 2, "more tasks than MaxArraySize allows are split over arrays"
    check_questions(bench)


def queued(shown: str, kind: str) -> str:
    """The job id of one link of a chain."""
    return next(line.split()[2].rstrip(":") for line in shown.splitlines() if f": {kind} in " in line)


def check_questions(bench: Bench) -> None:
    """One question at the start, about the cluster; then at most one a minute, about the jobs."""
    asked = bench.questions()
    assert [command.startswith(POLLS) for _, command in asked] == [False, *[True] * (len(asked) - 1)], asked
    assert all(later - earlier > 59 for (earlier, _), (later, _) in itertools.pairwise(asked)), asked


def test_eight_nodes_then_four(bench: Bench, reference: Losses) -> None:
    words = ["--config", bench.file("pretrain.yaml"), "--name", "shrink", "--wait"]
    first = bench.launch("slurm_pretrain.py", *words, "--nodes", "8", "stop_at_step=20")
    assert first.returncode == 0, first.stdout + first.stderr
    assert bench.last_step("shrink") == 20
    second = bench.launch("slurm_pretrain.py", *words, "--nodes", "4", "--resume")
    assert second.returncode == 0, second.stdout + second.stderr
    check_questions(bench)
    assert "from step_00000020" in second.stdout
    assert "s before the time limit; the longest save took" in second.stdout, "the lead was held against real saves"
    losses = bench.losses("shrink")
    assert len(losses) == NUM_STEPS
    assert all(math.isclose(losses[step], reference[step], rel_tol=1e-3) for step in reference)


def test_two_jobs_on_the_same_nodes(bench: Bench, reference: Losses) -> None:
    # A node has two cores and a task takes one, so both jobs fit on n1 and n2. Neither starts its ranks before both
    # run, or on a fast machine the first would be over before the second has begun.
    gate = bench.folder / "gate"
    both = {
        name: bench.pretrain(name, "--setup", f"until [ -e {gate} ]; do sleep 0.1; done") for name in ("left", "right")
    }
    wait_until(lambda: {bench.cluster.state(job) for job in both.values()} == {"RUNNING"}, 120, "both jobs run")
    nodes = {name: bench.cluster.job(job)["NodeList"] for name, job in both.items()}
    assert nodes["left"] == nodes["right"], "the jobs were meant to share their nodes"
    gate.touch()
    for name, job in both.items():
        bench.await_end(job, name)
        assert bench.losses(name) == reference


def test_failed_link_cancels_what_depends_on_it(bench: Bench, shards) -> None:
    # An unwritable folder for the index of the stream fails the training link, not its checks on the login node.
    (bench.folder / "in_the_way").write_text("")
    done = bench.launch(
        "slurm_chain.py", "--nodes", "1", "--name", "broken", "--wait",
        "--pretrain", bench.file("pretrain.yaml"), "--evaluate", bench.file("evaluate.yaml"),
        f"pretrain.data.index_folder={bench.folder / 'in_the_way' / 'index'}",
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    failed, dependent = queued(done.stdout, "pretrain"), queued(done.stdout, "evaluate")
    wait_until(lambda: bench.cluster.state(dependent) == "CANCELLED", 60, "SLURM cancels the evaluation")
    assert not bench.events("broken_evaluate", dependent), "the evaluation never started"
    status = bench.launch_status("broken_evaluate")
    assert f"job {failed} in {bench.run_folder('broken_pretrain')} failed before it" in status


def test_a_job_without_progress_stops(bench: Bench, shards) -> None:
    # So little CPU time is not enough to import torch: the rank dies every time.
    job = bench.pretrain("stuck", "--setup", "ulimit -t 2", nodes=1)
    wait_until(lambda: bench.cluster.state(job) == "FAILED", 300, "the job gives up", interval_s=1.0)
    assert [row["action"] for row in bench.endings("stuck", job)] == ["requeue", "stop"]
    assert "no progress since the last requeue" in bench.launch_status("stuck")


def test_status_without_accounting(bench: Bench, reference: Losses) -> None:
    shown = bench.launch_status("undisturbed")
    assert f"step        {NUM_STEPS} of {NUM_STEPS}" in shown
    assert "finished    yes" in shown
    assert "slowest     rank" in shown


def test_local_processes_get_the_same_losses(bench: Bench, reference: Losses) -> None:
    config = ["--config", bench.file("pretrain.yaml"), "--name", "local"]
    done = bench.launch("slurm_pretrain.py", *config, "--cluster", "local", "--nodes", "2")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert bench.losses("local") == reference
    assert bench.questions() == [], "without SLURM"


@pytest.mark.parametrize("words", [(), ("--partition", "urgent", "--mem", "500", "--setup", "true")])
def test_dry_run_shows_what_is_submitted(bench: Bench, shards, words: tuple[str, ...]) -> None:
    name = f"shown{len(words)}"
    config = ["--config", bench.file("pretrain.yaml"), "--name", name, "--nodes", "2", *words]
    before = bench.cluster.squeue().keys()  # SLURM forgets old ones meanwhile
    shown = bench.launch("slurm_pretrain.py", *config, "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, ""), shown.stdout + shown.stderr
    assert bench.cluster.squeue().keys() <= before, "nothing was queued"
    assert not bench.run_folder(name).exists()
    script = shown.stdout.split("# sbatch script\n")[1]
    job = bench.queue("slurm_pretrain.py", *config)[0]
    bench.cluster.run("scancel", job)
    submitted = (bench.run_folder(name) / "jobs" / f"{job}_submission.sh").read_text()
    assert script.strip() == submitted.strip()
