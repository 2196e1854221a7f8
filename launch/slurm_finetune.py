"""Fine-tune on SLURM: `python launch/slurm_finetune.py --nodes 1 init_from=runs/b32 [key=value ...]`.

Everything is checked here before anything is queued. The job saves on signals, requeues itself, and goes on in the same
run folder; `python launch/status.py runs/NAME` follows it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin in the checkout, not in launch/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.options import make_parser, parse_options
from launch.start import start
from launch.training import plan_training
from pipeline.errors import run_command

ABOUT = "Fine-tune a model on SLURM, on this machine, or in this process."
DEFAULT_CONFIG = "configs/finetune/msrvtt_b32.yaml"


def main(argv: list[str]) -> int:
    """Plan the run and start it."""
    options = parse_options(make_parser("slurm_finetune.py", ABOUT, DEFAULT_CONFIG), argv)
    return start(plan_training(options, "finetune"), options)


if __name__ == "__main__":
    run_command(main)
