"""All runs below runs/, a line each: what `launch/status.py` shows where no run is named.

print("\\n".join(overview()))        # b32  pretrain 1234 RUNNING; step_00000400
"""

from pathlib import Path

from launch.cluster import ROOT
from launch.run_folder import JobFolder, Row
from launch.scheduler import job_states


def overview() -> list[str]:
    """A line for each run below runs/, the one that was touched last first."""
    places = {place.resolve() for place in (Path("runs"), ROOT / "runs") if place.is_dir()}
    runs = [run for place in places for run in place.iterdir() if is_run(run)]
    if not runs:
        return [f"no runs below {' or '.join(map(str, sorted(places))) or ROOT / 'runs'}"]
    runs.sort(key=lambda run: run.stat().st_mtime, reverse=True)
    states = job_states([str(JobFolder(run).submissions()[-1]["job"]) for run in runs if JobFolder(run).submissions()])
    width = max(len(run.name) for run in runs)
    return [f"{run.name:<{width}}  {summary(run, states)}" for run in runs]


def summary(run: Path, states: dict[str, str]) -> str:
    """A run in a few words: its newest job, its newest checkpoint, whether it is finished."""
    folder, words = JobFolder(run), []
    submissions = folder.submissions()
    if submissions:
        last = {"kind": "unknown", "tasks": 1} | submissions[-1]
        is_local = last.get("cluster") == "local"
        state = local_state(folder, last) if is_local else states.get(str(last["job"]), "gone from SLURM")
        words.append(f"{last['kind']} {last['job']} {state}")
    steps = sorted(run.glob("checkpoints/step_*/COMPLETE.json"))
    words += [steps[-1].parent.name] if steps else []
    words += ["finished"] if (run / "COMPLETE").exists() else []
    return "; ".join(words) or "no job, no checkpoint"


def is_run(run: Path) -> bool:
    """Whether a folder is that of a run."""
    return (run / "jobs").is_dir() or (run / "metrics.jsonl").exists()


def local_state(folder: JobFolder, submission: Row) -> str:
    """What became of a job of this machine."""
    job = str(submission["job"])
    exits = folder.exits(job, 0)
    if exits:
        return f"failed: {exits[0]['error']}"
    if all(folder.has_result(job, rank) for rank in range(submission.get("tasks", 1))):
        return "ended"
    return (
        "running"
        if Path(f"/proc/{submission.get('pid', 'none')}").exists()
        else "killed; the same command goes on (training: with --resume)"
    )
