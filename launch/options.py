"""The command line that all launchers share.

    parser = make_parser("slurm_pretrain.py", ABOUT, "configs/pretrain/b32.yaml")
    options = parse_options(parser, argv)

Paths given on the command line are relative to where the user stands; paths inside configs, and in key=value overrides,
to the checkout, because that is where jobs run.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch.cluster import ROOT, ClusterConfig, load_site
from pipeline.errors import InputError

SITE_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "quality of service",
    "time": 'time limit: "minutes", "hours:minutes:seconds" or "days-hours"',
    "constraint": "features that the nodes must have",
    "exclude": "nodes to avoid",
    "reservation": "reservation",
    "mem": "memory per node, such as 500G",
    "gpu": "kind of GPU that the plan of a dry run is made for (default: h100)",
}


@dataclass(frozen=True)
class Options:
    """What the command line says, with the site's defaults filled in."""

    config: tuple[str, ...]
    overrides: tuple[str, ...]
    name: str | None
    cluster: Literal["slurm", "local", "debug"]
    nodes: int
    site: ClusterConfig
    after: tuple[str, ...]
    dry_run: bool
    wait: bool
    resume: bool
    allow_missing: bool
    """A dry run that finds something missing ends with exit code 0 all the same."""
    gpus_given: bool
    """The command line says how many GPUs a node has; else the site does."""
    extra: dict[str, Any]
    """Options that one launcher adds."""


def make_parser(program: str, about: str, default_config: str | None) -> argparse.ArgumentParser:
    """The shared options; a launcher may add its own."""
    parser = argparse.ArgumentParser(
        prog=program, description=about.strip(), formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change the config: optim.lr=1e-5")
    default = [default_config] if default_config else None
    parser.add_argument(
        "--config", nargs="+", metavar="FILE", default=default, help=f"config files (default: {default_config})"
    )
    parser.add_argument("--name", help="name of the run and of its folder below runs/ (default: from the config)")
    parser.add_argument("--nodes", type=int, default=None, help="number of nodes (default: 1)")
    parser.add_argument(
        "--site",
        default=os.environ.get("LAUNCH_SITE", "default"),
        help="a file of configs/cluster, or a path (default: $LAUNCH_SITE or default)",
    )
    parser.add_argument("--gpus-per-node", type=int, help="GPUs of a node, one task each; 0: one CPU task a node")
    parser.add_argument("--cpus-per-gpu", type=int, help="CPU cores per GPU; of a task that has none, all its cores")
    for name, text in SITE_OPTIONS.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument(
        "--setup",
        action="append",
        metavar="LINE",
        help="shell line before the job starts, may be repeated: --setup 'module load cuda'",
    )
    parser.add_argument("--python", help="command that runs Python in a task, for containers")
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        default="slurm",
        help="slurm; local: processes on this machine; debug: in this process",
    )
    parser.add_argument(
        "--after",
        action="append",
        default=[],
        metavar="JOB",
        help="start when this job has ended well, may be repeated",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run folder that holds checkpoints already")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be submitted and check it; exit code 1: something is missing",
    )
    parser.add_argument("--allow-missing", action="store_true", help="with --dry-run: exit code 0 all the same")
    parser.add_argument("--wait", action="store_true", help="wait for the end; the exit code is that of the job")
    return parser


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str], word: str | None = None) -> Options:
    """Parse and check; wrong options end with exit code 2. `word`: the option that one word without a = stands for."""
    given = vars(parser.parse_intermixed_args(list(argv)))
    files = given["config"] or []
    # `--config a.yaml b.yaml optim.lr=1e-5` gives argparse no border between the two kinds of words.
    given["config"] = [text for text in files if _is_config(text)]
    given["overrides"] += [text for text in files if not _is_config(text)]
    plain = [text for text in given["overrides"] if "=" not in text]
    if word is not None and len(plain) == 1 and given[word] is None:
        given[word] = plain.pop()
        given["overrides"].remove(given[word])
    if plain:
        raise InputError(f"{plain[0]!r} is not key=value; config files (.yaml) go after --config, see --help")
    for job in given["after"]:
        if not re.fullmatch(r"\d+(_\d+)?", job):
            raise InputError(f"--after {job}: a job id is a number, as squeue shows it")
    if given["nodes"] is not None and given["nodes"] < 1:
        raise InputError(f"--nodes {given['nodes']}: at least 1")
    if given["name"] is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", given["name"]):
        raise InputError(f"--name {given['name']!r}: letters, digits, dot, dash and underscore only")
    if given["allow_missing"] and not given["dry_run"]:
        raise InputError("--allow-missing is for --dry-run: a job that lacks something is never submitted")
    gpus_given = given["gpus_per_node"] is not None
    site = load_site(given.pop("site"), _site_values(given))
    if given["cluster"] != "slurm":
        site = _check_elsewhere(given, site)
    shared = {"config", "overrides", "name", "cluster", "nodes", "after", "dry_run", "wait", "resume", "allow_missing"}
    return Options(
        config=tuple(str(find_config(file)) for file in given["config"]),
        overrides=tuple(given["overrides"]),
        name=given["name"],
        cluster=given["cluster"],
        nodes=given["nodes"] or 1,
        site=site,
        after=tuple(given["after"]),
        dry_run=given["dry_run"],
        wait=given["wait"],
        resume=given["resume"],
        allow_missing=given["allow_missing"],
        gpus_given=gpus_given,
        extra={key: value for key, value in given.items() if key not in shared},
    )


def _is_config(text: str) -> bool:
    return "=" not in text and text.endswith((".yaml", ".yml"))


def _site_values(given: dict[str, Any]) -> dict[str, Any]:
    values = {name: given.pop(name) for name in (*SITE_OPTIONS, "gpus_per_node", "cpus_per_gpu", "setup", "python")}
    values["faulty_node"] = given.pop("faulty_node", None)  # where tasks of shards are started
    if values["gpus_per_node"] == 0 and values["cpus_per_gpu"] is not None:
        values["cpus_per_node"] = values["cpus_per_gpu"]
    return values


def _check_elsewhere(given: dict[str, Any], site: ClusterConfig) -> ClusterConfig:
    """Without SLURM: refuse what would silently do nothing, and count the GPUs of this machine."""
    cluster = given["cluster"]
    if given["after"]:
        raise InputError(f"--after needs SLURM; with --cluster {cluster}, run the commands one after the other")
    if cluster == "debug" and (given["nodes"] or 1) > 1:
        raise InputError(f"--cluster debug is one process, but --nodes is {given['nodes']}; use --cluster local")
    if site.gpus_per_node > 0:
        import torch

        present = torch.cuda.device_count()
        nodes = 1 if cluster == "debug" else given["nodes"] or 1
        if present and nodes > present:
            raise InputError(
                f"--nodes {nodes} share the {present} GPUs of this machine; give fewer, or --gpus-per-node 0"
            )
        most = min(present, 1) if cluster == "debug" else present // nodes
        site = site.model_copy(update={"gpus_per_node": min(site.gpus_per_node, most)})
    return site


def without_gpus(options: Options, key: str) -> Options:
    """The options of a job whose config asks for no GPU, by `key`; InputError where the command line asks for some."""
    if options.gpus_given and options.site.gpus_per_node > 0:
        raise InputError(
            f"--gpus-per-node {options.site.gpus_per_node}, but {key} is cpu: the GPUs would do nothing; change one"
        )
    return replace(options, site=options.site.model_copy(update={"gpus_per_node": 0}))


def find_config(file: str) -> Path:
    """A config as seen from where the user stands, else from the checkout."""
    for base in (Path.cwd(), ROOT):
        if (base / file).exists():
            return (base / file).resolve()
    raise InputError(f"cannot read config {file}: it is neither here nor below {ROOT}")
