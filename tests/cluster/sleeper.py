"""An entry that only counts, saves and sleeps: for what is about SLURM and the guard, not about training.

main([RUN_FOLDER])            main([RUN_FOLDER, "--deaf"])     # ignores all signals the first time
main([RUN_FOLDER, "--faulty=n1,n2", "--mark=3"])     # fails on n1 and n2, else is done after a moment
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from launch.rendezvous import SickNodes
from pipeline.errors import MachineFault

NUM_STEPS = 6000
SAVE_EVERY = 10


def main(argv: list[str]) -> int:
    """Count to NUM_STEPS: five minutes, so that every fault lands; after a requeue it is quick."""
    run, rank = Path(argv[0]), int(os.environ["RANK"])
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if "--sick-node" in argv and restart == 0:
        raise SickNodes("n1 is ill", ["n1"])
    for word in argv:
        if word.startswith("--faulty="):
            return _short_task(word.removeprefix("--faulty=").split(","))
    stop: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if "--deaf" not in argv or restart:
            stop.append(number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, note)
    step = _last_step(run)
    while step < NUM_STEPS and not stop:
        time.sleep(0.05)
        step += 1 if restart == 0 else 2000
        if rank == 0:
            (run / "step").write_text(str(step))
            if step % SAVE_EVERY == 0 or stop:
                _save(run, step)
    if rank == 0 and step >= NUM_STEPS:
        (run / "COMPLETE").write_text("")
    return 0


def _short_task(faulty: list[str]) -> int:
    node = os.environ["SLURMD_NODENAME"]
    if node in faulty:
        raise MachineFault(f"{node} has no videos")
    time.sleep(1.0)
    return 0


def _last_step(run: Path) -> int:
    return max((int(path.parent.name.split("_")[1]) for path in run.glob("checkpoints/*/COMPLETE.json")), default=0)


def _save(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "COMPLETE.json").write_text("{}")
