"""Evaluate on SLURM: `python launch/slurm_evaluate.py runs/b32 --set msrvtt_1ka [key=value ...]`.

Words are those of `python -m pipeline.evaluate`: a config that has `model` stands in place of the checkpoint. All ranks
encode and rank their share; the numbers do not depend on how many there are.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # started as a file: imports begin in the checkout, not in launch/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.checks import check_sets, check_tag
from launch.cluster import ROOT, training_resources
from launch.job import Work
from launch.options import Options, find_config, make_parser, parse_options, without_gpus
from launch.run_folder import JobFolder
from launch.scheduler import check_cluster
from launch.start import hold_folder, start
from launch.submit import Job
from launch.training import Plan, config_key
from pipeline.config import load_config, to_yaml
from pipeline.errors import InputError, run_command

if TYPE_CHECKING:
    from pipeline.evaluate import EvaluateConfig
    from pipeline.model.config import ModelConfig

ABOUT = "Evaluate a checkpoint on text-video retrieval sets, on SLURM, on this machine, or in this process."
DEFAULT_CONFIG = "configs/evaluate/msrvtt_1ka.yaml"


def plan_evaluation(
    options: Options, checkpoint: Path | None, to_come: tuple[Path, ...] = (), model: "ModelConfig | None" = None
) -> Plan:
    """Check an evaluation; without a checkpoint, of the config's own `model`.

    `to_come` are folders that earlier links of a chain will have written, `model` is what a checkpoint to come holds.
    """
    from pipeline.evaluate import EvaluateConfig, check_source, default_output

    os.chdir(ROOT)
    config = load_config(EvaluateConfig, options.config, options.overrides)
    check_source(checkpoint, config)
    if config.device == "cpu":
        options = without_gpus(options, "device")
    promised = {path.resolve() for path in to_come}
    if config.output is None:
        assert checkpoint is not None, "check_source asks for output where there is no checkpoint"
        output = checkpoint / "evaluation" if checkpoint.resolve() in promised else default_output(checkpoint)
        config = config.model_copy(update={"output": output})
    assert config.output is not None
    if not options.after:
        # Else the job before may still be writing them.
        check_evaluable(config, checkpoint, promised, model)
        check_sets(config.sets.values(), to_come)
    resources = training_resources(options.site, options.nodes)
    if config.device == "cuda" and resources.gpus_per_node == 0:
        raise InputError("device is cuda, but the job has no GPUs; give --gpus-per-node, or change it")
    name = options.name or f"evaluate_{name_of(checkpoint, config.output)}"
    run_folder = (options.site.runs_dir / name).resolve()
    hold_folder(JobFolder(run_folder))
    facts = check_cluster(options.site, resources, options.after) if options.cluster == "slurm" else []
    text = to_yaml(config)
    config_file = JobFolder(run_folder).path / f"config-{config_key(text)}.yaml"
    argv = (*([str(checkpoint)] if checkpoint else []), str(config_file))
    work = Work(kind="evaluate", run_folder=run_folder, module="pipeline.evaluate", argv=argv, distributed=True)
    facts.append(f"{resources.num_tasks} ranks encode {', '.join(config.sets)}; reports go to {config.output}")
    missing = missing_files(config, checkpoint, promised)
    if config.model is not None and (options.dry_run or not missing):
        tag_facts, uncached = check_tag(config.model, dry_run=options.dry_run)
        facts, missing = facts + tag_facts, missing + uncached
    return Plan(Job(work, resources, name=name), text, config_file, tuple(facts), tuple(missing))


def check_evaluable(
    config: "EvaluateConfig", checkpoint: Path | None, promised: set[Path], to_come: "ModelConfig | None"
) -> None:
    """Refuse what the evaluation would refuse: weights that do not load, texts that the model cannot take, banks."""
    from pipeline.evaluate import bank_texts, check_texts
    from pipeline.evaluation.selection import select_checkpoint
    from pipeline.model.weights import load_model
    from pipeline.start import model_as_far_as_here

    described = config.model if checkpoint is None else to_come
    if described is not None:
        check_texts(model_as_far_as_here(described), config.sets.values())
    elif checkpoint is not None and checkpoint.exists() and checkpoint.resolve() not in promised:
        check_texts(load_model(select_checkpoint(checkpoint, config.which)[0]), config.sets.values())
    for chosen in config.sets.values():
        if chosen.query_bank is not None and chosen.query_bank.exists():
            bank_texts(chosen.query_bank)


def missing_files(config: "EvaluateConfig", checkpoint: Path | None, promised: set[Path]) -> list[str]:
    """What is not there, and what no earlier link will write."""
    from pipeline.model.start import weights_path

    weights = checkpoint or (weights_path(config.model) if config.model is not None else None)
    wanted = [(weights, weights)] if weights is not None else []
    for chosen in config.sets.values():
        wanted.append((chosen.shards, chosen.shards / "manifest.parquet"))
        banks = [chosen.query_bank] if chosen.query_bank is not None else []
        wanted += [(path, path) for path in (chosen.queries, *chosen.pairs.values(), *banks)]
    return [f"{path} does not exist" for owner, path in wanted if owner.resolve() not in promised and not path.exists()]


def name_of(checkpoint: Path | None, output: Path) -> str:
    """What is evaluated, in one word that is the job's own: run and step of a checkpoint, the run of an export.

    >>> name_of(Path("runs/v1.0/checkpoints/step_00000200"), Path("out")), name_of(None, Path("runs/clip/evaluation"))
    ('v1.0_step_00000200', 'clip')
    """
    if checkpoint is None:
        return output.parent.name if output.name == "evaluation" else output.name
    place = checkpoint.parent if checkpoint.name == "model.safetensors" else checkpoint
    name = place.stem if place.is_file() else place.name
    if place.parent.name == "checkpoints":
        return f"{place.parent.parent.name}_{name}"
    return f"{place.parent.name}_{name}" if name == "export" else name


def evaluate_parser() -> ArgumentParser:
    """The shared options, and what is evaluated on what."""
    parser = make_parser("slurm_evaluate.py", ABOUT, DEFAULT_CONFIG)
    parser.set_defaults(config=None)  # the default holds where no --set is given either
    parser.add_argument("--set", nargs="+", metavar="NAME", default=[], help="configs/evaluate/NAME.yaml, each")
    parser.add_argument(
        "--checkpoint", help="run folder, checkpoint, exported model or official .pt (or the word without a =)"
    )
    return parser


def main(argv: list[str]) -> int:
    """Plan the evaluation and start it."""
    options = with_sets(parse_options(evaluate_parser(), argv, word="checkpoint"))
    word = options.extra["checkpoint"]
    if word is None or word.endswith((".yaml", ".yml")):
        models = [] if word is None else [str(find_config(word))]
        return start(plan_evaluation(replace(options, config=(*models, *options.config)), None), options)
    return start(plan_evaluation(options, Path(word).resolve() if Path(word).exists() else ROOT / word), options)


def with_sets(options: Options) -> Options:
    """The options with the config files of `--set`, or of the default set where no file is given."""
    from pipeline.evaluate import with_set_files

    words: Sequence[str] = options.extra["set"]
    # `--set didemo which=best` gives argparse no border between the two kinds of words.
    names, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    files = [*options.config, *with_set_files(["--set", *names] if names else [])]
    config = tuple(files or [str(find_config(DEFAULT_CONFIG))])
    return replace(options, config=config, overrides=(*options.overrides, *overrides))


if __name__ == "__main__":
    run_command(main)
