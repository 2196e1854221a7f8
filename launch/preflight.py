"""Checks inside the job before it trains: the same versions everywhere, free disk, clocks, and no slow or sick node.

    report = check(place, store, config, run_folder, has_gpus=True)  # all ranks; raises when the run should not start

Every rank times one all-reduce and one matrix product. A node that fails, or whose product takes `slow_factor` times
the median, is named, and by choice ends the job or is left out after a requeue. `jobs/preflight/` keeps the timings.
"""

import json
import os
import platform
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from launch.rendezvous import Place, SickNodes
from launch.run_folder import write_json
from pipeline.config import Section
from pipeline.errors import InputError

Value = TypeVar("Value")

WARM_UP_S = 0.5
"""A GPU that was idle takes some time to reach its clock."""
PACKAGES = ("torch", "deepspeed", "open_clip_torch", "numpy", "pydantic")


class PreflightConfig(Section):
    """What is checked inside the job before it trains."""

    measure: bool = True
    """Time an all-reduce and a matrix product on every rank; false: only let the ranks meet."""
    meet_timeout_s: float = Field(default=600.0, gt=0)
    """How long to wait for all ranks."""
    slow_factor: float = Field(default=3.0, gt=1)
    """A node is slow when its matrix product takes this many times the median of all nodes."""
    slow_node: Literal["report", "stop", "exclude"] = "report"
    """What to do about a slow node: name it, stop the job, or requeue the job without it. With exclude, a node that
    fails is left out as well."""
    min_free_gb: float = Field(default=10.0, ge=0)
    """Free space that the run folder and the temporary folder of every node must have."""
    max_clock_skew_s: float = Field(default=5.0, gt=0)
    """A node whose clock is further off the first node's is named."""
    matrix_px: int = Field(default=0, ge=0)
    """Side of the matrices; 0: 8192 on a GPU, 512 on a CPU."""


@dataclass(frozen=True)
class RankFacts:
    """What one rank found."""

    rank: int
    node: str
    product_s: float
    all_reduce_s: float
    clock_s: float
    """Time of day at a moment that all ranks share, give or take one all-reduce."""
    free_gb: dict[str, float]
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """What all ranks found."""

    rows: list[RankFacts]
    slow_nodes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """Lines for the log: nothing that keeps the run from starting."""
    fatal: list[str] = field(default_factory=list)
    """Lines that do."""
    failed_nodes: list[str] = field(default_factory=list)
    """The nodes that they are about."""


def check(
    place: Place, store: Any, config: PreflightConfig, run_folder: Path, *, has_gpus: bool = False
) -> Report | None:
    """Measure, judge, report. All ranks; the verdict is the same on each, but for a device that fails."""
    if not config.measure:
        return None
    device = own_device(place, has_gpus=has_gpus)
    rows = gather_facts(place, store, config, run_folder, device)
    report = judge(rows, config)
    stem = run_folder / "jobs" / "preflight" / f"{place.job}.{place.restart}"
    if place.rank == 0:
        write_json(stem.with_name(stem.name + ".json"), asdict(report))
        for line in (summary(rows), *report.findings):
            print(f"[preflight] {line}", flush=True)
    # Exit code 2 is not requeued: different versions stay different. SickNodes is, and then without these nodes.
    if report.fatal:
        message = "preflight: " + "; ".join(report.fatal)
        raise SickNodes(message, report.failed_nodes) if config.slow_node == "exclude" else InputError(message)
    if report.slow_nodes and config.slow_node != "report":
        named = ",".join(report.slow_nodes)
        message = f"preflight: {named} is over {config.slow_factor:g} times slower than the median node"
        raise SickNodes(message, report.slow_nodes) if config.slow_node == "exclude" else InputError(message)
    return report


def judge(rows: Sequence[RankFacts], config: PreflightConfig) -> Report:
    """Compare the ranks with each other."""
    by_node: dict[str, list[RankFacts]] = defaultdict(list)
    for row in rows:
        by_node[row.node].append(row)
    worst = {node: max(row.product_s for row in group) for node, group in by_node.items()}
    # The lower of the two in the middle: of two nodes, one that is slower by far would else be half of its own measure.
    median = statistics.median_low(worst.values())
    report = Report(rows=list(rows))
    for node, seconds in worst.items():
        if seconds > config.slow_factor * median:
            report.slow_nodes.append(node)
            report.findings.append(
                f"{node} is slow: {seconds * 1e3:.1f} ms for a product that takes {median * 1e3:.1f} ms"
            )
    for node, group in by_node.items():
        skew = group[0].clock_s - rows[0].clock_s
        if abs(skew) > config.max_clock_skew_s:
            report.findings.append(f"the clock of {node} is {skew:+.1f} s off that of {rows[0].node}")
        for place, free in group[0].free_gb.items():
            if free < config.min_free_gb:
                report.fatal.append(f"{node} has {free:.1f} GB free in {place}, {config.min_free_gb:g} are wanted")
                report.failed_nodes.append(node)
    for name, wanted in rows[0].versions.items():
        other = {row.node: row.versions.get(name) for row in rows if row.versions.get(name) != wanted}
        if other:
            shown = ", ".join(f"{found} on {node}" for node, found in other.items())
            report.fatal.append(f"{name} is {wanted} on {rows[0].node}, but {shown}")
            report.failed_nodes.extend(other)
    return report


def summary(rows: Sequence[RankFacts]) -> str:
    """One line over all ranks."""
    products, reduces = [row.product_s for row in rows], [row.all_reduce_s for row in rows]
    return (
        f"{len(rows)} ranks on {len({row.node for row in rows})} nodes; matrix product median "
        f"{statistics.median(products) * 1e3:.1f} ms, worst {max(products) * 1e3:.1f} ms; all-reduce median "
        f"{statistics.median(reduces) * 1e3:.1f} ms, worst {max(reduces) * 1e3:.1f} ms"
    )


def own_device(place: Place, *, has_gpus: bool) -> Any:
    """This rank's GPU, tried out, or the CPU. A node without its GPUs shows here, before any rank waits for another."""
    import torch

    if not torch.cuda.is_available():
        if has_gpus:
            message = (
                f"preflight: {place.node} has no GPU that works, though the job asked for GPUs; look at its driver"
            )
            raise SickNodes(message, [place.node])
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))

    def touch() -> None:
        torch.cuda.set_device(device)
        torch.ones(1, device=device).item()

    on_sick_node(place, "the first use of a GPU", touch)
    return device


def on_sick_node(place: Place, what: str, action: Callable[[], Value]) -> Value:
    """What `action` gives on this rank's device; its failure is the node's."""
    try:
        return action()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SickNodes(f"preflight: {place.node} failed at {what}: {reason}", [place.node]) from None


def gather_facts(place: Place, store: Any, config: PreflightConfig, run_folder: Path, device: Any) -> list[RankFacts]:
    """Time this rank and exchange the facts of all, in a process group that is gone afterwards."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("launch/preflight", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=config.meet_timeout_s),
    )
    try:
        side = config.matrix_px or (8192 if device.type == "cuda" else 512)
        matrix = torch.ones(side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else None)
        block = torch.ones(2**18 if device.type == "cpu" else 2**26, device=device)
        warm_up_s = WARM_UP_S if device.type == "cuda" else 0.0
        product_s = on_sick_node(
            place, "a matrix product", lambda: best_time(lambda: torch.mm(matrix, matrix), device, warm_up_s=warm_up_s)
        )
        all_reduce_s = best_time(lambda: dist.all_reduce(block), device)
        mine = RankFacts(
            place.rank, place.node, product_s, all_reduce_s, time.time(), free_space(run_folder), own_versions()
        )
        texts: list[Any] = [None] * place.world_size
        dist.all_gather_object(texts, json.dumps(asdict(mine)))
    finally:
        dist.destroy_process_group()
    return [RankFacts(**json.loads(text)) for text in texts]


def best_time(action: Callable[[], Any], device: Any, *, warm_up_s: float = 0.0, repeats: int = 5) -> float:
    """Seconds of the fastest of several runs, after one run or more to warm up.

    A collective must be run equally often on every rank: without `warm_up_s`, which counts time.
    """
    import torch

    times: list[float] = []
    began = time.perf_counter()
    is_warm = False
    while len(times) < repeats:
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if is_warm:
            times.append(time.perf_counter() - started)
        is_warm = time.perf_counter() - began >= warm_up_s
    return min(times)


def free_space(run_folder: Path) -> dict[str, float]:
    """Free GB where the run writes and where temporary files go."""
    temporary = os.environ.get("TMPDIR", "/tmp")
    return {str(place): shutil.disk_usage(place).free / 1e9 for place in (run_folder, temporary)}


def own_versions() -> dict[str, str]:
    """Versions that must be equal on all ranks."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
