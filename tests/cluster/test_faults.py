"""Faults strike a training run on real nodes; it must come back in the same job with the same losses, bitwise.

A fault strikes at a step drawn from a seed. A test fails when its fault did not land: the job must have started twice.
"""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from drill import NUM_STEPS, SAVE_EVERY, Bench, draw
from slurm import Cluster, release, wait_until, was_told

from launch.rendezvous import expand_nodes

Losses = dict[int, float]


def strike_step(name: str) -> int:
    """A step past the first checkpoint and well before the end."""
    return draw(name, SAVE_EVERY + 1, NUM_STEPS * 2 // 3)


def test_requeue(bench: Bench, reference: Losses) -> None:
    job = bench.pretrain("requeue")
    bench.await_step("requeue", strike_step("requeue"))
    bench.cluster.run("scontrol", "requeue", job)
    bench.await_end(job, "requeue")
    bench.check_resumed("requeue", job, reference)


def test_rank_killed_before_the_first_checkpoint(bench: Bench, reference: Losses) -> None:
    job = bench.pretrain("killed_early")
    bench.await_step("killed_early", 1)
    pid = bench.cluster.find_rank(job, 1)  # before the fault is due: looking takes a few steps
    bench.await_step("killed_early", draw("killed_early", 2, SAVE_EVERY // 2))
    os.kill(pid, signal.SIGKILL)
    bench.await_end(job, "killed_early")
    bench.check_resumed("killed_early", job, reference)
    ended = bench.endings("killed_early", job)[0]
    assert (ended["action"], ended["progress"]) == ("requeue", ""), "there was no checkpoint yet"


def test_rank_killed_while_saving(bench: Bench, reference: Losses) -> None:
    job = bench.pretrain("killed_saving")
    bench.await_step("killed_saving", draw("killed_saving", 1, 3) * SAVE_EVERY + 1)
    saving = bench.hold_in_save("killed_saving", job)
    complete = bench.checkpoints("killed_saving")
    bench.cluster.kill_rank(job)
    bench.await_end(job, "killed_saving")
    bench.check_resumed("killed_saving", job, reference)
    step = f"step_{saving.split('-')[1]}"
    ended = bench.endings("killed_saving", job)[0]
    assert step not in complete, "the save was not over when its rank was killed"
    assert f" {complete[-1]}/" in ended["progress"], "the run went on from the checkpoint before"


def test_time_limit(bench: Bench, reference: Losses) -> None:
    job = bench.pretrain("limit")
    bench.await_step("limit", strike_step("limit"))
    ranks = bench.cluster.hold_ranks(job, 2)
    # The limit is set only now, because how long it takes to get here depends on the machine. SLURM looks for jobs to
    # warn every 30 s, so one that has less than the lead and these 30 s left may not be warned at all.
    hours, minutes, seconds = map(int, bench.cluster.job(job)["RunTime"].split(":"))
    limit = 60 * hours + minutes + (1 if seconds < 5 else 2)
    bench.cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    wait_until(lambda: all(was_told(pid) for pid in ranks), 120, "the signal before the time limit")
    release(ranks)
    wait_until(lambda: bench.cluster.job(job)["Restarts"] == "1", 60, "the job is requeued")
    bench.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    bench.await_end(job, "limit")
    bench.check_resumed("limit", job, reference)
    check_saved(bench, "limit", job)


def test_preemption(bench: Bench, reference: Losses) -> None:
    preempt(bench, "preempted", reference)


def test_node_down(bench: Bench, reference: Losses) -> None:
    job = bench.pretrain("node")
    bench.await_step("node", strike_step("node"))
    # SLURM needs SlurmdTimeout to notice; the ranks of a dead node do nothing meanwhile.
    bench.cluster.hold_ranks(job, 2)
    node = list(expand_nodes(bench.cluster.job(job)["NodeList"]))[1]
    bench.cluster.kill_node(node)
    try:
        wait_until(lambda: bench.cluster.job(job)["Restarts"] == "1", 120, "SLURM takes the node for dead")
    finally:
        bench.cluster.start_node(node)
    bench.await_end(job, "node")
    bench.check_resumed("node", job, reference)


def preempt(bench: Bench, name: str, reference: Losses) -> None:
    """A job of a higher partition takes all nodes; the run gives way, saves, and comes back."""
    job = bench.pretrain(name)
    bench.await_step(name, strike_step(name))
    ranks = bench.cluster.hold_ranks(job, 2)
    urgent = ["srun", "-p", "urgent", "-N", str(bench.cluster.num_nodes), "--exclusive", "sleep", "2"]
    with subprocess.Popen(urgent, env=bench.cluster.env, stderr=subprocess.DEVNULL) as taker:
        wait_until(lambda: all(was_told(pid) for pid in ranks), 60, "SLURM asks the run to give way")
        release(ranks)
        assert taker.wait(timeout=120) == 0
    bench.await_end(job, name)
    bench.check_resumed(name, job, reference)
    check_saved(bench, name, job)


def check_saved(bench: Bench, name: str, job: str) -> None:
    """The first incarnation saved when it was told to, beyond its last regular checkpoint."""
    ended = bench.endings(name, job)[0]
    assert ended["why"] == "stopped by a signal, state saved", bench.explain(job, name)
    step = int(ended["progress"].split("step_")[1].split("/")[0])
    assert step >= strike_step(name)


@pytest.fixture(scope="module")
def plain_cluster(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A second cluster that does not send the user's signal before preempting: only SIGTERM comes."""
    with Cluster(tmp_path_factory.mktemp("plain") / "c", num_nodes=2, signal_before_preemption=False) as plain:
        yield plain


def test_preemption_with_sigterm_only(bench: Bench, plain_cluster: Cluster, reference: Losses) -> None:
    preempt(Bench(plain_cluster, bench.folder), "sigterm", reference)
