"""Evaluate a model on text-video retrieval sets: print the tables, keep them as JSON, Markdown and CSV.

    python -m pipeline.evaluate CHECKPOINT FILE.yaml... key=value...
    python -m pipeline.evaluate runs/b32 configs/evaluate/msrvtt_1ka.yaml sets.msrvtt_1ka.num_workers=4

CHECKPOINT is a run folder, a checkpoint, an exported model, or an official .pt file. Under torchrun every rank encodes
and ranks its share; the numbers do not depend on how many there are.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field, model_validator

from pipeline.config import Section, load_config, render_help, split_arguments
from pipeline.dist import is_main, local_rank
from pipeline.errors import InputError, run_command
from pipeline.evaluation.protocol import RetrievalSetConfig
from pipeline.evaluation.report import console_table, set_report, write_report
from pipeline.evaluation.retrieval import retrieve
from pipeline.model.weights import load_model

PROGRAM = "python -m pipeline.evaluate CHECKPOINT"


class EvaluateConfig(Section):
    """What to evaluate a checkpoint on."""

    sets: dict[str, RetrievalSetConfig] = Field(min_length=1)
    """Retrieval sets by name."""
    output: Path | None = None
    """Folder for the reports; default: `evaluation/` in the run folder, or beside a model file."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU where there is one."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_sets(cls, values: Any) -> Any:
        """A set's name is its key."""
        sets = values.get("sets") if isinstance(values, dict) else None
        if not isinstance(sets, dict):
            return values
        named = {key: {"name": key, **one} if isinstance(one, dict) else one for key, one in sets.items()}
        return {**values, "sets": named}


def main(argv: list[str]) -> int:
    """Evaluate one checkpoint on every set of the config."""
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(render_help(EvaluateConfig, program=PROGRAM, about=__doc__ or ""))
        return 0 if argv else 2
    checkpoint, config = parse_arguments(argv)
    device = start_ranks(config.device)
    try:
        evaluate_checkpoint(checkpoint, config, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def parse_arguments(argv: list[str]) -> tuple[Path, EvaluateConfig]:
    """The checkpoint comes first, then files and overrides."""
    checkpoint = Path(argv[0])
    if "=" in argv[0] or checkpoint.suffix in (".yaml", ".yml"):
        raise InputError(f"the first argument must be a checkpoint, but is {argv[0]!r}; usage: {PROGRAM} FILE.yaml ...")
    if not checkpoint.exists():
        raise InputError(f"no checkpoint at {checkpoint}; give a run folder, a checkpoint or a model file")
    return checkpoint, load_config(EvaluateConfig, *split_arguments(argv[1:], program=PROGRAM))


def start_ranks(wanted: str | None) -> torch.device:
    """Join the process group that torchrun or the launcher describes, if any; returns this rank's device."""
    kind = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(kind, local_rank()) if kind == "cuda" else torch.device(kind)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def evaluate_checkpoint(checkpoint: Path, config: EvaluateConfig, device: torch.device) -> None:
    """Evaluate every set; rank 0 prints and writes. Collective."""
    model = load_model(checkpoint).to(device).eval()
    folder = config.output or default_output(checkpoint)
    for set_config in config.sets.values():
        found = retrieve(model, model.tokenizer, model.image_size_px, set_config, device=device)
        if is_main():
            report = set_report(found, checkpoint=str(checkpoint))
            paths = write_report(report, folder)
            print(console_table(report))
            print(f"written: {', '.join(str(path) for path in paths)}\n", flush=True)


def default_output(checkpoint: Path) -> Path:
    """`evaluation/` in a run folder or exported model, `{stem}_evaluation/` beside a file."""
    if checkpoint.is_dir():
        return checkpoint / "evaluation"
    return checkpoint.with_name(f"{checkpoint.stem}_evaluation")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
