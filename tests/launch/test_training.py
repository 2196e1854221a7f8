"""Checks on the login node: what is refused, what is only reported."""

import importlib
import json
from pathlib import Path

import pytest

from launch.cluster import ROOT
from launch.options import make_parser, parse_options
from launch.slurm_pretrain import main
from launch.training import Plan, plan_training
from pipeline.config import load_config, to_yaml
from pipeline.errors import InputError
from pipeline.train_config import TrainConfig


@pytest.fixture(autouse=True)
def _return_to_the_old_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


@pytest.fixture
def plan(site_file: str, train_file: str):
    def make(*words: str) -> Plan:
        parser = make_parser("slurm_pretrain.py", "about", train_file)
        return plan_training(parse_options(parser, ["--site", site_file, "--cluster", "local", *words]), "pretrain")

    return make


def fill(run_folder: Path, train_file: str, *overrides: str) -> None:
    """A run folder with a config and one complete checkpoint."""
    step = run_folder / "checkpoints" / "step_00000002"
    step.mkdir(parents=True)
    (step / "COMPLETE.json").write_text(json.dumps({}))
    (run_folder / "config.yaml").write_text(to_yaml(load_config(TrainConfig, [train_file], overrides)))


def test_a_new_run(plan, tmp_path: Path) -> None:
    made = plan("--nodes", "4")
    assert made.job.resources.num_tasks == 4
    assert made.facts[0] == "batch: 16 clips = 4 ranks (4 x 1) x up to 4 clips, in 1 micro-batch of up to 4"
    assert "new folder" in made.facts[1]
    assert made.missing == ()
    assert made.job.work.finished == str(tmp_path / "runs" / "probe" / "COMPLETE")


def test_stopping_early_counts_as_done(plan, tmp_path: Path) -> None:
    finished = plan("stop_at_step=2").job.work.finished
    assert finished == str(tmp_path / "runs" / "probe" / "checkpoints" / "step_00000002" / "COMPLETE.json")


def test_full_run_folder_needs_resume(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    with pytest.raises(InputError, match="checkpoints up to step_00000002; pass --resume"):
        plan()
    assert "resumes" in plan("--resume").facts[1]


def test_finished_run_folder_is_refused(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    (tmp_path / "runs" / "probe" / "COMPLETE").write_text("4\n")
    with pytest.raises(InputError, match="holds a finished run"):
        plan("--resume")


def test_folder_of_another_config_is_refused(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file, "optim.lr=1.0e-3")
    with pytest.raises(InputError, match=r"belongs to another config: optim.lr differ"):
        plan("--resume")


def test_more_ranks_than_clips(plan) -> None:
    with pytest.raises(InputError, match="global_batch_size is 16, but 17 nodes have 17 ranks"):
        plan("--nodes", "17")


def test_wrong_key_names_the_nearest(plan) -> None:
    with pytest.raises(InputError, match=r"optim.lrr: unknown key.*optim.lr"):
        plan("optim.lrr=1")


def test_lead_time_against_measured_saves(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    metrics = tmp_path / "runs" / "probe" / "metrics.jsonl"
    metrics.write_text('{"step": 3, "checkpoint/stall_s": 1.5, "checkpoint/write_s": 12.5}\n')
    assert "the longest save took 14.0 s" in " ".join(plan("--resume").facts)
    metrics.write_text('{"step": 3, "checkpoint/stall_s": 1.5, "checkpoint/write_s": 14.5}\n')
    with pytest.raises(InputError, match="a save of this run takes 16 s, but the signal comes only 30 s"):
        plan("--resume")


def test_missing_manifest(site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards" / "manifest.parquet").unlink()
    words = ["--site", site_file, "--cluster", "local", "--config", train_file]
    with pytest.raises(InputError, match="holds no manifest"):
        main(words)
    assert main([*words, "--dry-run"]) == 0
    assert "missing  data.sources[0].shards" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_dry_run_without_slurm(
    commands, site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    assert main(["--site", site_file, "--config", train_file, "--nodes", "8", "--dry-run", "optim.lr=3.0e-4"]) == 0
    shown = capsys.readouterr().out
    for part in ("# resolved config", "lr: 0.0003", "#SBATCH --nodes=8", "8 ranks (8 x 1)", "no sinfo here", "GB free"):
        assert part in shown, part
    assert not (tmp_path / "runs").exists()


def test_dry_run_on_gpus_gives_memory_and_hours(
    commands, site_file: str, train_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    words = ["--site", site_file, "--config", train_file, "--gpus-per-node", "4", "--dry-run"]
    assert main([*words, "engine.device=auto"]) == 0
    shown = capsys.readouterr().out
    assert "# plan" in shown
    assert "#SBATCH --gpus-per-node=4" in shown


def test_sbatch_refusal_is_one_line(
    commands, site_file: str, train_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(sbatch="echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1", srun="exit 1")
    with pytest.raises(InputError, match=r"sbatch refused the job 'probe': .*Invalid account"):
        main(["--site", site_file, "--config", train_file])
    assert capsys.readouterr().err == ""


def test_busy_run_folder_is_refused(commands, site_file: str, train_file: str, tmp_path: Path) -> None:
    commands(
        sbatch="echo Submitted batch job 41",
        srun="exit 1",
        squeue="echo '41|41|41|RUNNING|None'",
    )
    words = ["--site", site_file, "--config", train_file]
    assert main(words) == 0
    with pytest.raises(InputError, match=r"is the folder of job 41 \(RUNNING\)"):
        main(words)


@pytest.mark.parametrize("launcher", ["pretrain", "finetune", "evaluate", "shards"])
def test_the_default_config_loads(launcher: str) -> None:
    from pipeline.evaluate import EvaluateConfig
    from preprocess.config import PreprocessConfig

    module = importlib.import_module(f"launch.slurm_{launcher}")
    root = {"evaluate": EvaluateConfig, "shards": PreprocessConfig}.get(launcher, TrainConfig)
    load_config(root, [ROOT / module.DEFAULT_CONFIG])
