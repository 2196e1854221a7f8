"""Dress rehearsal per data set: published files, converter, fine-tuning of official weights, evaluation, report.

Everything happens in an empty folder by the shipped recipes, evaluation configs and default paths: what the converter
writes must lie where the recipe looks for it. Only the size of the model, the batch and the length are the miniature's.
The weights have exactly the form of the released ones; nothing converts them.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml

from pipeline.errors import InputError
from pipeline.evaluate import main as evaluate
from tests.pipeline.ranks import start_training
from tests.preprocess.benchmarks import miniatures

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "official_checkpoint.pt"
VOCABULARY = 49408
RAW = Path("raw")

Mutation = tuple[str, Callable[[str], str], str]
"""(annotation file, what happens to its text, what the count check then says)."""


def edited(change: Callable[[Any], object]) -> Callable[[str], str]:
    """The same JSON after `change` worked on it in place."""

    def edit(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edit


def without_last_line(text: str) -> str:
    return "\n".join(text.splitlines()[:-1]) + "\n"


@dataclass(frozen=True)
class Rehearsal:
    """What a data set's miniature must give."""

    evaluation_set: str
    test_split: str
    length: tuple[str, ...]
    """Overrides for how long is trained; a step is a batch of 24 for MSR-VTT, of 2 for the others."""
    steps: int
    counts: tuple[str, ...]
    """What the count check says of the miniature as it is."""
    num_queries: int
    num_asked: int
    mutations: tuple[Mutation, ...]
    chosen_by: str = "the last step of the run"


REHEARSALS = {
    "msrvtt": Rehearsal(
        evaluation_set="msrvtt_1ka",
        test_split="test_1ka",
        # One epoch of 6 videos x 20 captions.
        length=("epochs=1", "batch.global_batch_size=24"),
        steps=5,
        counts=("train_9k has 6 videos", "train_9k has 120 texts", "test_1ka has 4 texts", "has 3 distinct texts"),
        num_queries=4,
        num_asked=4,
        mutations=(
            ("MSRVTT_data.json", edited(lambda data: data["sentences"].pop(7)), "train_9k has 119 texts"),
            ("MSRVTT_train.9k.csv", without_last_line, "train_9k has 5 videos"),
            ("MSRVTT_JSFUSION_test.csv", without_last_line, "test_1ka has 3 videos"),
            ("MSRVTT_JSFUSION_test.csv", lambda text: text.replace("a screen,", "two,", 1), "has 4 distinct texts"),
        ),
    ),
    "didemo": Rehearsal(
        evaluation_set="didemo",
        test_split="test",
        length=("epochs=null", "steps=4", "batch.global_batch_size=2"),
        steps=4,
        counts=("train has 3 videos", "val has 1 videos", "test has 2 texts"),
        num_queries=2,
        num_asked=2,
        mutations=(
            ("train_list.txt", without_last_line, "train has 2 videos"),
            ("val_list.txt", lambda text: text + "78@N03_5_e.avi\n", "val has 1 videos"),
            ("test_data.json", edited(lambda data: [data.pop() for _ in range(3)]), "test has 1 texts"),
            ("test_data.json", edited(lambda data: [row.update(video="x.avi") for row in data[:3]]), "test has 1 vid"),
        ),
        chosen_by="of the val split, at step",
    ),
    "lsmdc": Rehearsal(
        evaluation_set="lsmdc",
        test_split="test",
        length=("epochs=null", "steps=4", "batch.global_batch_size=2"),
        steps=4,
        counts=("train has 4 texts", "val has 2 texts", "test has 3 texts"),
        num_queries=3,
        num_asked=3,
        mutations=(
            ("LSMDC16_annos_training.csv", lambda text: text.replace("00.05.16", "00.09.16"), "train has 5 texts"),
            ("LSMDC16_annos_val.csv", without_last_line, "val has 1 texts"),
            ("LSMDC16_challenge_1000_publictect.csv", lambda text: text + text.splitlines()[0], "test has 4 texts"),
        ),
        chosen_by="of the val split, at step",
    ),
    "activitynet": Rehearsal(
        evaluation_set="activitynet",
        test_split="val_1",
        length=("epochs=null", "steps=4", "batch.global_batch_size=2"),
        steps=4,
        counts=("train has 3 videos", "val_1 has 3 texts"),
        num_queries=2,
        num_asked=3,
        mutations=(
            ("train_ids.json", lambda text: text.replace("v_aaa", "v_zzz"), "train has 2 videos"),
            ("val_1.json", edited(lambda data: data.pop("v_ddd")), "val_1 has 2 texts"),
            ("val_ids.json", edited(lambda data: data.pop()), "val_1 has 2 videos"),
        ),
    ),
}


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The open_clip config of the golden weights' shape, known to open_clip by name."""
    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "layers": 3, "width": 64, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": VOCABULARY, "width": 48, "heads": 4, "layers": 2},
    }
    path = tmp_path_factory.mktemp("architecture") / "ViT-golden-quickgelu.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path


def write_weights(path: Path) -> None:
    """The golden checkpoint, whose vocabulary is too small for the tokenizer; everything else stays as it is."""
    state = torch.load(GOLDEN, weights_only=True)
    name = "clipmodel.text_model.embeddings.token_embedding.weight"
    state[name] = 0.02 * torch.randn(VOCABULARY, state[name].shape[1], generator=torch.Generator().manual_seed(0))
    path.parent.mkdir()
    torch.save(state, path)


def converter(name: str, annotations: Path, *options: str) -> None:
    words = [f"annotations={annotations}", f"videos={RAW / 'videos'}", "workers=1", "size_px=64", *options]
    assert import_module(f"preprocess.benchmarks.{name}").main(words) == 0


def counts(name: str, annotations: Path) -> str:
    """What the converter says about counts that are not the published ones; it then has decoded nothing."""
    with pytest.raises(InputError) as refused:
        converter(name, annotations)
    return str(refused.value)


def check_mutations(name: str, rehearsal: Rehearsal) -> None:
    """Every count of the miniature is stated; a field that is changed changes its count."""
    as_it_is = counts(name, RAW)
    for expected in rehearsal.counts:
        assert expected in as_it_is
    for number, (file, change, expected) in enumerate(rehearsal.mutations):
        folder = Path(f"mutated_{number}")
        shutil.copytree(RAW, folder, ignore=shutil.ignore_patterns("videos"))
        path = folder / file
        path.write_text(change(path.read_text("cp1252")), "cp1252")
        assert expected in counts(name, folder)


def train(recipe: str, architecture: Path, *options: str) -> None:
    """The recipe's own held-out sets are kept; of a miniature's few videos one may be missing."""
    held_out = yaml.safe_load((ROOT / f"configs/finetune/{recipe}.yaml").read_text())["evaluation"]["sets"]
    held_out = [one | {"max_missing_fraction": 0.5, "num_workers": 0} for one in held_out]
    words = [
        str(ROOT / f"configs/finetune/{recipe}.yaml"),
        f"model.name={architecture}",
        "data.num_workers=0",
        "engine.precision=fp32",
        "engine.device=cpu",
        "checkpoint.every_steps=0",
        "log.every_steps=1",
        "evaluation.every_steps=2",
        f"evaluation.sets={json.dumps(held_out)}",
    ]
    output = Path("train.log")
    process = start_training([*words, *options], output)
    process.join()
    assert process.exitcode == 0, output.read_text()


def logged_steps(run: Path) -> list[int]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "train/loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("name", REHEARSALS)
def test_rehearsal(
    name: str, tmp_path: Path, architecture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rehearsal, recipe, weights = REHEARSALS[name], f"{name}_b32", Path("models/pretrain_clipvip_base_32.pt")
    RAW.mkdir()
    getattr(miniatures, f"write_{name}")(RAW)
    write_weights(weights)
    check_mutations(name, rehearsal)
    converter(name, RAW, "accept_counts=true")

    for options in (["stop_at_step=2"], []):
        train(recipe, architecture, *rehearsal.length, *options)
    run = Path("runs") / recipe
    assert logged_steps(run) == list(range(1, rehearsal.steps + 1))

    set_name = rehearsal.evaluation_set
    overrides = [f"sets.{set_name}.num_workers=0", f"sets.{set_name}.max_missing_fraction=0.5", "device=cpu"]
    config = str(ROOT / f"configs/evaluate/{set_name}.yaml")
    which = "best" if "val" in rehearsal.chosen_by else "last"
    capsys.readouterr()
    for words in ([str(weights)], [str(run), f"which={which}"]):
        assert evaluate([words[0], config, *overrides, *words[1:]]) == 0
        assert f"N = {rehearsal.num_queries} of {rehearsal.num_asked} queries" in capsys.readouterr().out
    report = json.loads((run / "evaluation" / f"{set_name}.json").read_text())
    assert set(report["rescored"]) == {"dsl_official", "dsl", "qb_norm"}
    assert len(report["missing_videos"]) == rehearsal.num_asked - rehearsal.num_queries
    assert rehearsal.chosen_by in report["chosen_by"]
    assert (run / "evaluation" / f"{set_name}.html").stat().st_size > 1000
    before = weights.with_name(f"{weights.stem}_evaluation") / f"{set_name}.json"
    assert json.loads(before.read_text())["metrics"]["num_queries"] == report["metrics"]["num_queries"]

    assert evaluate(["compare", str(before), str(run), "output=table"]) == 0
    table = capsys.readouterr().out
    assert f"| {weights.stem} " in table and f"| {recipe} " in table and "CLIP-ViP B/32 (paper)" in table
    assert sorted(path.name for path in Path("table").iterdir()) == [
        f"comparison.{end}" for end in ("csv", "json", "md")
    ]
