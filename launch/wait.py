"""`--wait`: follow a job through its files in the run folder; SLURM is asked at most once a minute.

code = wait_for("1234", JobFolder(Path("runs/b32")))
"""

import time

from launch.run_folder import JobFolder
from launch.scheduler import ACTIVE, accounted_state, job_states
from pipeline.errors import RunError

QUERY_INTERVAL_S = 60.0
POLL_S = 2.0
MISSES = 3
"""Answers in a row that do not know the job, before it counts as gone: slurmctld may be away for a moment."""


def wait_for(job: str, folder: JobFolder) -> int:
    """Print the events of a job until it has ended; returns its exit code."""
    shown, misses, asked_at = 0, 0, time.monotonic()
    while True:
        events = folder.events(job)
        for event in events[shown:]:
            print(f"job {job}: {describe(event)}", flush=True)
        shown = len(events)
        last = events[-1] if events else {"event": "", "action": ""}
        if last["event"] == "ended" and last.get("action") in ("done", "stop"):
            code = int(last.get("code", 0))
            return code if last["action"] == "done" else code or 1
        if time.monotonic() - asked_at > QUERY_INTERVAL_S:
            asked_at = time.monotonic()
            # Where squeue does not know the job, accounting is asked a minute later: one query at a time.
            state = accounted_state(job) if misses == 1 else job_states([job]).get(job)
            misses = 0 if state else misses + 1
            if misses == MISSES or (state and state.split()[0] not in ACTIVE):
                raise RunError(
                    f"job {job} ended as {state or 'gone from SLURM'}; see python launch/status.py {folder.run_folder}"
                )
        time.sleep(POLL_S)


def describe(event: dict[str, object]) -> str:
    """One event in words."""
    if event["event"] == "started":
        again = f" again (requeue {event['restart']})" if event.get("restart") else ""
        return f"started{again} on {event.get('nodes', 'nodes that it did not name')}"
    return f"exit code {event.get('code', '?')}; {event.get('action', '?')}: {event.get('why', '?')}"
