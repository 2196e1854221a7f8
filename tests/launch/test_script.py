"""The sbatch script: what is in it, and what its trap does when srun comes back."""

import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch import guard
from launch.cluster import ROOT, Resources, load_site
from launch.controller import Controller, JobNow
from launch.decision import Ending, count_futile
from launch.job import Work
from launch.run_folder import JobFolder
from launch.submit import Job, batch_script

ENDED = Ending(code=0, restart=0, state="RUNNING", state_reason="None", restarts_now=0, finished=False)


def make_job(run_folder: Path) -> Job:
    work = Work(
        kind="pretrain",
        run_folder=run_folder,
        module="pipeline.train",
        argv=("x.yaml",),
        distributed=True,
        progress=str(run_folder / "checkpoints" / "*"),
        finished=(str(run_folder / "COMPLETE"),),
    )
    return Job(work, Resources(nodes=8), name="probe")


def test_script_contents(tmp_path: Path, site_file: str) -> None:
    site = load_site(site_file, {"partition": "batch", "setup": ["module load cuda"], "reservation": "mine"})
    script = batch_script(make_job(tmp_path / "runs" / "probe"), site, after=["12"])
    for line in (
        "#SBATCH --nodes=8",
        "#SBATCH --partition=batch",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@30",
        "#SBATCH --reservation=mine",
        "#SBATCH --dependency=afterok:12",
        "#SBATCH --kill-on-invalid-dep=yes",
        "#SBATCH --time=60",
        f"#SBATCH --chdir={ROOT}",
        "module load cuda",
        "export OMP_NUM_THREADS=1",
        "trap launch_on_exit EXIT",
    ):
        assert line in script.splitlines(), line
    assert "--kill-on-bad-exit=1" in script
    assert "--gpus-per-node" not in script
    assert script.index("module load cuda") < script.index("trap launch_on_exit EXIT") < script.index("srun")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not (tmp_path / "runs").exists(), "writing the script must not create anything"


def run_script(
    script: str, shell: tuple[str, ...] = ("bash",), **environment: str
) -> "subprocess.CompletedProcess[str]":
    # The fake job runs the checkout itself; the snapshot is made at submission only.
    script = script.replace("PYTHONSAFEPATH=1", f"PYTHONPATH={ROOT}")
    return subprocess.run(
        shell, input=script, text=True, capture_output=True, env=os.environ | environment, timeout=60, cwd=ROOT
    )


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("srun", "state", "action", "code"),
    [
        ("exit 0", "RUNNING", "requeue", 1),  # stopped by a signal: COMPLETE is not there
        ("touch $RUN/COMPLETE", "RUNNING", "done", 0),
        ("exit 137", "RUNNING", "requeue", 137),
        ("exit 2", "RUNNING", "stop", 2),
        ("exit 143", "COMPLETING", "left", 143),  # scancel
    ],
)
def test_trap(tmp_path: Path, site_file: str, commands, srun: str, state: str, action: str, code: int) -> None:
    run_folder = tmp_path / "runs" / "probe"
    run_folder.mkdir(parents=True)
    commands(
        srun=srun,
        scontrol=f'echo "$@" >> {tmp_path}/asked; [ "$1" = requeue ] || echo JobState={state} Reason=None Restarts=0',
    )
    done = run_script(
        batch_script(make_job(run_folder), load_site(site_file, {})), SLURM_JOB_ID="7", RUN=str(run_folder)
    )
    assert done.returncode == code, done.stderr
    events = JobFolder(run_folder).events("7")
    assert [row["event"] for row in events] == ["started", "ended"]
    assert events[-1]["action"] == action
    asked = (tmp_path / "asked").read_text()
    assert ("requeue 7" in asked) == (action == "requeue")


@pytest.mark.heavy
def test_nothing_is_left_where_hangups_are_ignored(tmp_path: Path, site_file: str, commands) -> None:
    """A watcher that outlives the script would hold its output open, and this test until its limit."""
    commands(srun="exit 2", scontrol="echo JobState=RUNNING Reason=None Restarts=0")
    script = batch_script(make_job(tmp_path / "runs" / "probe"), load_site(site_file, {}))
    assert run_script(script, ("nohup", "bash"), SLURM_JOB_ID="7").returncode == 2


@pytest.mark.heavy
def test_second_failure_without_progress_stops(tmp_path: Path, site_file: str, commands) -> None:
    run_folder = tmp_path / "runs" / "probe"
    run_folder.mkdir(parents=True)
    commands(srun="exit 1", scontrol="echo JobState=RUNNING Reason=None Restarts=${SLURM_RESTART_COUNT:-0}")
    script = batch_script(make_job(run_folder), load_site(site_file, {}))
    first = run_script(script, SLURM_JOB_ID="7")
    second = run_script(script, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    assert "requeue:" in first.stdout
    assert "stop: failed with exit code 1, and no progress since the last requeue" in second.stdout
    assert second.returncode == 1


@pytest.mark.heavy
def test_time_limit_is_noticed_while_srun_hangs(tmp_path: Path, site_file: str, commands) -> None:
    run_folder = tmp_path / "runs" / "probe"
    run_folder.mkdir(parents=True)
    commands(
        srun="trap '' TERM; touch $RUN/up; while [ ! -e $RUN/end ]; do sleep 0.1; done; exit 143",
        scontrol=f'echo "$@" >> {tmp_path}/asked; [ "$1" = requeue ] || echo JobState=COMPLETING Reason=TimeLimit',
    )
    script = batch_script(make_job(run_folder), load_site(site_file, {}))
    script = script.replace("PYTHONSAFEPATH=1", f"PYTHONPATH={ROOT}")
    (tmp_path / "job.sh").write_text(script)
    environment = os.environ | {"SLURM_JOB_ID": "7", "RUN": str(run_folder)}
    batch = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=environment, cwd=ROOT, start_new_session=True)
    try:
        wait_for(run_folder / "up")
        subprocess.run(["bash", "-c", f"kill -TERM -- -{batch.pid}"], check=True)  # as slurmstepd does
        wait_for(JobFolder(run_folder).path / "events" / ".7.0.decided")
        wait_until_text(tmp_path / "asked", "requeue 7")
    finally:
        (run_folder / "end").touch()
        batch.wait(timeout=30)
    assert [row["action"] for row in JobFolder(run_folder).events("7") if row["event"] == "ended"] == ["requeue"]


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def wait_until_text(path: Path, text: str) -> None:
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{text!r} did not appear in {path}")


def test_sick_nodes_are_left_out_of_the_requeued_job(tmp_path: Path, commands) -> None:
    commands(scontrol=f'echo "$@" >> {tmp_path}/asked; echo JobId=7 ExcNodeList=n1')
    controller = Controller(0)
    now, end = controller.job("7"), replace(ENDED, excluded="n3,n5")
    assert guard.carry_out(end, JobFolder(tmp_path), "7", [], "", controller, now) == 1
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["-o show job 7", "requeue 7", "update JobId=7 ExcNodeList=n1,n3,n5"], "beside the user's own"


@pytest.mark.parametrize(
    ("answer", "action"), [("Unable to contact slurm controller", "stop"), ("Job is pending execution", "left")]
)
def test_a_requeue_that_is_refused_is_no_requeue(tmp_path: Path, commands, answer: str, action: str) -> None:
    commands(scontrol=f'[ "$1" = requeue ] && {{ echo "{answer}" >&2; exit 1; }}; echo JobState=RUNNING')
    folder = JobFolder(tmp_path)
    assert guard.carry_out(ENDED, folder, "7", [], "1 a", Controller(0), JobNow("RUNNING")) == 1
    assert [row["action"] for row in folder.events("7")] == ["requeue", action]
    assert count_futile(folder.events("7"), "1 a") == 1
    assert folder.is_over({"job": "7"}) == (action == "stop")


def test_events_are_json(tmp_path: Path) -> None:
    JobFolder(tmp_path).add_event("7", {"event": "started"})
    assert json.loads((tmp_path / "jobs" / "events" / "7.jsonl").read_text())["event"] == "started"
