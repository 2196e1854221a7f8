"""The shell lines that go in front of srun in the sbatch script: the site's own, the environment, and the guard.

The guard is an EXIT trap, because submitit would otherwise let the script end with whatever comes after srun, and the
dependencies of other jobs hang on the exit code. A second, waiting process notices the time limit: there SLURM may kill
the script before srun is back.

    lines = setup_lines(site, work, code=Path(...))
"""

import shlex
import sys
from pathlib import Path

from launch.cluster import ClusterConfig
from launch.job import Work

GUARD = r"""
launch_guard() { %(python)s -m launch.guard "$1" %(words)s "${@:2}"; }
launch_on_exit() {
    code=$?
    trap '' TERM USR1 USR2 CONT
    kill -ALRM "$launch_watcher" 2>/dev/null
    launch_guard ended --code "$code"
    exit $?
}
launch_watch() {
    # First the trap, then the nap: an ALRM between them must not leave a sleep behind that holds our output open. A HUP
    # would not do: where the shell was started with it ignored (nohup), no trap can be set on it.
    trap 'kill $(jobs -p) 2>/dev/null; exit' ALRM
    trap : TERM USR1 USR2 CONT
    sleep infinity >/dev/null 2>&1 & nap=$!
    wait "$nap"
    kill "$nap" 2>/dev/null
    # SIGTERM: the time limit, a cancellation, or the start of a grace time. Only the first needs more than the trap.
    # More of them follow, which must not end the guard.
    trap '' TERM USR1 USR2 CONT
    while true; do sleep 1; launch_guard timeout --code 143 && return; sleep 2; done
}
launch_guard started || exit 1
launch_watch & launch_watcher=$!
trap launch_on_exit EXIT
# With a trap, bash outlives these signals and waits for srun, whose ranks are saving.
trap : TERM USR1 USR2 CONT
"""


def setup_lines(site: ClusterConfig, work: Work, code: Path) -> list[str]:
    """All lines between the #SBATCH block and srun; `code` holds the packages that the job runs."""
    words = [str(work.run_folder), "--progress", work.progress, "--finished", *work.finished]
    # A merge that finds shards missing would find them missing again.
    words += [] if site.requeue and work.kind != "merge" else ["--no-requeue"]
    words += ["--timeout", f"{site.controller_timeout_s:g}"]
    words += [] if site.requeue_exit_code is None else ["--requeue-exit-code", str(site.requeue_exit_code)]
    guard = GUARD % {"python": shlex.quote(sys.executable), "words": shlex.join(words)}
    return [
        *site.setup,
        # The job runs this code, also when it starts days later or is requeued after the checkout has changed.
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        *(f"export {name}={shlex.quote(value)}" for name, value in site.job_env.items()),
        *guard.strip().splitlines(),
    ]
