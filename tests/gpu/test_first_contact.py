"""`make test-gpu`: what to run first on a machine with GPUs. Skips itself where there is none.

Trains a tiny model through the launcher on up to two GPUs: NCCL, ZeRO 0 to 3, bf16 and fp16, offloaded, compiled, in
parts, resume, a dead rank, and the losses of the CPU.
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

ROOT = Path(__file__).resolve().parents[2]
NUM_GPUS = min(2, torch.cuda.device_count())
NUM_STEPS = 8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(NUM_GPUS == 0, reason="no GPU on this machine"),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, its shards, and a training config."""
    base = tmp_path_factory.mktemp("gpu")
    sample = base / "sample"
    run_module("preprocess.sample", f"folder={sample}", "num_train_clips=160", "num_heldout_clips=16")
    shards = {
        "output": str(base / "shards"),
        "metadata": {"layout": "hdvila", "files": [str(sample / "metadata" / "train" / "*.jsonl")]},
        "videos": {"templates": [str(sample / "videos" / "{video_id}.{ext}")]},
        "texts": {"subtitles": [str(sample / "subtitles.jsonl")], "captions": [str(sample / "captions_db")]},
        "clips": {"fps": 3, "size_px": 32, "quality": 2},
        "shards": {"clips_per_shard": 64},
    }
    (base / "shards.yaml").write_text(yaml.safe_dump(shards))
    run_module("preprocess.run", str(base / "shards.yaml"))
    train = {
        "name": "gpu",
        "runs_dir": str(base / "runs"),
        "steps": NUM_STEPS,
        "data": {"sources": [{"shards": str(base / "shards")}], "num_frames": 4, "num_text_tokens": 32},
        "batch": {"global_batch_size": 32},
        "model": {
            "architecture": {
                "embed_dim": 64,
                "quick_gelu": True,
                "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
                "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
            },
            "num_temporal": 4,
        },
        "loss": {"name": "vsc_fc"},
        "optim": {"lr": 3e-4},
        "engine": {"precision": "fp32", "tf32": False, "zero_stage": 1},
        "log": {"every_steps": 1},
    }
    (base / "train.yaml").write_text(yaml.safe_dump(train))
    return base


@pytest.fixture(scope="session")
def cpu_losses(folder: Path) -> list[float]:
    """The losses of one process on the CPU in fp32."""
    return train(folder, "cpu", "engine.device=cpu", gpus=0)


@pytest.fixture(scope="session")
def untrained_losses(folder: Path) -> list[float]:
    """The losses of a run that learns nothing."""
    return train(folder, "untrained", "engine.device=cpu", "optim.lr=1.0e-12", gpus=0)


def run_module(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr


def train(folder: Path, name: str, *words: str, gpus: int = NUM_GPUS) -> list[float]:
    """Train through the launcher; the loss of every step."""
    launcher = [sys.executable, str(ROOT / "launch" / "slurm_pretrain.py"), "--cluster", "local"]
    config = ["--config", str(folder / "train.yaml"), "--name", name, "--gpus-per-node", str(gpus)]
    done = subprocess.run([*launcher, *config, *words], text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows]


def test_same_losses_as_on_the_cpu(folder: Path, cpu_losses: list[float]) -> None:
    assert train(folder, "parity") == pytest.approx(cpu_losses, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_and_precision(
    folder: Path, cpu_losses: list[float], untrained_losses: list[float], stage: int, precision: str
) -> None:
    """Near the losses of the CPU, and far from those of a run that learns nothing, which are at most 7% away."""
    words = [f"engine.zero_stage={stage}", f"engine.precision={precision}"]
    losses = train(folder, f"zero{stage}_{precision}", *words)
    # In fp16 the first steps find the scale of the loss, without an update.
    assert losses == pytest.approx(cpu_losses, rel=0.05 if precision == "bf16" else 0.1)
    assert abs(losses[-1] - cpu_losses[-1]) < abs(losses[-1] - untrained_losses[-1])
    if precision == "bf16":
        assert distance(losses, cpu_losses) < distance(untrained_losses, cpu_losses) / 4


def distance(losses: list[float], others: list[float]) -> float:
    return sum(abs(one - other) for one, other in zip(losses, others, strict=True))


HOST = "{device: cpu, pin_memory: true}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("offload1", ["engine.zero_stage=1", f"deepspeed.zero_optimization.offload_optimizer={HOST}"]),
        ("offload2", ["engine.zero_stage=2", f"deepspeed.zero_optimization.offload_optimizer={HOST}"]),
        (
            "offload3",
            [
                "engine.zero_stage=3",
                f"deepspeed.zero_optimization.offload_optimizer={HOST}",
                f"deepspeed.zero_optimization.offload_param={HOST}",
            ],
        ),
        ("compiled0", ["engine.zero_stage=0", "engine.compile=true"]),
        ("compiled1", ["engine.zero_stage=1", "engine.compile=true"]),
        ("parts0", ["engine.zero_stage=0", "batch.micro_batches=2"]),
        ("parts1", ["engine.zero_stage=1", "batch.micro_batches=2"]),
        ("parts3", ["engine.zero_stage=3", "batch.micro_batches=2"]),
    ],
)
def test_the_same_losses_in_other_ways(folder: Path, cpu_losses: list[float], name: str, words: list[str]) -> None:
    """Offloaded, compiled, in parts: all in fp32 as on the CPU."""
    assert train(folder, name, *words) == pytest.approx(cpu_losses, rel=1e-3)


def test_fp16_offloaded_and_compiled(folder: Path, cpu_losses: list[float]) -> None:
    offload = f"deepspeed.zero_optimization.offload_optimizer={HOST}"
    for name, words in (("half_offload", ["engine.zero_stage=2", offload]), ("half_compiled", ["engine.compile=true"])):
        assert train(folder, name, "engine.precision=fp16", *words) == pytest.approx(cpu_losses, rel=0.1)


@pytest.mark.skipif(NUM_GPUS < 2, reason="a rank that is left needs another one")
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


@pytest.mark.parametrize("stage", [1, 3])
def test_resume(folder: Path, stage: int) -> None:
    words = [f"engine.zero_stage={stage}", "engine.precision=bf16"]
    whole = train(folder, f"whole{stage}", *words)
    assert len(train(folder, f"resumed{stage}", *words, "stop_at_step=4")) == 4
    assert train(folder, f"resumed{stage}", *words, "--resume") == pytest.approx(whole, rel=1e-3)


@pytest.mark.skipif(NUM_GPUS < 2, reason="NCCL between GPUs needs two of them")
def test_preflight_times_nccl(folder: Path) -> None:
    train(folder, "nccl")
    report = next((folder / "runs" / "nccl" / "jobs" / "preflight").glob("*.json"))
    rows = json.loads(report.read_text())["rows"]
    assert [row["rank"] for row in rows] == [0, 1]
    assert all(row["all_reduce_s"] > 0 for row in rows)
