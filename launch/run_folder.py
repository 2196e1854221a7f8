"""What the launcher keeps of a run: `runs/<name>/jobs/`. Standard library only: the guard of a batch script uses it.

submissions.jsonl              a row per job: id, kind, nodes, what it depends on
events/<job>.jsonl             a row per start and end of a job: step, exit code, decision, why
exits/<job>.<restart>.<rank>   the error of a rank that failed
preflight/<job>.<restart>      per-rank timings
<job>_submission.sh            the sbatch script      <job>_<rank>_log.out    output, one file a rank
local-<token>/                 the same of a start on this machine: its process id may come again, its token does not

folder = JobFolder(Path("runs/b32")); folder.events("1234")
"""

import json
import os
import time
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

Row = dict[str, Any]


@dataclass(frozen=True)
class JobFolder:
    """The `jobs` folder of one run. Nothing is created before the first write."""

    run_folder: Path

    @property
    def path(self) -> Path:
        return self.run_folder / "jobs"

    def add_submission(self, row: Row) -> None:
        """Append one submitted job."""
        _append(self.path / "submissions.jsonl", row)

    def submissions(self) -> list[Row]:
        """All jobs ever submitted for this run, oldest first."""
        return [row for row in read_rows(self.path / "submissions.jsonl") if "job" in row]

    def add_event(self, job: str, row: Row) -> None:
        """Append an event of `job`. A file per job: array tasks on many nodes must not write into one file."""
        _append(self.path / "events" / f"{job}.jsonl", row)

    def events(self, job: str) -> list[Row]:
        """The events of one job, oldest first."""
        return _events(self.path / "events" / f"{job}.jsonl")

    def array_events(self, job: str) -> dict[str, list[Row]]:
        """The events of a job and of all its array tasks, by job id."""
        files = sorted((self.path / "events").glob(f"{job}_*.jsonl"))
        return {file.stem: rows for file in files if (rows := _events(file))} | (
            {job: self.events(job)} if self.events(job) else {}
        )

    def is_over(self, submission: Row) -> bool:
        """Whether a submitted job has said that it ended for good. One that vanished without a word has not."""
        last = [rows[-1] for rows in self.array_events(str(submission["job"])).values()]
        ended = [row for row in last if row["event"] == "ended" and row.get("action") in ("done", "stop")]
        return len(ended) >= (submission.get("tasks", 1) if submission.get("array") else 1)

    def add_exit(self, job: str, restart: int, rank: int, row: Row) -> None:
        """Keep why a rank failed."""
        write_json(self.path / "exits" / f"{job}.{restart}.{rank}", row)

    def exits(self, job: str, restart: int) -> list[Row]:
        """Ranks that failed in one incarnation of a job, the first to fail first."""
        rows = [read_json(file) for file in (self.path / "exits").glob(f"{job}.{restart}.*")]
        known = [{"node": "a node that it did not name"} | row for row in rows if _is_exit(row)]
        return sorted(known, key=lambda row: row["time"])

    def claim_decision(self, job: str, restart: int) -> bool:
        """Whether the caller is the first to decide what follows this incarnation of a job."""
        path = self.path / "events" / f".{job}.{restart}.decided"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def log(self, job: str, rank: int = 0) -> Path:
        """The output of one rank."""
        of_this_machine = next((self.path / job).glob(f"*_{rank}_log.out"), None)
        return of_this_machine or self.path / f"{job}_{rank}_log.out"

    def has_result(self, job: str, rank: int) -> bool:
        """Whether a task of this machine came to its end; submitit leaves a file for every task that did."""
        return any((self.path / job).glob(f"*_{rank}_result.pkl"))


def progress_mark(pattern: str) -> str:
    """How far the work is, as a text that changes with progress: the number and the last name of the files found."""
    found = sorted(glob(pattern)) if pattern else []  # noqa: PTH207 - an absolute pattern
    return f"{len(found)} {Path(found[-1]).parent.name}/{Path(found[-1]).name}" if found else ""


def write_json(path: Path, value: Any) -> None:
    """Write `path` so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a disk that is full keeps nothing of it
        raise


def read_json(path: Path) -> Any:
    """The content of `path`, None where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; lines that a crash cut off or filled with NUL bytes are skipped."""
    rows: list[Row] = []
    try:
        # Not splitlines(): a text may hold other line ends, such as U+2028.
        lines = [line for line in path.read_text(errors="replace").split("\n") if line.strip()]
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _events(path: Path) -> list[Row]:
    return [row for row in read_rows(path) if isinstance(row.get("event"), str)]


def _is_exit(row: Any) -> bool:
    return isinstance(row, dict) and {"time", "rank", "code", "error"} <= row.keys()


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps({"time": round(time.time(), 3)} | row) + "\n").encode()
    with open(path, "a+b", buffering=0) as stream:
        if _is_cut_off(stream):
            line = b"\n" + line  # a row of a full disk must not take this one with it
        while line:
            line = line[stream.write(line) :]


def _is_cut_off(stream: BinaryIO) -> bool:
    """Whether a file ends in the middle of a line."""
    if stream.seek(0, os.SEEK_END) == 0:
        return False
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) != b"\n"
