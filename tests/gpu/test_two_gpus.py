"""Two GPUs: the launcher, NCCL under every ZeRO stage, a dead rank. Skips itself where there is one.

On one GPU all tests of the step and of runs are in test_step.py and test_runs.py, without a launcher.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.gpu.conftest import FRAMES, small_model

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 8

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A training config beside an empty folder of runs."""
    base = tmp_path_factory.mktemp("two")
    train = {
        "name": "gpu",
        "runs_dir": str(base / "runs"),
        "steps": NUM_STEPS,
        "data": {
            "sources": [{"shards": str(shards)}],
            "num_frames": FRAMES,
            "num_text_tokens": 32,
            "index_folder": str(base / "index"),
        },
        "batch": {"global_batch_size": 32},
        "model": small_model(),
        "optim": {"lr": 3e-4},
        "engine": {"precision": "fp32", "tf32": False, "zero_stage": 1},
        "log": {"every_steps": 1},
    }
    (base / "train.yaml").write_text(yaml.safe_dump(train))
    return base


def train(folder: Path, name: str, *words: str, gpus: int = 2) -> list[float]:
    """Train through the launcher; the loss of every step."""
    launcher = [sys.executable, str(ROOT / "launch" / "slurm_pretrain.py"), "--cluster", "local"]
    config = ["--config", str(folder / "train.yaml"), "--name", name, "--gpus-per-node", str(gpus)]
    done = subprocess.run([*launcher, *config, *words], text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows]


@pytest.fixture(scope="module")
def cpu_losses(folder: Path) -> list[float]:
    """The losses of one process on the CPU in fp32."""
    return train(folder, "cpu", "engine.device=cpu", gpus=0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_have_the_losses_of_the_cpu(folder: Path, cpu_losses: list[float], stage: int) -> None:
    """Captured and compiled where the stage allows it; reduced during the backward pass."""
    assert train(folder, f"zero{stage}", f"engine.zero_stage={stage}") == pytest.approx(cpu_losses, rel=1e-3)


def test_a_dead_rank_ends_the_other_within_the_configured_time(folder: Path) -> None:
    """Whether NCCL's watchdog or our own handler ends it: not with exit code 0, and not only after minutes."""
    limit_s = 30
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        common = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
        }
    words = ["name=dead", "steps=100000", f"engine.collective_timeout_s={limit_s}", "checkpoint.every_steps=0"]
    command = [sys.executable, "-m", "pipeline.train", str(folder / "train.yaml"), *words]
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env=common | {"RANK": str(number), "LOCAL_RANK": str(number)})
        for number in range(2)
    ]
    try:
        metrics = folder / "runs" / "dead" / "metrics.jsonl"
        end = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < end and all(one.poll() is None for one in ranks)
            time.sleep(0.2)
        ranks[1].kill()
        assert ranks[0].wait(timeout=3 * limit_s) != 0
    finally:
        for one in ranks:
            one.kill()
            one.wait()


def test_preflight_times_nccl(folder: Path) -> None:
    train(folder, "nccl")
    report = next((folder / "runs" / "nccl" / "jobs" / "preflight").glob("*.json"))
    rows = json.loads(report.read_text())["rows"]
    assert [row["rank"] for row in rows] == [0, 1]
    assert all(row["all_reduce_s"] > 0 for row in rows)
