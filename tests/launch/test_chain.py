"""Chains: planned as a whole, queued as a whole."""

from pathlib import Path

import pytest

from launch.chain import Link, split_overrides
from launch.run_folder import JobFolder
from launch.slurm_chain import main, queue
from pipeline.checkpoint.folder import seal
from pipeline.config import load_config, to_yaml
from pipeline.errors import InputError
from pipeline.model.clip_vip import CLIPViP
from pipeline.model.weights import save_model
from pipeline.train_config import TrainConfig
from tests.launch.conftest import BATCH, cluster


@pytest.fixture(autouse=True)
def _return_to_the_old_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path.cwd())


def test_overrides_belong_to_a_link() -> None:
    found = split_overrides(["pretrain.optim.lr=1", "shards.seed=2", "pretrain.steps=3"], ["shards", "pretrain"])
    assert found == {"shards": ("seed=2",), "pretrain": ("optim.lr=1", "steps=3")}
    with pytest.raises(InputError, match=r"'optim.lr=1' must start with the name of a link.*shards, pretrain"):
        split_overrides(["optim.lr=1"], ["shards", "pretrain"])


def make_link(kind: str, asked: list[tuple[str, tuple[str, ...]]], *, last: bool = True, refuse: bool = False) -> Link:
    def send(after: tuple[str, ...]) -> tuple[str, ...]:
        if refuse:
            raise InputError("sbatch refused the job")
        asked.append((kind, after))
        return f"array{100 + len(asked)}", str(100 + len(asked))

    return Link(kind, JobFolder(Path("runs") / kind), send, lambda: None, lambda: None, ends_stage=last)


def test_every_stage_waits_for_all_of_the_stage_before() -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []
    links = [make_link("train", asked, last=False), make_link("heldout", asked), make_link("pretrain", asked)]
    queue([*links, make_link("evaluate", asked)], after=("7",))
    assert asked == [
        ("train", ("7",)),
        ("heldout", ("7",)),
        ("pretrain", ("101", "102")),
        ("evaluate", ("103",)),
    ]


def test_a_refused_link_takes_back_those_before(commands, tmp_path: Path) -> None:
    commands(scancel=f'echo "$@" > {tmp_path}/cancelled')
    with pytest.raises(InputError, match="refused"):
        queue([make_link("pretrain", []), make_link("evaluate", [], refuse=True)], after=())
    assert (tmp_path / "cancelled").read_text() == "array101 101\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "an empty chain"),
        (["--cluster", "local"], "an empty chain"),
        (["--cluster", "debug"], "--cluster debug is one process for one job; --cluster local runs a chain"),
        (["--evaluate", "configs/pretrain/b32.yaml"], "--evaluate needs --pretrain or --finetune"),
        (["--config", "configs/pretrain/b32.yaml"], "--config has no meaning for a chain"),
    ],
)
def test_wrong_chains(site_file: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["--site", site_file, *words])


def test_a_chain_is_planned_before_anything_is_queued(
    commands, site_file: str, train_file: str, tmp_path: Path
) -> None:
    commands(sbatch=f"touch {tmp_path}/queued; echo Submitted batch job 1")
    with pytest.raises(InputError, match=r"optim.lrr: unknown key"):
        main(["--site", site_file, "--pretrain", train_file, "pretrain.optim.lrr=1"])
    assert not (tmp_path / "queued").exists()


def test_an_evaluation_that_the_trained_model_cannot_do_is_refused_before_anything_is_queued(
    commands, site_file: str, train_file: str, tmp_path: Path
) -> None:
    commands(sbatch=f"touch {tmp_path}/queued; echo Submitted batch job 1", scontrol=cluster(BATCH))
    (tmp_path / "set.yaml").write_text(f"sets: {{held: {{shards: {tmp_path}/x, queries: {tmp_path}/x.jsonl}}}}")
    words = ["--pretrain", train_file, "--evaluate", str(tmp_path / "set.yaml")]
    with pytest.raises(InputError, match=r"context length 33 is outside 2\.\.32"):
        main(["--site", site_file, *words, "evaluate.sets.held.num_text_tokens=33"])
    assert not (tmp_path / "queued").exists()


def test_finetuning_starts_from_the_pretrained_run(
    commands, site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(scontrol=cluster(BATCH))
    words = ["--name", "study", "--pretrain", train_file, "--finetune", train_file]
    assert main(["--site", site_file, *words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"init_from: {tmp_path}/runs/study_pretrain" in shown
    assert "name: study_finetune" in shown


def finish(run_folder: Path, train_file: str, *overrides: str) -> None:
    """What a finished run leaves: its config, its weights and a mark."""
    config = load_config(TrainConfig, [train_file], overrides)
    last = Path("checkpoints") / "step_00000004"
    save_model(run_folder / last, CLIPViP.from_config(config.model).state_dict(), config.model)
    (run_folder / "latest").write_text(f"{last}\n")
    (run_folder / "config.yaml").write_text(to_yaml(config))
    (run_folder / "COMPLETE").write_text("4\n")


def test_a_chain_that_is_run_again_leaves_out_what_is_finished(
    commands, site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(scontrol=cluster(BATCH))
    words = ["--site", site_file, "--name", "study", "--pretrain", train_file, "--dry-run"]
    pretrained = tmp_path / "runs" / "study_pretrain"
    finish(pretrained, train_file, "name=study_pretrain")
    assert main([*words, "--finetune", train_file]) == 0
    shown = capsys.readouterr().out
    assert f"nothing is left to do for pretrain: {pretrained}" in shown
    assert "##### pretrain" not in shown and "##### finetune" in shown
    assert f"init_from: {pretrained}" in shown
    assert main(words) == 0, "a chain with nothing left"
    with pytest.raises(InputError, match=r"belongs to another config: optim.lr \(5e-06 there, 1e-09 now\)"):
        main([*words, "pretrain.optim.lr=1e-9"])


def test_a_chain_that_is_run_again_resumes_what_was_begun(
    commands, site_file: str, train_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands(scontrol=cluster(BATCH))
    step = tmp_path / "runs" / "study_pretrain" / "checkpoints" / "step_00000002"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    seal(step, {"step": 2})
    words = ["--site", site_file, "--name", "study", "--pretrain", train_file, "--dry-run"]
    assert main(words) == 0
    assert "from step_00000002" in capsys.readouterr().out
