"""A chain on this machine: one command, killed in the middle, and run again for what is left."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launch.chain import Link
from launch.chain_here import run_links
from launch.cluster import ROOT
from launch.run_folder import JobFolder
from pipeline.errors import InputError, RunError
from tests.launch.conftest import TINY_MODEL

STEPS = 200


@pytest.fixture
def chain(tmp_path: Path, site_file: str) -> list[str]:
    """A command for shards, a training and its evaluation on a corpus of a few clips."""
    sample = tmp_path / "sample"
    words = [f"folder={sample}", "num_train_clips=12", "num_heldout_clips=4", "processes=1"]
    subprocess.run([sys.executable, "-m", "preprocess.sample", *words], cwd=ROOT, check=True, capture_output=True)
    files: dict[str, object] = {}
    files["shards"] = {
        "output": str(tmp_path / "set"),
        "metadata": {"layout": "hdvila", "files": [str(sample / "metadata" / "*" / "*.jsonl")]},
        "videos": {"templates": [str(sample / "videos" / "{video_id}.{ext}")]},
        "texts": {"subtitles": [str(sample / "subtitles.jsonl")], "captions": [str(sample / "captions_db")]},
        "clips": {"size_px": 32},
        "shards": {"clips_per_shard": 8},
        "workers": 1,
    }
    files["pretrain"] = {
        "name": "x",
        "runs_dir": str(tmp_path / "runs"),
        "steps": STEPS,
        "data": {"sources": [{"shards": str(tmp_path / "set")}], "num_frames": 2, "num_text_tokens": 16}
        | {"num_workers": 0},
        "batch": {"global_batch_size": 4},
        "model": TINY_MODEL,
        "engine": {"precision": "fp32", "device": "cpu"},
        "checkpoint": {"every_steps": 100},
        "log": {"every_steps": 1},
    }
    queries = str(sample / "queries.jsonl")
    one = {"shards": str(tmp_path / "set"), "queries": queries, "num_frames": 2, "num_text_tokens": 16}
    files["evaluate"] = {"sets": {"heldout": one | {"page_queries": 0}}, "device": "cpu"}
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    links = [word for name in ("shards", "pretrain", "evaluate") for word in (f"--{name}", f"{tmp_path}/{name}.yaml")]
    start = [sys.executable, str(ROOT / "launch" / "slurm_chain.py"), "--cluster", "local", "--site", site_file]
    return [*start, "--name", "c", *links]


def call(chain: list[str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*chain, *words], text=True, capture_output=True, timeout=800)


def steps_of(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row["step"] for line in lines if line.endswith("}") and "train/loss" in (row := json.loads(line))]


def wait_until(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def stop_in_training(chain: list[str], run: Path, number: signal.Signals) -> tuple[int, str]:
    """Start the chain and send it a signal in the middle of its training; returns its exit code and stderr."""
    with subprocess.Popen(chain, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_until("the training makes steps", lambda: len(steps_of(run)) > 20 or running.poll() is not None)
            running.send_signal(number)
            _, said = running.communicate(timeout=120)
        finally:
            running.kill()
    pid = int(JobFolder(run).submissions()[-1]["pid"])
    wait_until("its tasks leave", lambda: not Path(f"/proc/{pid}").exists())
    return running.returncode, said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_chain_that_was_killed_goes_on_with_what_is_left(chain: list[str], tmp_path: Path) -> None:
    run, manifest = tmp_path / "runs" / "c_pretrain", tmp_path / "set" / "manifest.parquet"
    code, _ = stop_in_training(chain, run, signal.SIGKILL)
    assert code == -signal.SIGKILL
    reached, written = len(steps_of(run)), manifest.read_bytes()
    assert reached < STEPS and list(run.glob("checkpoints/step_*/COMPLETE.json")), "its launcher was gone: it saved"

    done = call(chain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "##### shards" in done.stdout and "##### evaluate" in done.stdout
    assert steps_of(run) == list(range(1, STEPS + 1)), "every step once"
    report = run / "evaluation" / "heldout.json"
    assert json.loads(report.read_text())["metrics"]["num_queries"] > 0
    assert manifest.read_bytes() == written

    written_at = report.stat().st_mtime_ns
    again = call(chain)
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do for pretrain" in again.stdout
    assert "nothing is left to do for evaluate" in again.stdout
    assert report.stat().st_mtime_ns == written_at


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_link_stops_the_chain_with_its_state_saved(chain: list[str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "c_pretrain"
    code, said = stop_in_training(chain, run, signal.SIGINT)
    assert code == 1
    last = "pretrain failed: stopped, its state is saved; not started: evaluate; run the same command again to go on"
    assert said.splitlines()[-1] == f"error: {last}"
    assert said.count("error") == 1
    assert not (run / "COMPLETE").exists() and list(run.glob("checkpoints/step_*/COMPLETE.json"))


def link(kind: str, ran: list[str], error: Exception | None = None) -> Link:
    def run() -> None:
        ran.append(kind)
        if error is not None:
            raise error

    return Link(kind, JobFolder(Path("runs") / kind), lambda after: after, run, lambda: None)


@pytest.mark.parametrize("error", [RunError("a full disk"), InputError("a wrong file")])
def test_the_links_after_one_that_fails_do_not_start(error: Exception) -> None:
    ran: list[str] = []
    links = [link("shards", ran), link("pretrain", ran, error), link("finetune", ran), link("evaluate", ran)]
    with pytest.raises(RunError, match=rf"^pretrain failed: {error}; not started: finetune, evaluate; run the same"):
        run_links(links)
    assert ran == ["shards", "pretrain"]
