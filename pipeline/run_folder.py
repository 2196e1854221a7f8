"""The folder of a run: `runs/<name>/`, independent of jobs and of how often it was resumed.

config.yaml      the resolved config; another run may not move in (what may change is in CHANGEABLE)
code.json        git revision, uncommitted changes, versions; one entry per start
metrics.jsonl    a line a step            logs/rank_00000.log    wandb/
metrics.bad      lines of it that were damaged
checkpoints/     latest                   COMPLETE               when the last step is done
*_before_1       what resume=never has set aside

make_folders(folder); prepare(folder, config)       # between the two, the folder is claimed
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.checkpoint.folder import write_atomically
from pipeline.config import Section, read_yaml, to_yaml
from pipeline.config_difference import differences, listed, with_defaults
from pipeline.errors import InputError, RunError
from pipeline.retry import FAULTS, NO_ROOM

CHANGEABLE = (
    "runs_dir",
    "resume",
    "stop_at_step",
    "init_from",
    "engine",
    "deepspeed",
    "checkpoint",
    "evaluation",
    "log",
    "failure",
    "batch.micro_batches",
    "data.num_workers",
    "data.read_ahead",
)
"""Keys that a resumed run may change: they decide how a step is run and recorded, not what it computes."""

PACKAGES = ("torch", "deepspeed", "open_clip_torch", "numpy", "safetensors", "av", "simplejpeg", "pyarrow")


def make_folders(folder: Path) -> None:
    """Make the folder, with nothing in it. Raises InputError. Rank 0."""
    with _writing(folder):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)


def prepare(folder: Path, config: Section) -> list[str]:
    """Check that the folder belongs to this config, and note config and code in it. Raises InputError. Rank 0.

    Only once the folder is claimed: a run that is refused must not leave its own config there. Returns what there is to
    say about it, for the log.
    """
    stored = folder / "config.yaml"
    with _writing(folder):
        different = conflict(folder, config)
        if different and has_steps(folder):
            raise InputError(
                f"{folder} {different}; choose another name, the values of {stored}, or start over with resume=never"
            )
        write_atomically(stored, to_yaml(config))
        record_code(folder / "code.json")
    return [f"{folder} made no step yet, so it takes the new config: it {different}"] if different else []


def conflict(folder: Path, config: Section) -> str:
    """In what the config of a run folder differs from `config`, in words that follow its name; empty: in nothing.

    Only keys that decide what a step computes count, with the options that came since at their defaults.
    """
    stored = folder / "config.yaml"
    if not stored.exists():
        return ""
    found = differences(with_defaults(type(config), read_yaml(stored)), _values(config), ignored=CHANGEABLE)
    return f"belongs to another config: {listed(found)}" if found else ""


def has_steps(folder: Path) -> bool:
    """Whether a run has left anything here that cost it a step: a checkpoint, intact or not, or a line of metrics."""
    metrics = folder / "metrics.jsonl"
    return any((folder / "checkpoints").glob("*step_*")) or (metrics.exists() and metrics.stat().st_size > 0)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = RunError if error.errno in FAULTS | NO_ROOM else InputError
        raise kind(f"cannot write the run folder {folder}: {error.strerror}; check runs_dir and its rights") from None


def _values(config: Section) -> dict[str, Any]:
    return config.model_dump(mode="json")


def record_code(path: Path) -> None:
    """Append what code this start runs to `path`."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        starts = []
    entry = {"command": sys.argv, "python": sys.version.split()[0], "packages": package_versions()} | git_state()
    write_atomically(path, json.dumps([*starts, entry], indent=1))


def package_versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def git_state() -> dict[str, str]:
    """Revision and uncommitted changes of the code; empty outside a git checkout."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "HEAD")
        return {"git_revision": revision, "git_diff": _git(here, "diff", "HEAD")}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()
