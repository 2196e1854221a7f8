"""How a run is doing: `python launch/status.py runs/b32`; without a run, a line for each below runs/.

Reads the run folder, asks SLURM once, needs no accounting.

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
from launch.overview import is_run, local_state, overview
from launch.run_folder import JobFolder, Row, read_json
from launch.scheduler import accounted_state, job_states
from launch.wait import describe
from pipeline.errors import InputError, run_command
from pipeline.metrics_lines import read_lines

USAGE = "usage: python launch/status.py [RUN]    (a run folder, or its name below runs/; none: all of them)"
MAX_JOBS = 20
TAIL_LINES = 12
TAIL_BYTES = 65536


def main(argv: list[str]) -> int:
    """Print the status of one run."""
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        print(USAGE)
        if argv in (["-h"], ["--help"]):
            return 0
        raise InputError(f"{argv[0]!r} is not one run" if argv[0].startswith("-") else "give one run, or none")
    if not argv:
        print("\n".join(overview()))
        return 0
    run_folder = find_run(argv[0])
    folder = JobFolder(run_folder)
    lines = [f"run         {run_folder}", *job_lines(folder), *training_lines(run_folder), *node_lines(folder)]
    print("\n".join(lines))
    log = relevant_log(folder)
    if log is not None:
        print(f"\n--- end of {log}")
        print("\n".join(tail(log)))
    return 0


def find_run(word: str) -> Path:
    """A folder, or the name of one below runs/."""
    for place in (Path(word), Path("runs") / word, ROOT / "runs" / word):
        if is_run(place):
            return place.resolve()
    raise InputError(f"no run at {word}: neither a run folder nor a name below {ROOT / 'runs'}")


def job_lines(folder: JobFolder) -> list[str]:
    """What became of the newest job and of what it waited for."""
    submissions = folder.submissions()
    if not submissions:
        return ["job         none was submitted for this folder"]
    last = {"kind": "unknown", "nodes": "?", "tasks": 1} | submissions[-1]
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
        if row.get("action") != "done" or len(ended) == 1:
            lines.append(f"ended       {name}: {describe(row)}")
    requeues = [row for rows in events.values() for row in rows if row["event"] == "started" and row.get("restart")]
    lines.append(f"requeues    {len(requeues)}")
    requeued = [row for rows in events.values() for row in rows if row.get("action") == "requeue"]
    lines += [f"because     {row.get('why', 'it did not say')}" for row in requeued]
    left_out = nodes_left_out(folder, submissions)
    lines += (
        [f"left out    {', '.join(left_out)}, after a fault of the machine or in the preflight"] if left_out else []
    )
    return lines + cancelled_lines(folder, last, state)


def nodes_left_out(folder: JobFolder, submissions: list[Row]) -> list[str]:
    """Nodes that jobs or tasks of this folder were requeued without, of the newest job and the arrays before it."""
    chosen = [submissions[-1], *(row for row in submissions[-MAX_JOBS:-1] if row.get("array"))]
    events = [rows for submission in chosen for rows in folder.array_events(str(submission["job"])).values()]
    return sorted({name for rows in events for row in rows for name in str(row.get("excluded", "")).split(",") if name})


def array_line(folder: JobFolder, submission: Row, state: str) -> str:
    """How far the tasks of an array are, and how many shards there are by now."""
    job = str(submission["job"])
    last = [rows[-1] for name, rows in folder.array_events(job).items() if name != job and rows]
    done = sum(row["event"] == "ended" and row.get("action") == "done" for row in last)
    failed = sum(row["event"] == "ended" and row.get("action") == "stop" for row in last)
    begun = f"{done} done, {failed} failed, {len(last) - done - failed} begun"
    written = f"; {len(glob(submission['progress']))} shards written" if submission.get("progress") else ""  # noqa: PTH207
    return f"array       {job} ({submission.get('tasks', '?')} tasks): {state}; {begun}{written}"


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
    lines_of = read_lines(run_folder / "metrics.jsonl")
    rows = [row for row in lines_of.rows if _is_number(row.get("train/loss"))]
    lines = []
    if lines_of.bad:
        lines.append(f"damaged     {len(lines_of.bad)} lines of metrics.jsonl cannot be read; the others count")
    if rows:
        last, total = rows[-1], total_steps(run_folder)
        age_s = time.time() - (run_folder / "metrics.jsonl").stat().st_mtime
        lines.append(f"step        {last['step']}{f' of {total}' if total else ''}, logged {age_s:.0f} s ago")
        lines.append(f"loss        {float(last['train/loss']):.4f}")
        speed, step_s = last.get("speed/clips_per_s"), last.get("speed/step_median_s")
        if isinstance(speed, float | int) and isinstance(step_s, float | int):
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
    checked = report.get("rows", []) if isinstance(report, dict) else []
    lines = []
    rows = read_lines(folder.run_folder / "metrics.jsonl").rows
    trained = [row for row in rows if "speed/slowest_rank" in row and _is_number(row.get("speed/slowest_ratio"))]
    if trained:
        slow, ratio = trained[-1]["speed/slowest_rank"], trained[-1]["speed/slowest_ratio"]
        node = "".join(f" on {row['node']}" for row in checked if row["rank"] == slow)
        lines.append(
            f"slowest     rank {slow}{node}: data and forward passes take {float(ratio):.2f} times the median rank's"
        )
    if report and checked:
        slowest = max(checked, key=lambda row: row["product_s"])
        where = f"rank {slowest['rank']} on {slowest['node']}"
        lines.append(f"preflight   slowest is {where}: {slowest['product_s'] * 1e3:.1f} ms a product")
        lines += [f"preflight   {finding}" for finding in (*report.get("findings", []), *report.get("fatal", []))]
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


def tail(log: Path) -> list[str]:
    """The last lines of a log, which may be of any size and hold NUL bytes where a machine lost power."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = stream.read().replace(b"\0", b"").decode(errors="replace")
    except OSError as error:
        return [f"(cannot be read: {error.strerror})"]
    return text.splitlines()[-TAIL_LINES:]


def _is_number(value: object) -> bool:
    """Whether it is a number, or the text by which a metrics file holds one that is not finite."""
    return value in ("nan", "inf", "-inf") or (isinstance(value, int | float) and not isinstance(value, bool))


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


if __name__ == "__main__":
    run_command(main)
