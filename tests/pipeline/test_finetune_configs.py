"""The eight recipes: valid, and equal to the published numbers."""

import shlex
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import InputError
from pipeline.evaluate import EvaluateConfig, parse_arguments
from pipeline.train_config import TrainConfig

ROOT = Path(__file__).parents[2] / "configs"

# frames, text tokens, epochs, learning-rate factors, set that chooses the checkpoint
CELLS = {
    "msrvtt_b32": (12, 50, 5, {}, None),
    "msrvtt_b16": (12, 50, 5, {}, None),
    "didemo_b32": (12, 50, 20, {}, "didemo_val/t2v_r1"),
    "didemo_b16": (12, 70, 20, {"logit_scale": 10}, "didemo_val/t2v_r1"),
    "lsmdc_b32": (12, 50, 10, {}, "lsmdc_val/t2v_r1"),
    "lsmdc_b16": (12, 50, 10, {}, "lsmdc_val/t2v_r1"),
    "activitynet_b32": (32, 70, 20, {}, None),
    "activitynet_b16": (32, 70, 20, {}, None),
}


@pytest.mark.parametrize("cell", CELLS)
def test_recipe_has_the_published_numbers(cell: str) -> None:
    config = load_config(TrainConfig, [ROOT / "finetune" / f"{cell}.yaml"])
    frames, tokens, epochs, factors, chosen_by = CELLS[cell]
    assert (config.data.num_frames, config.data.num_text_tokens, config.epochs) == (frames, tokens, epochs)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.clip_norm) == (1e-6, 0.2, 1.0)
    assert (config.optim.warmup, config.optim.preset, config.loss.name) == (0.01, "official", "vs")
    assert config.optim.lr_multipliers == factors
    assert config.batch.global_batch_size == 128
    assert config.data.epoch_end == "carry"  # of 180,000 pairs of MSR-VTT, 32 would be left out of every epoch
    assert config.evaluation.best_metric == chosen_by
    for one in config.evaluation.sets:
        assert (one.num_frames, one.num_text_tokens) == (frames, tokens)
    # A paragraph is one text; the two others may have several rows of a video.
    assert (config.data.sources[0].texts is not None) == cell.startswith(("msrvtt", "lsmdc"))


@pytest.mark.parametrize("cell", CELLS)
def test_the_commands_of_a_recipe_evaluate_what_it_chose(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of the commands at its top: the checkpoint that won on the validation split, where there is one."""
    recipe = ROOT / "finetune" / f"{cell}.yaml"
    config = load_config(TrainConfig, [recipe])
    program = "#   python -m pipeline.evaluate "
    (command,) = [line for line in recipe.read_text().splitlines() if line.startswith(program)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / config.run_folder).mkdir(parents=True)
    checkpoint, evaluated = parse_arguments(shlex.split(command.removeprefix(program)))
    assert checkpoint == config.run_folder
    assert evaluated.which == ("last" if config.evaluation.best_metric is None else "best")
    (chosen,) = evaluated.sets.values()
    assert (chosen.num_frames, chosen.num_text_tokens) == (config.data.num_frames, config.data.num_text_tokens)


def test_choosing_on_the_test_split_needs_an_option_that_says_so() -> None:
    """As the official code does it; `evaluate which=best` then says it in the report."""
    words = ["evaluation.best_metric=msrvtt_1ka/t2v_r1"]
    with pytest.raises(InputError, match=r"chooses on the test split of 'msrvtt_1ka'.*best_on_test: true"):
        load_config(TrainConfig, [ROOT / "finetune" / "msrvtt_b32.yaml"], words)
    words.append("evaluation.best_on_test=true")
    assert load_config(TrainConfig, [ROOT / "finetune" / "msrvtt_b32.yaml"], words).evaluation.best_on_test


def test_there_is_a_recipe_for_every_cell() -> None:
    assert {path.stem for path in (ROOT / "finetune").glob("*.yaml")} == set(CELLS)


@pytest.mark.parametrize("name", ["msrvtt_1ka", "didemo", "lsmdc", "activitynet"])
def test_evaluation_configs_are_valid(name: str) -> None:
    sets = load_config(EvaluateConfig, [ROOT / "evaluate" / f"{name}.yaml"]).sets
    assert list(sets) == [name]
    assert sets[name].split == "test"
