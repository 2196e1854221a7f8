"""`clip-vip COMMAND ...`: every command of the project under one name; a command is imported when it is called.

    clip-vip                       # the commands, a line each
    clip-vip train --help
    clip-vip slurm pretrain --nodes 8
    eval "$(register-python-argcomplete clip-vip)"      # completion in bash and zsh

Arguments go to the command as they are: `clip-vip train FILE.yaml key=value` is
`python -m pipeline.train FILE.yaml key=value`.
"""

import argparse
import difflib
import importlib
import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError, run_command


class Command(NamedTuple):
    """Whose `main(argv)` a command is, and what the overview says of it."""

    module: str
    about: str


COMMANDS = {
    "shards": Command("preprocess.run", "write tar shards from raw videos, metadata and texts"),
    "audit": Command("preprocess.audit", "read a shard set again as training will, and name what is wrong with it"),
    "report": Command("preprocess.report", "draw a shard set: coverage, failures, histograms, random clips"),
    "retry": Command("preprocess.retry", "deliver clips that failed before, in supplementary shards"),
    "recaption": Command("preprocess.recaption", "write generated captions into existing shards"),
    "merge": Command("preprocess.merge", "renew the manifest and the statistics of a shard set"),
    "index-shards": Command("preprocess.index", "make tars of another tool (video2dataset, ...) usable as a shard set"),
    "convert-set msrvtt": Command("preprocess.benchmarks.msrvtt", "MSR-VTT to shards, texts and queries"),
    "convert-set didemo": Command("preprocess.benchmarks.didemo", "DiDeMo to shards, texts and queries"),
    "convert-set lsmdc": Command("preprocess.benchmarks.lsmdc", "LSMDC to shards, texts and queries"),
    "convert-set activitynet": Command("preprocess.benchmarks.activitynet", "ActivityNet Captions, as paragraphs"),
    "convert-set plain": Command("preprocess.benchmarks.plain", "any video-text set from plain lists"),
    "index": Command("pipeline.data.index", "build the index of a large shard set before a job needs it"),
    "inspect": Command("pipeline.data.inspect", "look at samples of a shard set as training sees them"),
    "plan": Command("pipeline.plan", "memory, hours and loader cores of a run before it is started"),
    "train": Command("pipeline.train", "pre-train or fine-tune; goes on where it stopped"),
    "evaluate": Command("pipeline.evaluate", "text-video retrieval on held-out sets; compare runs"),
    "encode": Command("pipeline.encode", "videos and texts to feature vectors"),
    "convert": Command("pipeline.convert", "weights from any form that we read to one that others read"),
    "analyse domain-gap": Command("pipeline.analysis.domain_gap", "how far apart sources of texts or videos lie"),
    "plot": Command("pipeline.plot", "draw loss, recall and speed of one or several runs"),
    "wandb": Command("pipeline.wandb_mirror", "send a run to wandb anew, from its metrics file"),
    "status": Command("launch.status", "how a run is doing"),
    "slurm shards": Command("launch.slurm_shards", "write shards as job arrays"),
    "slurm pretrain": Command("launch.slurm_pretrain", "pre-train on several nodes"),
    "slurm finetune": Command("launch.slurm_finetune", "fine-tune on several nodes"),
    "slurm evaluate": Command("launch.slurm_evaluate", "evaluate on several GPUs"),
    "slurm chain": Command(
        "launch.slurm_chain", "shards, pre-training, fine-tuning and evaluation, one after the other"
    ),
    "sample": Command("preprocess.sample", "write the sample corpus"),
    "demo": Command("launch.demo", "all of it on the sample corpus, in minutes"),
}
"""What a user types -> what it starts."""


def main(argv: list[str]) -> int | None:
    """Run one command, or print all of them."""
    complete(parser())
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"clip-vip {version('clip-vip-pipeline')}")
        return 0
    command, rest = split(argv)
    code: int | None = importlib.import_module(entry_of(command)).main(rest)
    return code


def split(argv: list[str]) -> tuple[str, list[str]]:
    """The command at the start of `argv`, of one word or two, and its arguments. InputError names the nearest one."""
    for num_words in (1, 2):
        command = " ".join(argv[:num_words])
        if command in COMMANDS:
            return command, argv[num_words:]
    given = " ".join(argv[:2]) if argv[0] in groups() else argv[0]
    nearest = difflib.get_close_matches(given, [*COMMANDS, *groups()], n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    if argv[0] in groups():
        hint = f"{argv[0]} takes one of: {', '.join(groups()[argv[0]])}; "
    raise InputError(f"there is no command {given!r}; {hint}`clip-vip` lists them")


def groups() -> dict[str, list[str]]:
    """First words of two -> the second words that go with them."""
    found: dict[str, list[str]] = {}
    for first, _, second in (command.partition(" ") for command in COMMANDS):
        if second:
            found.setdefault(first, []).append(second)
    return found


def entry_of(command: str) -> str:
    """The module with the command's `main`; that of a package is its `__main__`."""
    module = COMMANDS[command].module
    spec = importlib.util.find_spec(module)
    return f"{module}.__main__" if spec is not None and spec.submodule_search_locations else module


def overview() -> str:
    """The commands, a line each."""
    lines = ["usage: clip-vip COMMAND ...      (clip-vip COMMAND --help explains one)", ""]
    lines += [f"  {name:<26}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The shape of the command line, for completion: names of commands, then files."""
    root = argparse.ArgumentParser(prog="clip-vip", add_help=False)
    first = root.add_subparsers()
    inner = {name: first.add_parser(name, add_help=False).add_subparsers() for name in groups()}
    for command in COMMANDS:
        group, _, second = command.rpartition(" ")
        added = inner[group].add_parser(second) if group else first.add_parser(command)
        added.add_argument("arguments", nargs="*")
    return root


def complete(shape: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions; returns at once where none does."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(shape)


def run() -> None:
    """The installed command."""
    run_command(main)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    run()
