"""Whole training runs on a GPU, in this process: from shards, evaluated, stopped and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.gpu.conftest import DEVICE, FRAMES, REHEARSAL, small_model

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8


def train(folder: Path, shards: Path, name: str, *words: str, in_process: bool = True) -> list[dict[str, float]]:
    """A run, or the rest of one; what it logged."""
    from pipeline.train import main

    config: dict[str, Any] = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "steps": STEPS,
        "data": {
            "sources": [{"shards": str(shards)}],
            "num_frames": FRAMES,
            "num_text_tokens": 32,
            "num_workers": 0,
            "index_folder": str(folder / "index"),
        },
        "batch": {"global_batch_size": 16},
        "model": small_model(),
        "optim": {"lr": 3e-4},
        "engine": {"precision": "fp32", "tf32": False, "zero_stage": 0, "device": DEVICE.type, "compile": False},
        "log": {"every_steps": 1},
    }
    if REHEARSAL:
        config["engine"]["capture"] = True
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    if in_process:
        assert main([str(path), *words]) == 0
    else:
        command = [sys.executable, "-m", "pipeline.train", str(path), *words]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "train/loss" in row]


def losses(rows: list[dict[str, float]]) -> list[float]:
    return [row["train/loss"] for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> list[float]:
    """The losses of a run with captured towers."""
    return losses(train(tmp_path_factory.mktemp("whole"), shards, "whole"))


def test_a_run_is_that_of_the_cpu(tmp_path: Path, shards: Path, whole: list[float]) -> None:
    """In another process: DeepSpeed has one kind of device in each."""
    words = ["engine.device=cpu", "engine.capture=false"]
    assert whole == pytest.approx(losses(train(tmp_path, shards, "cpu", *words, in_process=False)), rel=1e-3)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_stopped_and_resumed(tmp_path: Path, shards: Path, whole: list[float], stage: int) -> None:
    words = [f"engine.zero_stage={stage}", *(["engine.capture=false"] if stage == 3 else [])]
    assert len(train(tmp_path, shards, "resumed", *words, "stop_at_step=4")) == 4
    assert losses(train(tmp_path, shards, "resumed", *words)) == pytest.approx(whole, rel=1e-3)


def test_resumed_to_the_last_bit_where_operations_are_deterministic(tmp_path: Path, shards: Path) -> None:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    backends = torch.backends.cuda
    kinds = (backends.enable_flash_sdp, backends.enable_mem_efficient_sdp, backends.enable_cudnn_sdp)
    for choose in kinds:
        choose(False)
    try:
        expected = losses(train(tmp_path, shards, "whole"))
        train(tmp_path, shards, "resumed", "stop_at_step=3")
        assert losses(train(tmp_path, shards, "resumed")) == expected
    finally:
        torch.use_deterministic_algorithms(False)
        for choose in kinds:
            choose(True)


def test_a_run_in_parts_and_in_bf16(tmp_path: Path, shards: Path, whole: list[float]) -> None:
    assert losses(train(tmp_path, shards, "parts", "batch.micro_batches=2")) == pytest.approx(whole, rel=1e-3)
    found = losses(train(tmp_path, shards, "bf16", "engine.precision=bf16"))
    assert found == pytest.approx(whole, rel=0.05)


def test_a_run_evaluates_between_its_steps(tmp_path: Path, shards: Path, whole: list[float]) -> None:
    queries = tmp_path / "queries.jsonl"
    rows = [{"query_id": str(n), "text": f"a person {n}", "clip_id": f"v{n // 30}.{n}.mp4"} for n in range(12)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = {"name": "held", "shards": str(shards), "queries": str(queries)}
    held_out |= {"num_frames": FRAMES, "num_text_tokens": 32, "num_workers": 0}
    words = ["evaluation.every_steps=3", f"evaluation.sets={json.dumps([held_out])}"]
    found = train(tmp_path, shards, "evaluated", *words)
    assert losses(found) == pytest.approx(whole, rel=1e-3)
    assert [row["step"] for row in found if "eval/held/t2v_r1" in row] == [3, 6, 8]


@pytest.mark.skipif(REHEARSAL, reason="a CPU copies nothing")
def test_pixels_arrive_as_they_were(shards: Path, tmp_path: Path) -> None:
    from pipeline.data.stream import DataConfig, Stream

    config = DataConfig.model_validate(
        {
            "sources": [{"shards": str(shards)}],
            "num_frames": FRAMES,
            "num_text_tokens": 8,
            "num_workers": 0,
            "index_folder": tmp_path,
        }
    )
    common: dict[str, Any] = {"global_batch_size": 8, "image_size_px": 32, "seed": 1, "tokenize": tokenize}
    streams = [iter(Stream(config, **common, device=device)) for device in (DEVICE, None)]
    for _ in range(5):
        there, here = (next(stream) for stream in streams)
        assert there.video_BTCHW.device == DEVICE and here.video_BTCHW.device.type == "cpu"
        assert torch.equal(there.to(DEVICE).video_BTCHW.cpu(), here.video_BTCHW)
        assert torch.equal(there.middle_BCHW.cpu(), here.middle_BCHW)


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.ones(len(texts), 8, dtype=torch.int64)
