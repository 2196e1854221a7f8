"""Who may write into a run folder: a fencing token that every publication checks.

    ownership = Ownership.claim(run_folder)      # rank 0; InputError when another run is at work there
    ownership.check()                            # before every publication: RunError when someone took over
    ownership.release()

`owner.json` names the job, its restart count, its process, and a random token: another one for every start. A later
restart of the same SLURM job takes over at once: SLURM may have requeued a job while ranks of the old one are still
alive on a node that it lost sight of; they find another token at their next publication and leave without writing. Any
other start is refused while the owner shows signs of life. Its process is looked at where that proves something (see
`liveness`); else its heartbeat is watched for a lease: what changes is alive, whatever numbers and clocks say.
"""

import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from pipeline.checkpoint.folder import write_atomically
from pipeline.errors import InputError, RunError
from pipeline.liveness import SYSTEM_CLOCK, Clock, Heartbeat, seen_here, this_process
from pipeline.retry import FAULTS, NO_ROOM

OWNER = "owner.json"
HEARTBEAT_S = 10.0
LEASE_S = 90.0
"""An owner that cannot be seen from here and whose heartbeat stands still for so long is dead."""
READ_ATTEMPTS, RETRY_AFTER_S = 12, 5.0


@dataclass
class Ownership:
    """This process's claim on a run folder."""

    run_folder: Path
    token: str
    _stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def claim(cls, run_folder: Path, clock: Clock = SYSTEM_CLOCK) -> Self:
        """Take the folder, or raise InputError when another run holds it. May wait for LEASE_S, and says so."""
        mine = _identity()
        try:
            with open(run_folder / ".owner.lock", "w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                _refuse_if_held(run_folder, mine, clock)
                write_atomically(run_folder / OWNER, json.dumps(mine, indent=1))
        except OSError as error:
            kind = RunError if error.errno in FAULTS | NO_ROOM else InputError
            raise kind(
                f"cannot take {run_folder}: {error.strerror}; it needs room, the right to write, and a file system "
                "with locks (Lustre: mounted with -o flock)"
            ) from None
        ownership = cls(run_folder, mine["token"])
        threading.Thread(target=ownership._beat, daemon=True, name="ownership heartbeat").start()
        return ownership

    def check(self) -> None:
        """Raise RunError when the folder belongs to someone else by now, or when that cannot be found out."""
        try:
            owner = _read(self.run_folder)
        except OSError as error:
            raise RunError(
                f"cannot read {self.run_folder / OWNER} ({error.strerror}), so that this run may not be the owner any "
                "more; it stops without writing, the same command goes on"
            ) from None
        if owner is None or owner["token"] != self.token:
            taker = _described(owner) if owner else "nobody (owner.json is gone)"
            raise RunError(f"{self.run_folder} belongs to {taker} now; this run stops without writing")

    def release(self) -> None:
        """Give the folder back, if it is still ours."""
        self._stop.set()
        with suppress(OSError):
            owner = _read(self.run_folder)
            if owner is not None and owner["token"] == self.token:
                (self.run_folder / OWNER).unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError):  # the next beat may find the file system again
                owner = _read(self.run_folder)
                if owner is None or owner["token"] != self.token:
                    return
                os.utime(self.run_folder / OWNER)


def _identity() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    counts = [int(os.environ.get(name, "0")) for name in ("SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
    return {
        "token": secrets.token_hex(8),
        "job": job,
        "incarnation": counts if job else [],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),  # read by older code alone: it rests on the wall clock
    } | this_process()


def _refuse_if_held(run_folder: Path, mine: dict[str, Any], clock: Clock) -> None:
    """Raise InputError while another start is at work here."""
    owner = _read(run_folder)
    while owner is not None and not _may_take(owner, mine, run_folder, clock):
        # It may have given the folder back while its heartbeat was watched, or have lost it to a third.
        watched, owner = owner, _read(run_folder)
        if owner is not None and owner["token"] == watched["token"]:
            raise InputError(
                f"{run_folder} is in use by {_described(owner)}; wait for it, stop it, or choose another name"
            )


def _may_take(owner: dict[str, Any], mine: dict[str, Any], run_folder: Path, clock: Clock) -> bool:
    if mine["job"] is not None and owner["job"] == mine["job"] and owner["incarnation"][:1] < mine["incarnation"][:1]:
        return True
    is_alive = seen_here(owner, owner["pid"])
    if is_alive is None:
        logging.getLogger("clip_vip").warning(
            f"{run_folder} belongs to {_described(owner)}, which cannot be seen from here; watching its heartbeat for "
            f"up to {LEASE_S:.0f} s"
        )
        is_alive = Heartbeat(run_folder / OWNER, clock).changes_within(LEASE_S)
    return not is_alive


def _read(run_folder: Path) -> dict[str, Any] | None:
    """owner.json, or None where there is none or it says nothing. OSError when the file system does not answer.

    A far file system fails to read now and then, so it is asked several times.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            owner = json.loads((run_folder / OWNER).read_text(encoding="utf-8"))
            break
        except (FileNotFoundError, ValueError):
            return None
        except OSError:
            if attempt == READ_ATTEMPTS:
                raise
            time.sleep(RETRY_AFTER_S)
    return owner if isinstance(owner, dict) and "token" in owner else None


def _described(owner: dict[str, Any]) -> str:
    job = f"job {owner['job']}" if owner["job"] else "another run"
    return f"{job} (process {owner['pid']} on {owner['host']})"
