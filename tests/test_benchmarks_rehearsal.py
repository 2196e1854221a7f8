"""Dress rehearsal per data set: published files, converter, fine-tuning of official weights, evaluation, report.

The shipped recipes and evaluation configs run as they are, with the paths and the size of the miniature put over them.
The weights have exactly the form of the released ones; nothing converts them.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.evaluate import main as evaluate
from tests.preprocess.benchmarks import miniatures

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "official_checkpoint.pt"
VOCABULARY = 49408

# data set -> training split, test split, evaluation set, queries whose video is there
SETS = {
    "msrvtt": ("train_9k", "test_1ka", "msrvtt_1ka", (4, 4)),
    "didemo": ("train", "test", "didemo", (2, 2)),
    "lsmdc": ("train", "test", "lsmdc", (3, 3)),
    "activitynet": ("train", "val_1", "activitynet", (2, 3)),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(weights in the released form, the open_clip config of their shape), known to open_clip by name."""
    folder = tmp_path_factory.mktemp("weights")
    state = torch.load(GOLDEN, weights_only=True)
    # The golden vocabulary is too small for the tokenizer; everything else stays as it is.
    name = "clipmodel.text_model.embeddings.token_embedding.weight"
    state[name] = 0.02 * torch.randn(VOCABULARY, state[name].shape[1], generator=torch.Generator().manual_seed(0))
    torch.save(state, folder / "official.pt")
    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "layers": 3, "width": 64, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": VOCABULARY, "width": 48, "heads": 4, "layers": 2},
    }
    path = folder / "ViT-golden-quickgelu.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return folder / "official.pt", path


def convert(name: str, folder: Path) -> Path:
    raw, out = folder / "raw", folder / "shards"
    raw.mkdir()
    getattr(miniatures, f"write_{name}")(raw)
    words = [f"annotations={raw}", f"videos={raw / 'videos'}", f"output={out}", "workers=1", "size_px=64"]
    assert import_module(f"preprocess.benchmarks.{name}").main([*words, "accept_counts=true"]) == 0
    return out


def train(
    name: str, folder: Path, shards: Path, weights: tuple[Path, Path], *options: str
) -> subprocess.CompletedProcess[str]:
    train_split = SETS[name][0]
    source: dict[str, Any] = {"shards": str(shards / train_split / "shards"), "caption_from": ""}
    if name == "msrvtt":
        source["texts"] = str(shards / train_split / "texts.jsonl")
    words = [
        f"configs/finetune/{name}_b32.yaml",
        f"runs_dir={folder / 'runs'}",
        "name=tuned",
        f"init_from={weights[0]}",
        f"model.name={weights[1]}",
        f"data.sources=[{json.dumps(source)}]",
        "data.num_workers=0",
        "data.num_frames=4",
        "batch.global_batch_size=2",
        "epochs=null",
        "steps=4",
        "engine.precision=fp32",
        "engine.device=cpu",
        "checkpoint.every_steps=0",
        "log.every_steps=1",
        "evaluation.sets=[]",
        "evaluation.best_metric=null",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.train", *words, *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("msrvtt", "didemo", "lsmdc", "activitynet")],
)
def test_rehearsal(name: str, tmp_path: Path, weights: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    shards = convert(name, tmp_path)
    for options in (["stop_at_step=2"], []):
        train(name, tmp_path, shards, weights, *options)
    run = tmp_path / "runs" / "tuned"
    steps = [
        row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "train/loss" in row
    ]
    assert steps == [1, 2, 3, 4]

    _, test_split, set_name, (num_queries, num_asked) = SETS[name]
    overrides = [
        f"sets.{set_name}.shards={shards / test_split / 'shards'}",
        f"sets.{set_name}.queries={shards / test_split / 'queries.jsonl'}",
        f"sets.{set_name}.query_bank={shards / SETS[name][0] / 'texts.jsonl'}",
        f"sets.{set_name}.num_workers=0",
        f"sets.{set_name}.num_frames=4",
        f"sets.{set_name}.max_missing_fraction=0.5",
        "device=cpu",
    ]
    capsys.readouterr()
    for checkpoint in (weights[0], run):
        assert evaluate([str(checkpoint), str(ROOT / f"configs/evaluate/{set_name}.yaml"), *overrides]) == 0
        assert f"N = {num_queries} of {num_asked} queries" in capsys.readouterr().out
    report = json.loads((run / "evaluation" / f"{set_name}.json").read_text())
    assert set(report["rescored"]) == {"dsl_official", "dsl", "qb_norm"}
    assert len(report["missing_videos"]) == num_asked - num_queries
    zero_shot = json.loads((weights[0].parent / "official_evaluation" / f"{set_name}.json").read_text())
    assert zero_shot["metrics"]["num_queries"] == report["metrics"]["num_queries"]

    assert evaluate(["compare", str(weights[0].parent / "official_evaluation" / f"{set_name}.json"), str(run)]) == 0
    table = capsys.readouterr().out
    assert "| official " in table and "| tuned " in table and "CLIP-ViP B/32 (paper)" in table
