"""Evaluate on SLURM: `python launch/slurm_evaluate.py runs/b32 --config configs/evaluate/msrvtt_1ka.yaml`.

All ranks encode and rank their share; the numbers do not depend on how many there are.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin in the checkout, not in launch/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.checks import check_sets
from launch.cluster import ROOT, training_resources
from launch.job import Work
from launch.options import Options, make_parser, parse_options
from launch.run_folder import JobFolder
from launch.scheduler import check_cluster
from launch.start import start
from launch.submit import Job
from launch.training import Plan, config_key
from pipeline.config import load_config, to_yaml
from pipeline.errors import InputError, run_command

ABOUT = "Evaluate a checkpoint on text-video retrieval sets, on SLURM, on this machine, or in this process."
DEFAULT_CONFIG = "configs/evaluate/msrvtt_1ka.yaml"


def plan_evaluation(options: Options, checkpoint: Path, to_come: tuple[Path, ...] = ()) -> Plan:
    """Check an evaluation. `to_come` are folders that earlier links of a chain will have written."""
    from pipeline.evaluate import EvaluateConfig, default_output
    from pipeline.evaluation.selection import select_checkpoint
    from pipeline.model.reading import read_weights

    os.chdir(ROOT)
    config = load_config(EvaluateConfig, options.config, options.overrides)
    if config.output is None:
        folder = default_output(checkpoint) if checkpoint.suffix else checkpoint / "evaluation"
        config = config.model_copy(update={"output": folder})
    promised = {path.resolve() for path in to_come}
    if not options.after:
        # Else the job before may still be writing them.
        if checkpoint.exists() and checkpoint.resolve() not in promised:
            read_weights(select_checkpoint(checkpoint, config.which)[0])
        check_sets(config.sets.values(), to_come)
    wanted = [(chosen.shards, chosen.shards / "manifest.parquet") for chosen in config.sets.values()]
    wanted += [(path, path) for chosen in config.sets.values() for path in (chosen.queries, *chosen.pairs.values())]
    wanted += [(bank, bank) for chosen in config.sets.values() if (bank := chosen.query_bank) is not None]
    wanted.append((checkpoint, checkpoint))
    missing = [
        f"{path} does not exist" for owner, path in wanted if owner.resolve() not in promised and not path.exists()
    ]
    resources = training_resources(options.site, options.nodes)
    if config.device == "cuda" and resources.gpus_per_node == 0:
        raise InputError("device is cuda, but the job has no GPUs; give --gpus-per-node, or change it")
    facts = check_cluster(options.site, resources, options.after) if options.cluster == "slurm" else []
    name = options.name or f"evaluate_{checkpoint.stem}"
    run_folder = (options.site.runs_dir / name).resolve()
    text = to_yaml(config)
    config_file = JobFolder(run_folder).path / f"config-{config_key(text)}.yaml"
    argv = (str(checkpoint), str(config_file))
    work = Work(kind="evaluate", run_folder=run_folder, module="pipeline.evaluate", argv=argv, distributed=True)
    facts.append(f"{resources.num_tasks} ranks encode {', '.join(config.sets)}; reports go to {config.output}")
    return Plan(Job(work, resources, name=name), text, config_file, tuple(facts), tuple(missing))


def main(argv: list[str]) -> int:
    """Plan the evaluation and start it."""
    parser = make_parser("slurm_evaluate.py", ABOUT, DEFAULT_CONFIG)
    parser.add_argument(
        "--checkpoint", help="run folder, checkpoint, exported model or official .pt (or the word without a =)"
    )
    options = parse_options(parser, argv, word="checkpoint")
    if options.extra["checkpoint"] is None:
        raise InputError("which checkpoint? python launch/slurm_evaluate.py runs/NAME ...")
    checkpoint = Path(options.extra["checkpoint"])
    here = checkpoint.resolve() if checkpoint.exists() else ROOT / checkpoint
    return start(plan_evaluation(options, here), options)


if __name__ == "__main__":
    run_command(main)
