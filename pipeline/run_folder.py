"""The folder of a run: `runs/<name>/`, independent of jobs and of how often it was resumed.

config.yaml      the resolved config; another run may not move in (what may change is in CHANGEABLE)
code.json        git revision, uncommitted changes, versions; one entry per start
metrics.jsonl    a line a step            logs/rank_00000.log    wandb/
checkpoints/     latest                   COMPLETE               when the last step is done

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

from pydantic import ValidationError

from pipeline.checkpoint.folder import write_atomically
from pipeline.config import Section, read_yaml, to_yaml
from pipeline.errors import InputError

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


def prepare(folder: Path, config: Section) -> None:
    """Check that the folder belongs to this config, and note config and code in it. Raises InputError. Rank 0.

    Only once the folder is claimed: a run that is refused must not leave its own config there.
    """
    with _writing(folder):
        stored = folder / "config.yaml"
        if stored.exists() and (different := differing_keys(stored_values(stored, type(config)), _values(config))):
            raise InputError(
                f"{folder} belongs to another config: {', '.join(different)} differ; choose another name, or the "
                f"values of {stored}"
            )
        write_atomically(stored, to_yaml(config))
        record_code(folder / "code.json")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write the run folder {folder}: {error.strerror}; check runs_dir and its rights"
        ) from None


def stored_values(path: Path, kind: type[Section]) -> dict[str, Any]:
    """The values of a stored config; keys that this code has and the one that wrote it had not are at their defaults.

    As they stand in the file where this code cannot read them at all: then the keys that it does not know differ.
    """
    content = read_yaml(path)
    try:
        return _values(kind.model_validate(content))
    except ValidationError:
        return content


def _values(config: Section) -> dict[str, Any]:
    return config.model_dump(mode="json")


def differing_keys(stored: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, without the changeable ones."""
    found = []
    for name in sorted(stored.keys() | new.keys()):
        key = f"{prefix}{name}"
        if key in CHANGEABLE:
            continue
        one, other = stored.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differing_keys(one, other, f"{key}.")
        elif one != other:
            found.append(key)
    return found


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
