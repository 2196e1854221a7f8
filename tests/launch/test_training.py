"""Checks on the login node: what is refused, what is only reported."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import slurm_evaluate
from launch.cluster import ROOT
from launch.options import make_parser, parse_options
from launch.run_folder import JobFolder
from launch.slurm_pretrain import main
from launch.training import Plan, plan_training
from pipeline.checkpoint.folder import seal
from pipeline.config import load_config, to_yaml
from pipeline.errors import InputError, RunError
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
    (step / "state.json").write_text("{}")
    seal(step, {"step": 2})
    (run_folder / "config.yaml").write_text(to_yaml(load_config(TrainConfig, [train_file], overrides)))


def test_a_new_run(plan, tmp_path: Path) -> None:
    made = plan("--nodes", "4")
    assert made.job.resources.num_tasks == 4
    assert made.facts[0] == "batch: 16 clips = 4 ranks (4 x 1) x up to 4 clips, in 1 micro-batch of up to 4"
    assert "new folder" in made.facts[1]
    assert made.missing == ()
    assert made.job.work.finished == (str(tmp_path / "runs" / "probe" / "COMPLETE"),)


def test_stopping_early_counts_as_done(plan, tmp_path: Path) -> None:
    finished = plan("stop_at_step=2").job.work.finished
    assert str(tmp_path / "runs" / "probe" / "checkpoints" / "step_00000002" / "COMPLETE.json") in finished
    assert str(tmp_path / "runs" / "probe" / "COMPLETE") in finished, "an epoch may have fewer steps"


def test_full_run_folder_needs_resume(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    with pytest.raises(InputError, match="checkpoints up to step_00000002; pass --resume"):
        plan()
    assert "resumes" in plan("--resume").facts[1]


def test_the_checkpoint_to_go_on_from_is_looked_at(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    newer = tmp_path / "runs" / "probe" / "checkpoints" / "step_00000003"
    newer.mkdir()
    facts = plan("--resume").facts
    assert facts[1].endswith("from step_00000002")
    assert "passes over" in facts[2] and "step_00000003: no COMPLETE.json" in facts[2]
    (tmp_path / "runs" / "probe" / "checkpoints" / "step_00000002" / "state.json").write_text("{]")
    with pytest.raises(InputError, match="no checkpoint is intact"):
        plan("--resume")


def test_starting_over_is_said_and_needs_no_resume(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    assert "its checkpoints up to step_00000002 are set aside" in plan("resume=never").facts[1]
    with pytest.raises(InputError, match="--resume goes on with a run, resume=never starts it over"):
        plan("resume=never", "--resume")
    with pytest.raises(InputError, match="is at step_00000002, but stop_at_step is 2"):
        plan("--resume", "stop_at_step=2")


def test_where_a_new_run_is_told_to_begin(plan, tmp_path: Path, train_file: str) -> None:
    other = tmp_path / "runs" / "other"
    fill(other, train_file)
    step = other / "checkpoints" / "step_00000002"
    (step / "engine").mkdir()
    with pytest.raises(InputError, match="neither a checkpoint nor a run folder"):
        plan(f"resume={tmp_path}")
    assert f"from {step}" in plan(f"resume={step}").facts[1]
    assert plan(f"resume={tmp_path}/nowhere").missing == (f"{tmp_path}/nowhere does not exist",)


def test_a_folder_is_asked_about_only_while_its_job_may_run(commands, plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    commands(squeue=f"echo >> {tmp_path}/asked")
    folder = JobFolder(tmp_path / "runs" / "probe")
    folder.add_submission({"job": "7", "tasks": 2, "array": False})
    folder.add_event("7", {"event": "started", "restart": 0})
    plan("--resume")
    assert (tmp_path / "asked").read_text() == "\n"
    folder.add_event("7", {"event": "ended", "restart": 0, "code": 1, "action": "stop", "why": "x"})
    plan("--resume")
    assert (tmp_path / "asked").read_text() == "\n", "the job has said that it is over"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.device=cuda", "engine.device is cuda, but the job has no GPUs"),
        ("engine={precision: fp16, device: auto}", "engine.precision is fp16, but the job has no GPUs"),
        ("optim.lr_multipliers={^nothing$: 2.0}", "match no parameter"),
        ("data.num_text_tokens=400", "context length 400 is outside"),
        ("model={architecture: null, name: ViT-Z}", "unknown model 'ViT-Z'"),
        ("init_from=README.md", "cannot read weights from README.md"),
        ("engine.zero_stage=7", "engine.zero_stage: Input should be 0, 1, 2 or 3"),
    ],
)
def test_what_the_start_of_a_run_would_refuse_is_refused_here(plan, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(override)


def test_a_damaged_manifest_is_one_line(plan, tmp_path: Path) -> None:
    (tmp_path / "shards" / "manifest.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(
        InputError, match=r"manifest.parquet is damaged \(.*\); write it again: python -m preprocess.merge"
    ):
        plan()


def test_weights_that_are_not_here_are_missing_unless_a_link_before_writes_them(plan, tmp_path: Path) -> None:
    assert plan("init_from=runs/nowhere").missing == ("runs/nowhere does not exist",)
    assert plan("model.pretrained=/nowhere/clip.pt").missing == ("/nowhere/clip.pt does not exist",)


def test_weights_by_a_tag_are_fetched_here_and_never_by_a_dry_run(
    plan, tmp_path: Path, train_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute nodes often have no internet. A run that goes on needs them no more."""
    model = "model={architecture: null, name: ViT-B-32-quickgelu, pretrained: openai, num_temporal: 2}"
    asked: list[str] = []

    def download(facts: dict[str, Any]) -> str:
        asked.append(facts["hf_hub"])
        return str(tmp_path / "openai.safetensors")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    (finding,) = plan(model, "--dry-run").missing
    assert finding.startswith("weights of ViT-B-32-quickgelu openai are not in this machine's cache")
    assert not asked
    made = plan(model)
    assert asked == ["timm/vit_base_patch32_clip_224.openai/"]
    assert made.missing == ()
    assert made.facts[-1] == f"weights of ViT-B-32-quickgelu openai: {tmp_path}/openai.safetensors"
    fill(tmp_path / "runs" / "probe", train_file, model)

    def fail(facts: dict[str, Any]) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fail)
    assert "resumes" in plan(model, "--resume").facts[1]
    with pytest.raises(RunError, match="could not fetch ViT-B-32-quickgelu openai: no network"):
        plan(model, "name=another")


def test_finished_run_folder_is_refused(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file)
    (tmp_path / "runs" / "probe" / "COMPLETE").write_text("4\n")
    with pytest.raises(InputError, match="holds a finished run"):
        plan("--resume")


def test_folder_of_another_config_is_refused(plan, tmp_path: Path, train_file: str) -> None:
    fill(tmp_path / "runs" / "probe", train_file, "optim.lr=1.0e-3")
    with pytest.raises(InputError, match=r"belongs to another config: optim.lr \(0.001 there, .* now\)"):
        plan("--resume")
    assert "starts over" in " ".join(plan("resume=never").facts)


def test_a_run_of_before_an_option_came_is_resumed_as_the_trainer_does(plan, tmp_path: Path, train_file: str) -> None:
    """And a folder in which no step was made belongs to nobody."""
    run = tmp_path / "runs" / "probe"
    fill(run, train_file)
    stored = yaml.safe_load((run / "config.yaml").read_text())
    del stored["model"]["patch_dropout"], stored["failure"], stored["data"]["verify_media"]
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert "resumes" in plan("--resume").facts[1]
    with pytest.raises(InputError, match=r"model.patch_dropout \(0.0 there, 0.5 now\); give another --name"):
        plan("--resume", "model.patch_dropout=0.5")
    shutil.rmtree(run / "checkpoints")
    assert "holds no checkpoint yet" in " ".join(plan("model.patch_dropout=0.5").facts)


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


def test_a_job_that_is_over_before_it_began_is_refused(plan) -> None:
    assert plan("--time", "4").facts, "240 s: 30 s of lead, 60 s of SLURM's own, two minutes to start"
    with pytest.raises(InputError, match="a job of 180 s is told to save 30 s before its end"):
        plan("--time", "3")


def test_missing_manifest(site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards" / "manifest.parquet").unlink()
    words = ["--site", site_file, "--cluster", "local", "--config", train_file]
    with pytest.raises(InputError, match="holds no manifest"):
        main(words)
    assert main([*words, "--dry-run"]) == 1
    assert main([*words, "--dry-run", "--allow-missing"]) == 0
    assert "missing  data.sources[0].shards" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_dry_run_without_slurm(
    commands, site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands()
    assert main(["--site", site_file, "--config", train_file, "--nodes", "8", "--dry-run", "optim.lr=3.0e-4"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "# resolved config",
        "lr: 0.0003",
        "#SBATCH --nodes=8",
        "8 ranks (8 x 1)",
        "no SLURM answers here",
        "GB free",
    ):
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
    assert "GPU-hours" in shown
    assert "memory, ZeRO 3" in shown
    assert "#SBATCH --gpus-per-node=4" in shown
    assert main([*words, "engine.device=auto", "--gpu", "a100-40"]) == 0
    assert "4 x a100-40 " in capsys.readouterr().out
    with pytest.raises(InputError, match="--gpu 'h1000' is unknown; known are"):
        main([*words, "engine.device=auto", "--gpu", "h1000"])


def test_what_is_missing_may_come_from_the_job_before(
    commands, site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training after the job that writes its shards, an evaluation after the training: neither is there yet."""
    commands(sbatch="echo Submitted batch job 41", srun="exit 1")
    (tmp_path / "shards" / "manifest.parquet").unlink()
    before = tmp_path / "runs" / "before"
    before.mkdir(parents=True)  # as a queued training leaves it: without weights
    words = ["--site", site_file, "--after", "40"]
    assert main([*words, "--config", train_file, f"init_from={before}"]) == 0
    assert "expected from job 40: data.sources[0].shards" in capsys.readouterr().out
    sets = f"sets={{held: {{shards: {tmp_path}/none, queries: {tmp_path}/none.jsonl}}}}"
    evaluate = tmp_path / "evaluate.yaml"
    evaluate.write_text("{}")
    argv = [*words, "--config", str(evaluate), str(before), sets, "--name", "later"]
    assert slurm_evaluate.main(argv) == 0
    assert "expected from job 40: " in capsys.readouterr().out
    with pytest.raises(InputError, match="holds no model"):
        slurm_evaluate.main(argv[:2] + argv[4:])


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
