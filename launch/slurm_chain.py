"""Shards, pre-training, fine-tuning and evaluation as one chain of jobs, each after the one before has ended well.

    python launch/slurm_chain.py --nodes 8 --shards configs/preprocess/sample_train.yaml \\
        --pretrain configs/tiny/pretrain.yaml --evaluate configs/tiny/evaluate.yaml pretrain.steps=100

Every link may be left out. Overrides start with the name of their link. All links are checked before the first job is
queued; when one fails, SLURM cancels those that depend on it, and `launch/status.py` of their folders says why. The
same command goes on with what is left: written shards and finished runs stay as they are, and a run that holds
checkpoints of the same config is resumed. With `--cluster local` the links run on this machine, one after the other.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin in the checkout, not in launch/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.chain import Link, plan_links
from launch.chain_here import run_links
from launch.dry_run import show_reports
from launch.options import find_config, make_parser, parse_options
from launch.run_folder import JobFolder
from launch.shards import add_shard_options
from launch.submit import take_back
from launch.wait import wait_for
from pipeline.errors import InputError, PipelineError, run_command

ABOUT = "Shards -> pretrain -> finetune -> evaluate, each after the one before, on SLURM or on this machine."
LINKS = ("shards", "pretrain", "finetune", "evaluate")


def main(argv: list[str]) -> int:
    """Plan all links, then queue them."""
    parser = make_parser("slurm_chain.py", ABOUT, None)
    parser.add_argument(
        "--shards", action="append", default=[], metavar="FILE", help="config of a shard set, may be repeated"
    )
    for name in LINKS[1:]:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"config of the {name} link")
    add_shard_options(parser)
    options = parse_options(parser, argv)
    if options.cluster == "debug":
        raise InputError("--cluster debug is one process for one job; --cluster local runs a chain on this machine")
    if options.config:
        raise InputError("--config has no meaning for a chain; give --shards, --pretrain, --finetune, --evaluate")
    chosen = {name: options.extra[name] for name in LINKS[1:] if options.extra[name]}
    files = {name: str(find_config(file)) for name, file in chosen.items()}
    links, finished = plan_links(options, [str(find_config(file)) for file in options.extra["shards"]], files)
    if options.dry_run:
        reports = [link.report() for link in links]
        return show_reports(reports, allow_missing=options.allow_missing, are_links=True, finished=finished)
    for line in finished:
        print(line)
    if options.cluster == "local":
        run_links(links)
        return 0
    queued = queue(links, options.after)
    for job, folder in queued if options.wait else []:
        code = wait_for(job, folder)
        if code:
            print(f"job {job} failed; SLURM cancels what depends on it", file=sys.stderr)
            return code
    return 0


def queue(links: list[Link], after: tuple[str, ...]) -> list[tuple[str, JobFolder]]:
    """Queue all links, or none: when SLURM refuses one, all jobs of those before it are cancelled."""
    queued: list[tuple[str, JobFolder]] = []
    jobs: list[str] = []
    waiting_for = after
    done: list[str] = []
    try:
        for link in links:
            mine = link.submit(waiting_for)
            jobs += mine
            queued.append((mine[-1], link.folder))
            done.append(mine[-1])
            if link.ends_stage:
                waiting_for, done = tuple(done), []
            print(f"queued job {mine[-1]}: {link.kind} in {link.folder.run_folder}", flush=True)
    except PipelineError:
        take_back(jobs)
        raise
    return queued


if __name__ == "__main__":
    run_command(main)
