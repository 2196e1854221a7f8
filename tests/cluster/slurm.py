"""A real SLURM on this machine: munged, slurmctld and one slurmd per node, all below one folder.

    with Cluster(folder) as cluster:
        cluster.env           # SLURM_CONF and friends, for the commands under test
        cluster.squeue()      # {job id: state}

Its waits are short, so that a lost node or a preemption takes seconds. There is no accounting. Everything listens on
free ports and a private munge socket, and job ids begin elsewhere in every cluster, so it meets neither a system SLURM
nor a second test cluster.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")

CONFIG = """\
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
FirstJobId={controller_port}000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=15,socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdParameters=config_overrides
SlurmctldParameters={controller_parameters}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,sched_min_interval=200000,bf_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
InactiveLimit=0
KillWait=10
MinJobAge=300
OverTimeLimit=0
MaxArraySize={max_array_size}
NodeName=n[1-{num_nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs=2 RealMemory=8000
PartitionName=batch Nodes=n[1-{num_nodes}] Default=YES MaxTime=60 PriorityTier=1 GraceTime=30 State=UP OverSubscribe=NO
PartitionName=frail Nodes=n[1-{num_nodes}] MaxTime=60 PriorityTier=1 PreemptMode=CANCEL State=UP OverSubscribe=NO
PartitionName=urgent Nodes=n[1-{num_nodes}] MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


class Cluster:
    """Starts on entering and ends on leaving; `env` holds what a SLURM command needs to find it."""

    def __init__(
        self, folder: Path, *, num_nodes: int = 8, signal_before_preemption: bool = True, max_array_size: int = 6
    ) -> None:
        """`max_array_size` is small, so that arrays have to be split."""
        self.folder = folder
        self.num_nodes = num_nodes
        parameters = ["preempt_send_user_signal"] if signal_before_preemption else []
        self._controller_parameters = ",".join(["enable_configless", *parameters])
        self._max_array_size = max_array_size
        self._keeper: subprocess.Popen[str] | None = None
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))
        } | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> "Cluster":
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        assert not missing, f"{missing} not found: run `bash tests/cluster/install.sh`, as `make test-cluster` does"
        assert os.geteuid() == 0, "the cluster tests start SLURM's daemons and need root"
        self._write_config()
        self._keeper = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("keeper.py")), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env, start_new_session=True,
        )  # fmt: skip
        try:
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            self._keeper.wait(timeout=60)
            assert self._keeper.stdout is not None
            self._keeper.stdout.close()

    def _write_config(self) -> None:
        for name in ("state", *(f"spool.n{n + 1}" for n in range(self.num_nodes))):
            (self.folder / name).mkdir(parents=True)
        first_port = free_port_range(self.num_nodes + 1)
        text = CONFIG.format(
            host=socket.gethostname().split(".")[0],
            folder=self.folder,
            num_nodes=self.num_nodes,
            controller_port=first_port,
            first_port=first_port + 1,
            last_port=first_port + self.num_nodes,
            controller_parameters=self._controller_parameters,
            max_array_size=self._max_array_size,
        )
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def _start_daemons(self) -> None:
        socket_file = self.folder / "munge.socket"
        self._tell(
            "start", "munged", "munged", "--foreground", "--force", f"--socket={socket_file}",
            f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munged.pid",
            f"--seed-file={self.folder}/munged.seed", f"--log-file={self.folder}/munged.messages",
        )  # fmt: skip
        wait_until(socket_file.exists, 20, "munged opens its socket", self.log("munged"))
        self._tell("start", "slurmctld", "slurmctld", "-D", "-c", "-f", self.env["SLURM_CONF"])
        wait_until(self.is_up, 30, "slurmctld answers", self.log("slurmctld"))
        for n in range(self.num_nodes):
            self.start_node(f"n{n + 1}")
        wait_until(lambda: self.nodes("idle") == self.num_nodes, 60, "all nodes are idle", self.log("slurmctld"))

    def _tell(self, *words: str) -> None:
        assert self._keeper is not None and self._keeper.stdin is not None and self._keeper.stdout is not None
        print("\t".join(words), file=self._keeper.stdin, flush=True)
        assert self._keeper.stdout.readline() == "done\n", f"the keeper could not do {words}"

    def start_node(self, name: str) -> None:
        """Start the slurmd of node `name`; its jobs see no GPU and a loopback network."""
        self._tell("start", f"slurmd.{name}", "slurmd", "-D", "-N", name, "-f", self.env["SLURM_CONF"])

    def kill_node(self, name: str) -> None:
        """SIGKILL the slurmd of node `name`: SLURM takes the node for dead after SlurmdTimeout."""
        self._tell("kill", f"slurmd.{name}")

    def stop_controller(self) -> None:
        """Shut slurmctld down, its state saved: nobody answers until it is started again."""
        self.run("scontrol", "shutdown", "slurmctld")
        wait_until(lambda: not self.is_up(), 60, "slurmctld is down", self.log("slurmctld"))
        self._tell("kill", "slurmctld")  # it has ended: the keeper lets go of it

    def start_controller(self) -> None:
        """Start slurmctld again, with the jobs that it knew."""
        self._tell("start", "slurmctld", "slurmctld", "-D", "-f", self.env["SLURM_CONF"])
        wait_until(self.is_up, 60, "slurmctld answers again", self.log("slurmctld"))

    def log(self, daemon: str) -> Path:
        """The log file of one daemon."""
        return self.folder / f"{daemon}.log"

    def run(self, *argv: str, check: bool = True) -> str:
        """Run one SLURM command and return its output."""
        done = subprocess.run(argv, env=self.env, text=True, capture_output=True, timeout=60)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def is_up(self) -> bool:
        """Whether slurmctld answers."""
        return "UP" in self.run("scontrol", "ping", check=False)

    def nodes(self, state: str) -> int:
        """Number of nodes in `state`."""
        return len(self.run("sinfo", "-h", "-N", "-p", "batch", "-t", state, "-o", "%N", check=False).split())

    def squeue(self) -> dict[str, str]:
        """{job id: state} of all jobs that SLURM still shows, finished ones included."""
        rows = self.run("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(row.split() for row in rows)  # type: ignore[misc]

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self.run("scontrol", "-o", "show", "job", job_id)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, job_id: str) -> str:
        """One job's state, such as RUNNING."""
        return self.job(job_id)["JobState"]

    def cancel_all(self) -> None:
        """Cancel what is left of a test, and wait until no node works on it any more."""
        ids = [job_id for job_id, state in self.squeue().items() if state not in FINISHED]
        if ids:
            self.run("scancel", *ids, check=False)
            self.run("scancel", "--signal=KILL", "--full", *ids, check=False)
        wait_until(lambda: self.nodes("idle") == self.num_nodes, 90, "all nodes are idle again", self.log("slurmctld"))

    def rank_pid(self, job_id: str, rank: int = 0) -> int | None:
        """Pid of the task with number `rank` of a running job; of an array task by `<array id>_<index>`."""
        array, _, index = job_id.partition("_")
        wanted = {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": index} if index else {"SLURM_JOB_ID": job_id}
        wanted |= {"SLURM_PROCID": str(rank), "SUBMITIT_EXECUTOR": "slurm"}
        marks = {f"{name}={value}".encode() for name, value in wanted.items()}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                argv = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marks <= set(words) and b"submitit.core._submit" in argv and b"srun" not in argv.split(b"\0")[0]:
                return int(entry.name)
        return None

    def find_rank(self, job_id: str, rank: int = 0) -> int:
        """Pid of a rank that must be there."""
        pid = self.rank_pid(job_id, rank)
        assert pid is not None, f"job {job_id} has no rank {rank} now: the fault would not land"
        return pid

    def kill_rank(self, job_id: str, rank: int = 0) -> None:
        """SIGKILL one rank, as the kernel does when memory runs out."""
        os.kill(self.find_rank(job_id, rank), signal.SIGKILL)

    def hold_ranks(self, job_id: str, num_ranks: int) -> list[int]:
        """Stop the ranks where they are, so that a slow fault meets a run in its middle; returns their pids."""
        pids = [self.find_rank(job_id, rank) for rank in range(num_ranks)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(is_held(pid) for pid in pids), 10, f"the ranks {pids} stand still", interval_s=0.01)
        return pids


def release(pids: list[int]) -> None:
    """Let held ranks go on."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def process_facts(pid: int) -> dict[str, str]:
    """What the kernel says about a process; empty for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def is_held(pid: int) -> bool:
    """Whether a process was stopped by SIGSTOP and has not gone on."""
    return process_facts(pid).get("State", "").startswith("T")


def was_told(pid: int) -> bool:
    """Whether SIGTERM, SIGUSR1 or SIGUSR2 waits for a held process, or SLURM has let it go on: it sends SIGCONT too."""
    facts = process_facts(pid)
    if not facts.get("State", "").startswith("T"):
        return True
    pending = int(facts["ShdPnd"], 16) | int(facts["SigPnd"], 16)
    return any(pending >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))


FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


def free_port_range(count: int) -> int:
    """First of `count` consecutive free ports below the range that the kernel hands out."""
    # In steps: two workers that look at the same time must not see the same ports free.
    step = 20
    assert count <= step
    for first in range(20_000 + os.getpid() % 500 * step, 32_000 - count, step):
        sockets: list[socket.socket] = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("", port))
            return first
        except OSError:
            continue
        finally:
            for opened in sockets:
                opened.close()
    raise AssertionError(f"no {count} free ports in a row")


def wait_until(
    condition: Callable[[], object], timeout_s: float, what: str, log: Path | None = None, interval_s: float = 0.3
) -> None:
    """Poll `condition` until it is true; fail with the end of `log` when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            tail = "" if log is None or not log.exists() else "\n" + "\n".join(log.read_text().splitlines()[-30:])
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s{tail}")
        time.sleep(interval_s)
