"""How a run is doing: `python launch/status.py runs/b32`. Reads the run folder, asks SLURM once, needs no accounting.

State, step, loss, clips/s, time left, last checkpoint, requeues, slow nodes, and the end of the log that matters.
"""

import re
import sys
import time
from glob import glob
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports begin in the checkout, not in launch/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.cluster import ROOT
from launch.run_folder import JobFolder, Row, read_json
from launch.scheduler import accounted_state, job_states
from launch.wait import describe
from pipeline.errors import InputError, run_command
from pipeline.metrics_lines import read_lines

TAIL_LINES = 12


def main(argv: list[str]) -> int:
    """Print the status of one run."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python launch/status.py RUN    (a run folder, or its name below runs/)")
        return 0 if argv in (["-h"], ["--help"]) else 2
    run_folder = find_run(argv[0])
    folder = JobFolder(run_folder)
    lines = [f"run         {run_folder}", *job_lines(folder), *training_lines(run_folder), *node_lines(folder)]
    print("\n".join(lines))
    log = relevant_log(folder)
    if log is not None:
        print(f"\n--- end of {log}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]))
    return 0


def find_run(word: str) -> Path:
    """A folder, or the name of one below runs/."""
    for place in (Path(word), Path("runs") / word, ROOT / "runs" / word):
        if (place / "jobs").is_dir() or (place / "metrics.jsonl").exists():
            return place.resolve()
    raise InputError(f"no run at {word}: neither a run folder nor a name below {ROOT / 'runs'}")


def job_lines(folder: JobFolder) -> list[str]:
    """What became of the newest job and of what it waited for."""
    submissions = folder.submissions()
    if not submissions:
        return ["job         none was submitted for this folder"]
    last = submissions[-1]
    job = str(last["job"])
    if last.get("cluster") == "local":
        return [f"job         {job} ({last['kind']}, {last['tasks']} processes): {local_state(folder, last)}"]
    arrays = [row for row in submissions if row.get("array") and not folder.is_over(row)]
    states = job_states([job, *(str(row["job"]) for row in arrays)])
    state = states.get(job) or accounted_state(job) or "gone from SLURM"
    lines = [f"job         {job} ({last['kind']}, {last['nodes']} nodes): {state}"]
    lines += [array_line(folder, row, states.get(str(row["job"]), "gone from SLURM")) for row in arrays]
    events = folder.array_events(job)
    ended = {name: rows[-1] for name, rows in events.items() if rows and rows[-1]["event"] == "ended"}
    for name, row in sorted(ended.items())[:8]:
        if row["action"] != "done" or len(ended) == 1:
            lines.append(f"ended       {name}: {describe(row)}")
    requeues = [row for rows in events.values() for row in rows if row["event"] == "started" and row["restart"]]
    lines.append(f"requeues    {len(requeues)}")
    lines += [f"because     {row['why']}" for rows in events.values() for row in rows if row.get("action") == "requeue"]
    return lines + cancelled_lines(folder, last, state)


def array_line(folder: JobFolder, submission: Row, state: str) -> str:
    """How far the tasks of an array are, and how many shards there are by now."""
    job = str(submission["job"])
    last = [rows[-1] for name, rows in folder.array_events(job).items() if name != job and rows]
    done = sum(row["event"] == "ended" and row["action"] == "done" for row in last)
    failed = sum(row["event"] == "ended" and row["action"] == "stop" for row in last)
    begun = f"{done} done, {failed} failed, {len(last) - done - failed} begun"
    written = f"; {len(glob(submission['progress']))} shards written" if submission.get("progress") else ""  # noqa: PTH207
    return f"array       {job} ({submission['tasks']} tasks): {state}; {begun}{written}"


def local_state(folder: JobFolder, submission: Row) -> str:
    """What became of a job of this machine."""
    job = str(submission["job"])
    exits = folder.exits(job, 0)
    if exits:
        return f"failed: {exits[0]['error']}"
    if all(folder.has_result(job, rank) for rank in range(submission["tasks"])):
        return "ended"
    return (
        "running"
        if Path(f"/proc/{submission['pid']}").exists()
        else "killed; the same command goes on (training: with --resume)"
    )


def cancelled_lines(folder: JobFolder, submission: Row, state: str) -> list[str]:
    """Why a job never started: the link before it failed."""
    if not state.startswith(("CANCELLED", "gone", "PENDING")) or folder.events(str(submission["job"])):
        return []
    lines = []
    for before in submission.get("after", []):
        for other in sorted(folder.run_folder.parent.glob("*/jobs")):
            rows = JobFolder(other.parent).events(before)
            if rows and rows[-1].get("action") == "stop":
                failed = rows[-1].get("failed_ranks") or [{}]
                reason = failed[0].get("error") or rows[-1]["why"]
                lines.append(f"cancelled   job {before} in {other.parent} failed before it: {reason}")
    return lines


def training_lines(run_folder: Path) -> list[str]:
    """Step, loss, speed, time left, last checkpoint."""
    rows = [row for row in read_lines(run_folder / "metrics.jsonl").rows if "train/loss" in row]
    lines = []
    if rows:
        last, total = rows[-1], total_steps(run_folder)
        age_s = time.time() - (run_folder / "metrics.jsonl").stat().st_mtime
        lines.append(f"step        {last['step']}{f' of {total}' if total else ''}, logged {age_s:.0f} s ago")
        lines.append(f"loss        {float(last['train/loss']):.4f}")
        speed, step_s = last.get("speed/clips_per_s"), last.get("speed/step_median_s")
        if speed and step_s:
            left = f", {_duration((total - last['step']) * step_s)} left" if total else ""
            lines.append(f"speed       {speed:.0f} clips/s, {step_s:.2f} s a step{left}")
    steps = sorted(run_folder.glob("checkpoints/step_*/COMPLETE.json"))
    if steps:
        age_s = time.time() - steps[-1].stat().st_mtime
        lines.append(f"checkpoint  {steps[-1].parent.name}, {_duration(age_s)} old")
    if (run_folder / "COMPLETE").exists():
        lines.append("finished    yes")
    return lines


def total_steps(run_folder: Path) -> int | None:
    """The length of the run, as the trainer announced it."""
    log = run_folder / "logs" / "rank_00000.log"
    found = re.findall(r"(\d+) steps of \d+ clips", log.read_text(errors="replace")) if log.exists() else []
    return int(found[-1]) if found else None


def node_lines(folder: JobFolder) -> list[str]:
    """The rank that all others waited for of late, the slowest in the preflight, and what that had to say."""
    reports = sorted((folder.path / "preflight").glob("*.json"), key=lambda path: path.stat().st_mtime)
    report = read_json(reports[-1]) if reports else None
    checked = report["rows"] if report else []
    lines = []
    trained = [row for row in read_lines(folder.run_folder / "metrics.jsonl").rows if "speed/slowest_rank" in row]
    if trained:
        slow, ratio = trained[-1]["speed/slowest_rank"], trained[-1]["speed/slowest_ratio"]
        node = "".join(f" on {row['node']}" for row in checked if row["rank"] == slow)
        lines.append(f"slowest     rank {slow}{node}: data and forward passes take {ratio:.2f} times the median rank's")
    if report and checked:
        slowest = max(checked, key=lambda row: row["product_s"])
        where = f"rank {slowest['rank']} on {slowest['node']}"
        lines.append(f"preflight   slowest is {where}: {slowest['product_s'] * 1e3:.1f} ms a product")
        lines += [f"preflight   {finding}" for finding in (*report["findings"], *report["fatal"])]
    return lines


def relevant_log(folder: JobFolder) -> Path | None:
    """The output of the rank that failed first, else of rank 0, of the newest job that wrote any."""
    for row in reversed(folder.submissions()):
        job = str(row["job"])
        for name, events in folder.array_events(job).items():
            failed = events[-1].get("failed_ranks") if events else None
            if failed and folder.log(name, failed[0]["rank"]).exists():
                return folder.log(name, failed[0]["rank"])
        if folder.log(job).exists():
            return folder.log(job)
        tasks = sorted(folder.path.glob(f"{job}_*_0_log.out"), key=lambda path: path.stat().st_mtime)
        if tasks:
            return tasks[-1]
    return None


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


if __name__ == "__main__":
    run_command(main)
