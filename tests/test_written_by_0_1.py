"""Files of version 0.1 are resumed, retried, audited, trained on and loaded by this code."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import load_config
from pipeline.data.index import Manifest
from pipeline.encode import CLIPViP
from pipeline.log import read_metrics
from preprocess.audit import main as audit
from preprocess.config import PreprocessConfig
from preprocess.retry import retry
from preprocess.run import run
from tests.pipeline import cases
from tests.pipeline.ranks import RankPool

FILES = Path(__file__).parent / "data/written_by_0_1/files.tar.xz"
CHECKPOINTS = {stage: 2 * (stage + 1) for stage in range(4)}
"""ZeRO stage -> the step after which it saved."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written_by_0_1")
    with tarfile.open(FILES) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def written(untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files that the test may change, as the current folder: their configs hold relative paths."""
    folder = tmp_path / "written"
    shutil.copytree(untouched, folder)
    monkeypatch.chdir(folder)
    return folder


def hashes(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*/*.tar"))}


def test_a_set_is_whole_and_its_missing_clips_are_delivered(written: Path) -> None:
    config = load_config(PreprocessConfig, [Path("preprocess.yaml")], [])
    before = hashes(config.output)
    assert len(before) == 4 and audit(["shards", "--workers", "1"]) == 0

    (written / "later_5.mp4").rename(written / "videos/-vid_5.mp4")
    stats = retry(config)
    assert (stats["num_delivered"], stats["num_failed"]) == (18, 0)
    assert before.items() <= hashes(config.output).items(), "what was published stays byte for byte"
    assert audit(["shards", "--workers", "1"]) == 0


def test_a_finished_set_is_left_as_it_is(written: Path) -> None:
    config = load_config(PreprocessConfig, [Path("preprocess.yaml")], [])
    before = hashes(config.output)
    assert run(config)["num_delivered"] == 15
    assert hashes(config.output) == before


@pytest.mark.parametrize("folder", ["shards", "foreign_index"])
def test_an_index_is_opened(written: Path, folder: str) -> None:
    expected = [
        (f"{shard}", offset)
        for shard in pq.read_table(f"{folder}/manifest.parquet")["shard"].to_pylist()
        for offset in pq.read_table(f"{folder}/{shard}.parquet")["offset"].to_pylist()
    ]
    inode = {path: path.stat().st_ino for path in (written / folder).glob("index/*/*.arrow")}
    manifest = Manifest.open(folder)
    assert [(place.shard, place.offset) for place in manifest.places(np.arange(manifest.num_samples))] == expected
    assert all(path.stat().st_ino == number for path, number in inode.items()), "an index that is there is kept"
    assert audit([folder, "--workers", "1"]) == 0


def test_weights_give_the_features_of_before(written: Path) -> None:
    expected = json.loads(Path("expected_features.json").read_text())
    frames = (torch.arange(2 * 3 * 3 * 16 * 16) % 251).to(torch.uint8).reshape(2, 3, 3, 16, 16)
    own = CLIPViP.load("export", device="cpu")
    official = CLIPViP.from_config(own.config.model_copy(update={"pretrained": "official.pt"}))
    for model in (own, official.eval()):
        torch.testing.assert_close(model.encode_texts(expected["texts"]), torch.tensor(expected["text_features"]))
        torch.testing.assert_close(model.encode_frames(frames), torch.tensor(expected["video_features"]))


@pytest.mark.heavy
def test_a_checkpoint_of_every_stage_goes_on(written: Path) -> None:
    """Under another stage than it was saved by as well: the next steps lose what they lost in the run of before."""
    expected = {row["step"]: row["train/loss"] for row in read_metrics(written / "expected_metrics.jsonl")}
    with RankPool(1) as pool:
        for stage, step in CHECKPOINTS.items():
            run_folder = written / f"from_{stage}/run"
            shutil.copytree(written / "runs/run", run_folder)
            for other in CHECKPOINTS.values():
                if other > step:
                    shutil.rmtree(run_folder / f"checkpoints/step_{other:08d}")
            words = ["train.yaml", f"runs_dir=from_{stage}", f"engine.zero_stage={stage}", f"stop_at_step={step + 2}"]
            assert pool.run(cases.training_in, str(written), words) == [0]
            losses = {row["step"]: row["train/loss"] for row in read_metrics(run_folder / "metrics.jsonl")}
            assert list(losses) == list(range(1, step + 3))
            assert losses == pytest.approx({number: expected[number] for number in losses}, rel=1e-5)
