"""Bad input through the entry points: one readable line and exit code 2, or a named row in the failures table."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import evaluate
from pipeline.config import load_config
from pipeline.errors import InputError, run_command
from pipeline.run_folder import make_folders, prepare
from pipeline.train_config import TrainConfig
from preprocess import run as preprocess_run
from preprocess.sample import __main__ as sample
from preprocess.sample.corpus import build_corpus
from preprocess.sample.plan import SampleConfig

PRETRAIN = "configs/tiny/pretrain.yaml"


def fails_in_one_line(
    main: Callable[[list[str]], int],
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Run an entry as the shell would; returns its only line on stderr."""
    monkeypatch.setattr("sys.argv", ["entry", *argv])
    with pytest.raises(SystemExit) as left:
        run_command(main)
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def train_config(argv: list[str]) -> int:
    load_config(TrainConfig, [PRETRAIN], argv)
    return 0


@pytest.mark.parametrize(
    ("main", "argv", "words"),
    [
        (train_config, ["optim.learning_rate=1"], ["optim.learning_rate", "unknown key"]),
        (train_config, ["optm.lr=1"], ["optm", "did you mean 'optim"]),
        (train_config, ["steps=0", "batch.global_batch_size=-1"], ["2 mistakes", "steps", "global_batch_size"]),
        (preprocess_run.main, ["configs/preprocess/nowhere.yaml"], ["cannot read", "nowhere.yaml"]),
        (preprocess_run.main, ["configs/preprocess/sample_train.yaml", "clip.fps=2"], ["clip", "did you mean 'clips"]),
        (sample.main, ["num_clips=3"], ["num_clips", "unknown key"]),
        (sample.main, ["--seed"], ["unknown option"]),
        (evaluate.main, ["runs/nowhere", "configs/tiny/evaluate.yaml"], ["no checkpoint", "runs/nowhere"]),
    ],
)
def test_a_wrong_command_line_is_one_line(main, argv, words, capsys, monkeypatch) -> None:
    line = fails_in_one_line(main, argv, capsys, monkeypatch)
    assert all(word in line for word in words), line


def test_a_run_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    make_folders(tmp_path / "demo")
    prepare(tmp_path / "demo", load_config(TrainConfig, [PRETRAIN], [f"runs_dir={tmp_path}"]))
    (tmp_path / "demo/metrics.jsonl").write_text('{"step": 1}\n')  # without a step, the folder takes any config
    other = load_config(TrainConfig, [PRETRAIN], [f"runs_dir={tmp_path}", "optim.lr=0.5"])
    with pytest.raises(InputError, match=r"optim\.lr") as refusal:
        prepare(tmp_path / "demo", other)
    assert "\n" not in str(refusal.value)


@pytest.mark.heavy
def test_metadata_that_is_not_json_is_counted_and_a_shard_folder_of_another_config_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    build_corpus(
        SampleConfig(folder=corpus, num_train_clips=4, num_heldout_clips=1, width_px=48, height_px=32, processes=1)
    )
    with open(corpus / "metadata/train/hdvila_part0.jsonl", "a") as stream:
        stream.write('{"video_id": "cut off he\n')
    arguments = [
        "configs/preprocess/sample_train.yaml",
        "workers=1",
        f"output={tmp_path / 'shards'}",
        f"metadata.files=[{corpus}/metadata/train/*.jsonl]",
        f"videos.templates=['{corpus}/videos/{{video_id}}.mp4']",
        f"texts.subtitles=[{corpus}/subtitles.jsonl]",
        f"texts.captions=[{corpus}/captions_db]",
    ]
    assert preprocess_run.main(arguments) == 0
    rows = [row for path in (tmp_path / "shards/failures").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [row for row in rows if row["reason"] == "metadata_invalid"]
    delivered = json.loads((tmp_path / "shards/stats.json").read_text())
    capsys.readouterr()
    assert delivered
    line = fails_in_one_line(preprocess_run.main, [*arguments, "clips.fps=2"], capsys, monkeypatch)
    assert "belongs to another config" in line
    assert "clips.fps" in line
