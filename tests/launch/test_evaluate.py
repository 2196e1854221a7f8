"""Evaluations: planned as `pipeline.evaluate` will read them, refused on the login node, held while they run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import slurm_evaluate
from launch.run_folder import JobFolder
from launch.slurm_evaluate import main, plan_evaluation
from launch.training import Plan
from pipeline.errors import InputError
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.config import ModelConfig
from pipeline.model.weights import save_model
from tests.launch.conftest import TINY_MODEL

Planned = Callable[..., Plan]


@pytest.fixture(autouse=True)
def _return_to_the_old_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


@pytest.fixture
def words(site_file: str, train_file: str, tmp_path: Path) -> list[str]:
    """Where the job runs, and a set whose shards are here; its queries are not, so that no shard is opened."""
    site = yaml.safe_load(Path(site_file).read_text()) | {"runs_dir": str(tmp_path / "runs")}
    Path(site_file).write_text(yaml.safe_dump(site))
    held = {"shards": str(tmp_path / "shards"), "queries": str(tmp_path / "queries.jsonl"), "num_text_tokens": 16}
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"sets": {"held": held}}))
    return ["--site", site_file, "--cluster", "local", "--config", str(tmp_path / "set.yaml")]


@pytest.fixture
def plan(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Planned:
    """What a command line would start."""

    def make(*more: str) -> Plan:
        plans: list[Plan] = []
        monkeypatch.setattr(slurm_evaluate, "start", lambda plan, options: plans.append(plan) or 0)
        assert main([*words, *more]) == 0
        return plans[0]

    return make


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the weights of a tiny model."""
    folder = tmp_path / "some" / "v1.0"
    config = ModelConfig.model_validate(TINY_MODEL)
    save_model(folder / "checkpoints" / "step_00000200", CLIPViP.from_config(config).state_dict(), config)
    (folder / "latest").write_text("checkpoints/step_00000200\n")
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_config_with_a_model_needs_no_checkpoint(plan: Planned, tmp_path: Path) -> None:
    zero = tmp_path / "zero.yaml"
    zero.write_text(yaml.safe_dump({"model": TINY_MODEL, "output": str(tmp_path / "tiny" / "evaluation")}))
    for more in ([str(zero)], ["--checkpoint", str(zero)]):
        made = plan(*more)
        assert made.job.work.argv == (str(made.config_file),)
        assert made.job.name == "evaluate_tiny"
        assert "model:" in made.config_text and "held:" in made.config_text
        assert made.missing == (f"{tmp_path}/queries.jsonl does not exist",)
    with pytest.raises(InputError, match="give either a checkpoint or a config with `model`"):
        plan()


def test_clip_itself_on_a_set_of_the_paper(
    site_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda facts: pytest.fail("a download"))
    words = ["--site", site_file, "--cluster", "local", "--dry-run", "--allow-missing"]
    assert main([*words, "configs/evaluate/clip_b32.yaml"]) == 0
    assert "msrvtt_1ka:" in capsys.readouterr().out, "the set where none is named"
    assert main([*words, "configs/evaluate/clip_b32.yaml", "--set", "didemo", "lsmdc", "output=elsewhere"]) == 0
    shown = capsys.readouterr().out
    assert "didemo:" in shown and "lsmdc:" in shown and "msrvtt_1ka" not in shown
    assert "reports go to elsewhere" in shown
    with pytest.raises(InputError, match="--set didimo: did you mean 'didemo'"):
        main([*words, "configs/evaluate/clip_b32.yaml", "--set", "didimo"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.name=ViT-B-32", "output=x"], "give either a checkpoint or a config with `model`"),
        (["sets.held.num_text_tokens=400"], "context length 400 is outside 2..32"),
        (["which=best"], "was not told how to choose"),
        (["sets.held.query_bank=README.md", "sets.held.rescoring=[qb_norm]"], "README.md:1 is not JSON"),
    ],
)
def test_what_the_job_would_refuse_is_refused_here(plan: Planned, run: Path, more: list[str], message: str) -> None:
    (run / "config.yaml").write_text("{}")
    with pytest.raises(InputError, match=message):
        plan(str(run), *more)


def test_a_folder_keeps_its_reports_whatever_its_name(plan: Planned, run: Path, words: list[str]) -> None:
    assert f"reports go to {run}/evaluation" in plan(str(run)).facts[-1]
    options = slurm_evaluate.with_sets(
        slurm_evaluate.parse_options(slurm_evaluate.evaluate_parser(), words, word="checkpoint")
    )
    to_come = run.with_name("v2.0")
    made = plan_evaluation(options, to_come, (to_come,))
    assert f"reports go to {to_come}/evaluation" in made.facts[-1]
    assert made.job.name == "evaluate_v2.0"


def test_every_checkpoint_has_a_job_folder_of_its_own(plan: Planned, run: Path) -> None:
    step = run / "checkpoints" / "step_00000200"
    (run / "export").symlink_to(step)
    sources = (run, step, step / "model.safetensors")
    assert [plan(str(source)).job.name for source in sources] == [
        "evaluate_v1.0",
        "evaluate_v1.0_step_00000200",
        "evaluate_v1.0_step_00000200",
    ]
    assert slurm_evaluate.name_of(run / "export", Path("out")) == "v1.0_export"


def test_a_folder_with_a_job_in_it_is_held(commands: Any, plan: Planned, run: Path, tmp_path: Path) -> None:
    commands(squeue="echo '41|41|41|RUNNING|None'")
    JobFolder(tmp_path / "runs" / "evaluate_v1.0").add_submission({"job": "41", "tasks": 1, "array": False})
    with pytest.raises(InputError, match=r"evaluate_v1.0 is the folder of job 41 \(RUNNING\)"):
        plan(str(run))
    assert plan(str(run), "--name", "another").job.name == "another"
