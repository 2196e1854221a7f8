"""`make test-gpu`, retrieval: what evaluation and encoding give on GPUs is what they give on the CPU.

Ranks have the same bits everywhere once the features are given; features of two devices agree within float32.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.gpu.shards import motion_jpeg, picture, write_shards
from pipeline.evaluate import main as evaluation
from pipeline.evaluation.directions import rank_at_once
from pipeline.evaluation.ranking import Ranks, rank_positives
from pipeline.evaluation.rescoring import dual_softmax, querybank
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.weights import save_model
from tests.gpu.conftest import SIZE_PX, small_model

ROOT = Path(__file__).resolve().parents[2]
NUM_GPUS = min(2, torch.cuda.device_count())
NUM_CLIPS = 48

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out clips of the sample corpus, a model that was never trained, and an evaluation of it."""
    base = tmp_path_factory.mktemp("gpu_retrieval")
    write_shards(base / "shards", num_clips=NUM_CLIPS, size_px=SIZE_PX)
    rows = [
        {"query_id": str(n), "text": f"a person {n} holds {n % 7}", "clip_id": f"v{n // 30}.{n}.mp4"}
        for n in range(NUM_CLIPS)
    ]
    (base / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ModelConfig.model_validate(small_model())
    save_model(base / "model", CLIPViP.from_config(config).state_dict(), config)
    chosen = {
        "shards": str(base / "shards"),
        "queries": str(base / "queries.jsonl"),
        "num_frames": 4,
        "num_text_tokens": 32,
        "batch_size": 5,
        "rescoring": ["dsl_official", "dsl", "qb_norm"],
        "query_bank": str(base / "queries.jsonl"),
    }
    (base / "evaluate.yaml").write_text(yaml.safe_dump({"sets": {"heldout": chosen}}))
    return base


@pytest.fixture(scope="session")
def on_cpu(folder: Path) -> dict[str, Any]:
    """The report of one process on the CPU."""
    return evaluate(folder, "cpu", "device=cpu", ranks=1)


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluate(folder: Path, name: str, *words: str, ranks: int) -> dict[str, Any]:
    """The report of `pipeline.evaluate`: in this process, or of several ranks under torchrun."""
    command = [str(folder / "model"), str(folder / "evaluate.yaml"), f"output={folder / name}", *words]
    if ranks == 1:
        assert evaluation(command) == 0
    else:
        run(
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            "-m",
            "pipeline.evaluate",
            *command,
        )
    report: dict[str, Any] = json.loads((folder / name / "heldout.json").read_text())
    return report


def assert_same_report(report: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same questions; recalls within two queries, which rounding of the features may move."""
    for key in ("num_queries", "num_queries_asked", "num_videos"):
        assert report["metrics"][key] == expected["metrics"][key] == NUM_CLIPS
    rescored = [(report["rescored"][name]["metrics"], r["metrics"]) for name, r in expected["rescored"].items()]
    for found, wanted in [(report["metrics"], expected["metrics"]), *rescored]:
        assert found.keys() == wanted.keys()
        for key in (key for key in wanted if key[-2:] in ("r1", "r5") or key.endswith("r10")):
            assert found[key] == pytest.approx(wanted[key], abs=2.01 / NUM_CLIPS), key


def test_evaluation_on_a_gpu(folder: Path, on_cpu: dict[str, Any]) -> None:
    assert_same_report(evaluate(folder, "gpu", "device=cuda", ranks=1), on_cpu)


@pytest.mark.skipif(NUM_GPUS < 2, reason="NCCL between GPUs needs two of them")
def test_evaluation_over_nccl(folder: Path, on_cpu: dict[str, Any]) -> None:
    assert_same_report(evaluate(folder, "nccl", "device=cuda", ranks=NUM_GPUS), on_cpu)


def test_encoding_on_a_gpu(folder: Path) -> None:
    pytest.importorskip("av")
    draw = numpy.random.default_rng(0)
    videos = []
    for number in range(3):
        pictures = [picture(draw, SIZE_PX) for _ in range(20)]
        path = folder / f"video{number}.mp4"
        path.write_bytes(motion_jpeg(pictures, SIZE_PX))
        videos.append(str(path))
    from pipeline import CLIPViP as Model

    found, expected = (Model.load(folder / "model", device=name).encode_videos(videos) for name in ("cuda", "cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def unit(num: int, seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    return normalize(centre + spread * torch.randn(num, 512, generator=generator), dim=-1)


def counts(ranks: Ranks) -> list[list[int]]:
    return [ranks.greater.tolist(), ranks.tied.tolist(), ranks.best.tolist()]


@pytest.fixture(params=[False, True], ids=["fp32", "tf32"])
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    """float32 products as they are, and as a training run may have set them."""
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0], ids=["spread", "close", "collapsed"])
def test_ranks_have_the_same_bits_on_a_gpu(spread: float) -> None:
    videos, owner = unit(300, 1, spread), torch.arange(300).repeat_interleave(3)
    texts = unit(900, 2, spread)
    texts[::7] = texts[0].clone()
    expected = [counts(ranks) for ranks in rank_at_once(texts, videos, owner)]
    for block_size in (None, 70):
        found = rank_at_once(texts.cuda(), videos.cuda(), owner.cuda(), block_size)
        assert [counts(ranks) for ranks in found] == expected


def test_rescored_ranks_agree_on_a_gpu() -> None:
    """exp may differ in its last bits between devices: at most a few ranks may move, and those by one."""
    texts, videos, numbers = unit(300, 1), unit(300, 2), torch.arange(300)
    for make in (lambda t, v: dual_softmax(t, v, official=True)[0], lambda t, v: querybank(t[:50], t, v)):
        cpu, gpu = (
            rank_positives(t, v, n, n, rescore=make(t, v))
            for t, v, n in ((texts, videos, numbers), (texts.cuda(), videos.cuda(), numbers.cuda()))
        )
        moved = abs(cpu.greater - gpu.greater)
        assert moved.max() <= 1 and moved.sum() <= 3
