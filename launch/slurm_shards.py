"""Write shards on SLURM: `python launch/slurm_shards.py --nodes 8 --config configs/preprocess/hdvila.yaml`.

An array over the missing shards, then a job that merges and ends with the account. Run the same command again to submit
what is still missing. `--nodes` is how many tasks run at a time; a task has one node's share of CPUs.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin in the checkout, not in launch/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.options import make_parser, parse_options
from launch.shards import add_shard_options, plan_shards, start_shards
from pipeline.errors import run_command

ABOUT = "Decode raw videos and write tar shards: a SLURM array over the missing shards, then a merge."
DEFAULT_CONFIG = "configs/preprocess/hdvila.yaml"


def main(argv: list[str]) -> int:
    """Plan the array and start it."""
    parser = make_parser("slurm_shards.py", ABOUT, DEFAULT_CONFIG)
    add_shard_options(parser)
    parser.set_defaults(gpus_per_node=0)  # GPUs only when asked for, at sites that give no node without
    options = parse_options(parser, argv)
    return start_shards(plan_shards(options), options)


if __name__ == "__main__":
    run_command(main)
