"""What lies on the disk: names, hashes, intact or not, `latest`, which checkpoints to keep.

newest_intact(run_folder) -> (Path or None, [problem of each one passed over])

Only wrong or missing bytes are damage. What the file system fails to read is tried again (`retry`), then a RunError.
"""

import hashlib
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.retry import retried

FORMAT_VERSION = 1
COMPLETE = "COMPLETE.json"
LATEST = "latest"
BEST = "best"
_STEP = re.compile(r"step_(\d{8,})")
_STAYS = frozenset(("jobs", "wandb", "owner.json", ".owner.lock"))
_BEFORE = re.compile(r"_before_\d+$")


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step`.

    >>> checkpoint_name(1000)
    'step_00001000'
    """
    return f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name; ValueError for any other name."""
    match = _STEP.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not named like a checkpoint (step_00001000)")
    return int(match[1])


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, intact or not. RunError where they cannot be listed."""
    folder = run_folder / "checkpoints"
    try:
        inside = retried(lambda: list(folder.iterdir()), folder)  # glob() takes a refused folder for an empty one
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((path for path in inside if _STEP.fullmatch(path.name)), key=step_of)


def write_atomically(path: Path, text: str) -> None:
    """Write `path` so that a reader, and a crash at any moment, sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_fact(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def content_files(folder: Path) -> list[str]:
    """Paths, below `folder`, of everything that COMPLETE.json must account for."""

    def refuse(error: OSError) -> None:
        raise error  # else a folder that cannot be listed would count as an empty one

    found = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(str(path.relative_to(folder)) for path in found if path.name != COMPLETE)


def read_complete(folder: Path) -> dict[str, Any]:
    """The content of COMPLETE.json. ValueError says what is wrong with it, RunError that it cannot be read."""
    try:
        content = json.loads(retried((folder / COMPLETE).read_bytes, folder / COMPLETE))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: no {COMPLETE}, saving it was not finished") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}: {COMPLETE} is damaged: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"{folder}: {COMPLETE} is damaged")
    if content.get("format") != FORMAT_VERSION:
        raise ValueError(f"{folder}: format {content.get('format')}, this code reads {FORMAT_VERSION}")
    return content


def seal(folder: Path, facts: dict[str, Any], reported: dict[str, dict[str, Any]] | None = None) -> None:
    """Bring everything in `folder` to the disk, then write COMPLETE.json: from now on the checkpoint counts.

    `reported` are files that other ranks wrote, synced and hashed, by path below `folder`; each must be there.
    """
    files = dict(reported or {})
    for name, fact in files.items():
        if (size := (folder / name).stat().st_size) != fact["bytes"]:
            raise OSError(f"{folder / name} has {size} bytes, {fact['bytes']} were written")
    for name in content_files(folder):
        if name not in files:
            files[name] = file_fact(folder / name)
            _sync(folder / name)
    for inner in {(folder / name).parent for name in files} - {folder}:
        _sync(inner)
    content = facts | {"format": FORMAT_VERSION, "files": files}
    write_atomically(folder / COMPLETE, json.dumps(content | {"seal": _seal_of(content)}, indent=1))


def find_damage(folder: Path) -> str | None:
    """Why a checkpoint is not intact, or None. Raises RunError where that cannot be read, which is no damage."""
    try:
        content = read_complete(folder)
    except ValueError as error:
        return str(error)
    if content.pop("seal", None) != _seal_of(content):
        return f"{folder}: {COMPLETE} is damaged"
    if (step := renamed_from(folder, content)) is not None:
        return f"{folder}: holds step {step} by its {COMPLETE}; the folder was renamed from {checkpoint_name(step)}"
    expected: dict[str, Any] = content["files"]
    try:
        for name in sorted(expected):  # sizes first: they cost next to nothing
            size = retried((folder / name).stat, folder / name).st_size
            if size != expected[name]["bytes"]:
                return f"{folder}: {name} has {size} bytes, should have {expected[name]['bytes']}"
        for name in sorted(expected):
            if retried(partial(file_fact, folder / name), folder / name) != expected[name]:
                return f"{folder}: {name} is damaged (its SHA-256 differs)"
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{folder}: {Path(error.filename).relative_to(folder)} is missing"
    return None


def renamed_from(folder: Path, complete: dict[str, Any]) -> int | None:
    """The step that a checkpoint holds by its COMPLETE.json, where its folder is named after another one."""
    match, step = _STEP.fullmatch(folder.name), complete.get("step")
    return step if match is not None and isinstance(step, int) and step != int(match[1]) else None


def _seal_of(content: dict[str, Any]) -> str:
    """One hash over the rest of COMPLETE.json, so that damage within that file is seen too."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_latest(run_folder: Path) -> Path | None:
    """The checkpoint that `latest` names, if there is such a file and such a folder. RunError: it cannot be read."""
    try:
        text = retried((run_folder / LATEST).read_bytes, run_folder / LATEST).decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    named = run_folder / text.strip()
    return named if named.is_dir() and named != run_folder else None


def read_best_step(run_folder: Path) -> int | None:
    """The step of the checkpoint that `best` names, if there is such a file."""
    try:
        return step_of(Path((run_folder / BEST).read_text(encoding="utf-8").strip()))
    except (FileNotFoundError, ValueError):
        return None


def newest_intact(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with every newer one. RunError: one cannot be read.

    `latest` is a convenience for people and for evaluation: it may be missing, or older than the newest checkpoint
    when the run died between the two, and is not asked here.
    """
    problems: list[str] = []
    for folder in reversed(list_checkpoints(run_folder)):
        problem = find_damage(folder)
        if problem is None:
            return folder, problems
        problems.append(problem)
    return None, problems


def take_out(folder: Path, why: str = "damaged") -> None:
    """Rename a checkpoint to <why>_<its name>: not lost, and taking the place of no good one in the keep policy."""
    target, number = folder.with_name(f"{why}_{folder.name}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{why}_{folder.name}_{number}")
    folder.rename(target)


def remove_staging(run_folder: Path) -> None:
    """Remove what attempts to save left behind when they died."""
    for path in (run_folder / "checkpoints").glob(".staging-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [
        *run_folder.glob(".*.tmp"),
        *(run_folder / "checkpoints").glob(".removing-*"),
        *(run_folder / "checkpoints").glob(".universal-*"),
    ]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def set_aside(run_folder: Path) -> list[str]:
    """Rename all that a run has made to <name>_before_<n>, so that a fresh start neither mixes with it nor loses it.

    What the launcher keeps (jobs/), the claim on the folder, and what was set aside before stay. Returns the new names.
    """
    made = [path for path in run_folder.iterdir() if path.name not in _STAYS and not _BEFORE.search(path.stem)]
    made = [path for path in made if not (path.is_dir() and not any(path.iterdir()))]
    made += [path for path in [run_folder / "wandb/run_id"] if path.exists()]  # its segments carry the run's id
    number = 1
    while any(_before(path, number).exists() for path in made):
        number += 1
    for path in made:
        path.rename(_before(path, number))
    for name in ("checkpoints", "logs"):
        (run_folder / name).mkdir(exist_ok=True)
    return sorted(_before(path, number).name for path in made)


def _before(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}_before_{number}{path.suffix}")


def to_remove(steps: list[int], *, keep_last: int, keep_every: int, protected: set[int]) -> list[int]:
    """Which of the saved `steps` (ascending) the keep policy lets go.

    >>> to_remove([10, 20, 30, 40, 50], keep_last=2, keep_every=30, protected={10})
    [20]
    """
    kept = set(steps[-keep_last:]) | protected
    if keep_every > 0:
        kept |= {step for step in steps if step % keep_every == 0}
    return [step for step in steps if step not in kept]


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; a crash in the middle leaves no folder that looks like one."""
    doomed = folder.with_name(f".removing-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
