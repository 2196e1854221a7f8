"""A copy of the code for a job: what was submitted is what runs, also after days in the queue and after a requeue.

    code = take_snapshot(Path("runs/b32/jobs"))     # runs/b32/jobs/code/3f1c.../{launch,pipeline,preprocess}

Equal code gives the same folder. `revision.json` in it names the git revision and holds what was not committed.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from launch.cluster import ROOT

PACKAGES = ("launch", "pipeline", "preprocess")


def code_files() -> list[Path]:
    """All files of our packages."""
    return sorted(
        path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file() and _is_code(path)
    )


def snapshot_folder(jobs_folder: Path) -> Path:
    """Where `take_snapshot` puts the code as it is now."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return jobs_folder / "code" / digest.hexdigest()[:12]


def take_snapshot(jobs_folder: Path) -> Path:
    """Copy our packages below `jobs_folder`, unless the same code is there already."""
    target = snapshot_folder(jobs_folder)
    if target.exists():
        return target
    fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for path in code_files():
        copy = fresh / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (fresh / "revision.json").write_text(
        json.dumps({"revision": _git("rev-parse", "HEAD"), "diff": _git("diff", "HEAD")})
    )
    try:
        fresh.rename(target)
    except OSError:
        shutil.rmtree(fresh)  # another launcher was faster with the same code
    return target


def _is_code(path: Path) -> bool:
    return "__pycache__" not in path.parts and not path.name.startswith(".")


def _git(*words: str) -> str:
    """Output of git; empty outside a checkout."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
