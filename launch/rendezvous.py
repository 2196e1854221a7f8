"""How the ranks of a job find each other: rank 0 opens a store on a port that the system picks, and says where.

The address goes through a file in the run folder, which all nodes share. The port is held from the moment it is
chosen, so two jobs on one node cannot meet on it. The same store then serves torch.distributed (`env://`).

    store = meet(place, folder=run_folder / "jobs" / "rendezvous", timeout_s=600, interface="ib0")
"""

import os
import socket
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.run_folder import read_json, write_json
from pipeline.errors import RunError

LOCAL_JOB = "LAUNCH_LOCAL_JOB"
"""Environment: the name of a start with --cluster local."""


class SickNodes(RunError):
    """The run cannot start because of some of its nodes; the job may come back without them."""

    def __init__(self, message: str, nodes: Sequence[str]) -> None:
        super().__init__(message)
        self.nodes = list(nodes)


@dataclass(frozen=True)
class Place:
    """Where a task stands among the tasks of its job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: str
    nodes: tuple[str, ...]
    job: str
    restart: int

    def node_of(self, rank: int) -> str:
        """The node of any rank: tasks fill the nodes one after the other."""
        return self.nodes[rank // self.local_world_size]


def read_place() -> Place:
    """This task's place, from SLURM's environment, or from that of submitit's local and debug executors."""
    env = os.environ
    if env.get("SUBMITIT_EXECUTOR") == "slurm":
        nodes = tuple(expand_nodes(env["SLURM_JOB_NODELIST"]))
        world_size = int(env["SLURM_NTASKS"])
        array = env.get("SLURM_ARRAY_JOB_ID")
        return Place(
            rank=int(env["SLURM_PROCID"]),
            world_size=world_size,
            local_rank=int(env["SLURM_LOCALID"]),
            local_world_size=world_size // len(nodes),
            node=env["SLURMD_NODENAME"],
            nodes=nodes,
            job=f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"],
            restart=int(env.get("SLURM_RESTART_COUNT", "0")),
        )
    rank, world_size = int(env.get("SUBMITIT_LOCAL_GLOBALID", "0")), int(env.get("SUBMITIT_LOCAL_NTASKS", "1"))
    # A process id comes again, in a fresh container at once: files of another start must not be taken for ours.
    job = env[LOCAL_JOB] if "SUBMITIT_LOCAL_NTASKS" in env else f"debug-{uuid.uuid4().hex[:8]}"
    host = socket.gethostname()
    return Place(rank, world_size, rank, world_size, host, (host,), job, 0)


def expand_nodes(text: str) -> Iterator[str]:
    """The names in SLURM's compact node list.

    >>> list(expand_nodes("gpu[01-03,7],login,a[1-2]b"))
    ['gpu01', 'gpu02', 'gpu03', 'gpu7', 'login', 'a1b', 'a2b']
    """
    depth, start = 0, 0
    for at, letter in enumerate(text + ","):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield from _expand_group(text[start:at])
            start = at + 1


def _expand_group(group: str) -> Iterator[str]:
    if "[" not in group:
        yield group
        return
    head, _, rest = group.partition("[")
    inside, _, tail = rest.partition("]")
    for part in inside.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield from _expand_group(f"{head}{number:0{len(first)}d}{tail}")


def meet(place: Place, *, folder: Path, timeout_s: float, interface: str | None) -> Any:
    """Wait until all ranks are here; returns the store (keep it). Sets MASTER_ADDR and MASTER_PORT.

    Raises `RunError` that names the ranks and nodes that did not come.
    """
    from torch._C._distributed_c10d import TCPStore  # where mypy finds torch.distributed.TCPStore

    file = folder / f"{place.job}.{place.restart}.json"
    timeout = timedelta(seconds=timeout_s)
    if place.rank == 0:
        address = own_address(interface)
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        write_json(file, {"address": address, "port": store.port})
    else:
        found = _await_file(file, timeout_s, place)
        address = found["address"]
        try:
            store = TCPStore(address, found["port"], is_master=False, wait_for_workers=False, timeout=timeout)
        except Exception as error:
            raise RunError(
                f"rank {place.rank} on {place.node} cannot reach rank 0 at {address}:{found['port']} ({error}); check "
                "`interface` in the cluster config"
            ) from None
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(store.port),
        # The store above is the one that env:// connects to; torch must not open a second one on its port.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    _roll_call(store, place, timeout_s)
    return store


def _await_file(file: Path, timeout_s: float, place: Place) -> Any:
    deadline = time.monotonic() + timeout_s
    while (found := read_json(file)) is None:
        if time.monotonic() > deadline:
            raise RunError(
                f"rank {place.rank} on {place.node} found no {file} within {timeout_s:g} s: rank 0 on "
                f"{place.nodes[0]} did not start, or the run folder is not shared by all nodes"
            )
        time.sleep(0.2)
    return found


def _roll_call(store: Any, place: Place, timeout_s: float) -> None:
    """Everyone reports; rank 0 checks who is missing and gives the word to go on."""
    store.set(f"launch/here/{place.rank}", place.node)
    by_node: list[str] = []
    if place.rank != 0:
        try:
            store.wait(["launch/verdict"], timedelta(seconds=timeout_s + 60))
            verdict = store.get("launch/verdict").decode()
        except Exception:
            raise RunError(f"rank {place.rank} on {place.node} lost rank 0 on {place.nodes[0]} while meeting") from None
    else:
        missing = _missing_ranks(store, place, timeout_s)
        by_node = sorted({place.node_of(rank) for rank in missing})
        verdict = f"{len(missing)} ranks did not come within {timeout_s:g} s: {missing[:8]}, on {by_node}" * bool(
            missing
        )
        store.set("launch/verdict", verdict)
    if verdict:
        raise SickNodes(f"{verdict}; look at these nodes, or raise preflight.meet_timeout_s", by_node)


def _missing_ranks(store: Any, place: Place, timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    missing = list(range(place.world_size))
    while missing:
        missing = [rank for rank in missing if not store.check([f"launch/here/{rank}"])]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return missing


def own_address(interface: str | None) -> str:
    """The address that other nodes reach this one at: of `interface`, else of the host's name, else loopback."""
    if interface is not None:
        return interface_address(interface)
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return "127.0.0.1"
    return name


def interface_address(interface: str) -> str:
    """IPv4 address of a network interface."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise RunError(f"no address on interface {interface!r} ({error.strerror}); this node has {known}") from None
    return socket.inet_ntoa(answer[20:24])
