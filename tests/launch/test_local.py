"""`--cluster local`: the same job as processes of this machine."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cluster import Resources, load_site
from launch.job import TaskSettings, Work, run_work
from launch.local import run_local
from launch.preflight import PreflightConfig
from launch.run_folder import JobFolder
from launch.submit import Job, run_debug, task_settings
from pipeline.errors import InputError, RunError

PROBE = """
import json, os, sys
from pathlib import Path

def main(argv):
    from pipeline.errors import InputError, RunError
    import torch.distributed as dist
    import torch
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
    facts = {name: os.environ.get(name) for name in names}
    if "--sick" in argv:
        from launch.rendezvous import SickNodes
        raise SickNodes("n2 is ill", ["n2"])
    if "--fault" in argv:
        from pipeline.errors import MachineFault
        raise MachineFault("/mnt is empty")
    if "--deaf" in argv:
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: Path(argv[0], "asked").touch())
        Path(argv[0], "up").touch()
        while True:
            time.sleep(0.1)
    if int(facts["WORLD_SIZE"]) > 1 and "--alone" not in argv:
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        facts["total"] = total.item()
    Path(argv[0], f"rank{facts['RANK']}.json").write_text(json.dumps(facts))
    print("rank", facts["RANK"], "says hello")
    if "--fail" in argv and facts["RANK"] == "1":
        raise InputError("rank 1 does not like this")
    if "--crash" in argv:
        raise ZeroDivisionError("by zero")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return 0
"""


SLURM_TASK = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_ID": "7",
    "SLURM_RESTART_COUNT": "1",
}


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PYTHONPATH with an entry called `launch_probe`."""
    (tmp_path / "launch_probe.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def make_job(folder: Path, *words: str, nodes: int = 1) -> Job:
    work = Work("pretrain", folder / "runs" / "probe", "launch_probe", (str(folder), *words), distributed=True)
    return Job(work, Resources(nodes=nodes), name="probe")


@pytest.mark.heavy
def test_two_nodes_are_two_processes(
    probe: Path, site_file: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")  # the others belong to somebody else
    assert run_local(make_job(probe, nodes=2), load_site(site_file, {"setup": ["export FROM_SETUP=1"]})) == 0
    facts = [json.loads((probe / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [fact["RANK"] for fact in facts] == ["0", "1"]
    assert all(fact["WORLD_SIZE"] == "2" and fact["total"] == 2.0 for fact in facts)
    assert {fact["CUDA_VISIBLE_DEVICES"] for fact in facts} == {"4,5"}
    shown = capfd.readouterr().out
    assert "rank 0 says hello" in shown
    assert "[preflight] 2 ranks on 1 nodes" in shown
    report = next((probe / "runs" / "probe" / "jobs" / "preflight").glob("*.json"))
    assert len(json.loads(report.read_text())["rows"]) == 2


@pytest.mark.heavy
def test_the_rank_that_failed_first_is_named(probe: Path, site_file: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^rank 1: rank 1 does not like this; its output: .*1_log.out$"):
        run_local(make_job(probe, "--fail", nodes=2), load_site(site_file, {}))
    captured = capfd.readouterr()
    assert "does not like this" not in captured.out + captured.err, "it is said once, by the exception"
    folder = JobFolder(probe / "runs" / "probe")
    first = folder.submissions()[0]["job"]
    assert "rank 1 says hello" in folder.log(first, 1).read_text()
    # The process id may come again; what the first start left must not be taken for the second's.
    assert run_local(make_job(probe, nodes=2), load_site(site_file, {})) == 0
    assert folder.submissions()[1]["job"] != first
    assert folder.exits(first, 0) and not folder.exits(folder.submissions()[1]["job"], 0)


@pytest.mark.heavy
def test_the_second_interrupt_ends_tasks_that_do_not_leave(
    probe: Path, site_file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a user at a terminal: the first is passed on as a wish to save, the tasks do not listen, the second ends."""

    def press() -> None:
        for sign in ("up", "asked"):
            while not (probe / sign).exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=press, daemon=True)
    user.start()
    with pytest.raises(RunError, match=r"run the same command again with --resume to go on"):
        run_local(make_job(probe, "--deaf"), load_site(site_file, {}))
    user.join(10)
    assert "SIGINT: the tasks were asked to save and leave; Ctrl-C ends them at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as it was before"


def test_debug_runs_here_and_never_prompts(
    probe: Path, site_file: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    assert run_debug(make_job(probe), load_site(site_file, {})) == 0
    assert run_debug(make_job(probe, "--crash"), load_site(site_file, {})) == 1
    assert "ZeroDivisionError: by zero" in capfd.readouterr().err


def test_arguments_after_a_requeue(probe: Path, monkeypatch: pytest.MonkeyPatch, site_file: str) -> None:
    # A run that was started with resume=PATH must go on from its own checkpoint when it comes back.
    for name, value in SLURM_TASK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    work = Work("pretrain", probe / "runs", "launch_probe", (str(probe), "--alone"), argv_after_requeue=("--crash",))
    settings = TaskSettings(load_site(site_file, {}).preflight, None, exit_process=False)
    assert run_work(work, settings) == 1
    assert JobFolder(probe / "runs").exits("7", 1)[0]["error"] == "ZeroDivisionError: by zero"


def test_sick_nodes_reach_the_guard(probe: Path, monkeypatch: pytest.MonkeyPatch, site_file: str) -> None:
    for name, value in SLURM_TASK.items():
        monkeypatch.setenv(name, value)
    work = Work("pretrain", probe / "runs", "launch_probe", (str(probe), "--sick"))
    for policy, excluded in (("exclude", ["n2"]), ("report", None)):
        preflight = PreflightConfig(slow_node=policy)
        assert run_work(work, TaskSettings(preflight, None, exit_process=False)) == 1
        row = JobFolder(probe / "runs").exits("7", 1)[0]
        assert (row.get("exclude"), row["error"]) == (excluded, "n2 is ill")


def test_a_machine_fault_reaches_the_guard_unless_the_site_wants_none_of_it(
    probe: Path, monkeypatch: pytest.MonkeyPatch, site_file: str
) -> None:
    for name, value in (SLURM_TASK | {"SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    for name, value in (("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    work = Work("shards", probe / "runs", "launch_probe", (str(probe), "--fault"))
    for words, noted in (({}, ["n1"]), ({"faulty_node": "report"}, None)):
        settings = replace(task_settings(Resources(), load_site(site_file, words)), exit_process=False)
        assert run_work(work, settings) == 1
        (row,) = JobFolder(probe / "runs").exits("7_3", 1)
        assert (row.get("exclude"), row.get("machine_fault", False)) == (noted, noted is not None)
        assert row["error"] == "/mnt is empty"
