"""Parent of the test cluster's daemons: starts them, and ends everything when its standard input closes.

    python keeper.py FOLDER < pipe

The test process holds the other end of the pipe, so the cluster goes away even when the tests are killed with SIGKILL.
Commands arrive as lines: `start NAME ARGV...`, `kill NAME` (SIGKILL, as a crash would). Everything that was started
under this cluster, jobs included, is known by SLURM_CONF in its environment.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Obey the lines on standard input; at its end kill every process of this cluster."""
    folder = Path(sys.argv[1])
    daemons: dict[str, subprocess.Popen[bytes]] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin:
        word, name, *argv = line.rstrip("\n").split("\t")
        if word == "start":
            log = open(folder / f"{name}.log", "ab")  # noqa: SIM115 - the daemon keeps it
            daemons[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=folder,
                preexec_fn=_default_signals,
            )
            log.close()
        elif word == "kill":
            daemons[name].kill()
            daemons.pop(name).wait()
        print("done", flush=True)
    end_all(folder, [daemon.pid for daemon in daemons.values()])


def _default_signals() -> None:
    # Ignored signals are inherited through exec; jobs of this cluster must see the normal ones.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def end_all(folder: Path, pids: list[int]) -> None:
    """SIGKILL the daemons and all processes whose environment names this cluster, until none is left."""
    for pid in pids:
        _kill(pid)
    for _ in range(50):
        left = processes_of(folder)
        if not left:
            return
        for pid in left:
            _kill(pid)
        time.sleep(0.1)


def processes_of(folder: Path) -> list[int]:
    """Pids of this cluster: daemons name its folder or stand in it, as slurmstepd does; jobs carry SLURM_CONF."""
    marks = (f"SLURM_CONF={folder}/slurm.conf".encode(), f"{folder}/".encode())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            is_job = marks[0] in (entry / "environ").read_bytes().split(b"\0") and _is_in_job(entry)
            is_here = marks[1] in (entry / "cmdline").read_bytes() or (entry / "cwd").readlink() == folder
            is_daemon = is_here and b"slurm" in (entry / "comm").read_bytes()
        except OSError:
            continue
        if is_job or is_daemon:
            found.append(int(entry.name))
    return found


def _is_in_job(entry: Path) -> bool:
    # The test process itself and its launchers carry SLURM_CONF too; only what slurmd started has a job id.
    return b"\0SLURM_JOB_ID=" in b"\0" + (entry / "environ").read_bytes()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
