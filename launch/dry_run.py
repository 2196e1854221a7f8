"""`--dry-run`: the verdict first, then what is there and what is missing, and the script last.

code = show_reports([report], allow_missing=False)        # 0: ready; 1: something is missing
"""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.cluster import ClusterConfig
from launch.job import Kind
from launch.options import Options


@dataclass(frozen=True)
class Report:
    """What is known of one launch before it is queued."""

    kind: Kind
    config_text: str
    facts: tuple[str, ...]
    """What was checked and is right."""
    missing: tuple[str, ...]
    """All that is missing, each with where and what to do."""
    guards: tuple[str, ...]
    """What happens at the time limit, after a fault, on a faulty node; a line each."""
    scripts: tuple[str, ...] = ()
    """The sbatch scripts; none where it would run on this machine."""
    outlook: str = ""
    """Memory, hours, storage."""


def show_reports(
    reports: Sequence[Report], *, allow_missing: bool, are_links: bool = False, finished: Sequence[str] = ()
) -> int:
    """Print the reports, those of a chain by the name of each link, with a line for what is `finished`.

    Returns the exit code: 1 where something is missing, unless that is allowed.
    """
    missing = [(report, line) for report in reports for line in report.missing]
    things = f"{len(missing)} thing{'s' * (len(missing) > 1)}"
    print(f"# verdict: {f'not ready, {things} missing' if missing else 'ready'}; nothing was submitted (--dry-run)")
    for report, line in missing:
        print(f"missing  {f'{report.kind}: ' * are_links}{line}")
    for line in finished:
        print(f"ok       {line}")
    for report in reports:
        for fact in report.facts:
            print(f"ok       {f'{report.kind}: ' * are_links}{fact}")
    for report in reports:
        if are_links:
            print(f"##### {report.kind}")
        print("# guards\n" + "\n".join(report.guards))
        if report.outlook:
            print("# plan\n" + report.outlook)
        print("# resolved config\n" + report.config_text)
    for report in reports:
        for script in report.scripts:
            print(f"# sbatch script{f' of {report.kind}' * are_links}\n{script}")
    return 1 if missing and not allow_missing else 0


def guards(options: Options, kind: Kind, num_tasks: int) -> tuple[str, ...]:
    """What looks after a job, a line each: its time limit, its requeues, its nodes, its start."""
    site = options.site
    if options.cluster != "slurm":
        return (
            f"time limit  --time {site.time}: the job is told to save {site.signal_lead_s} s before it, then ended",
            "signals     SIGTERM and Ctrl-C reach every task; a second Ctrl-C ends them",
            "requeue     none on this machine: the same command goes on",
        )
    lines = [
        f"time limit  {site.time}; SIGUSR2 {site.signal_lead_s} s before it, or up to 60 s earlier: the job saves",
        f"requeue     {_requeues(site, kind)}",
        f"slurmctld   is asked again for {site.controller_timeout_s:g} s where it is away"
        + ("" if site.requeue_exit_code is None else f", then exit code {site.requeue_exit_code} asks for a requeue"),
        f"exclusion   {_exclusions(site, kind)}",
    ]
    if kind in ("pretrain", "finetune"):
        checked = "all ranks meet, versions, clocks, free disk"
        timed = ", an all-reduce and a matrix product are timed" if site.preflight.measure else ""
        lines.append(f"preflight   {checked + timed if num_tasks > 1 else 'none: there is one rank'}")
    elif kind == "shards":
        lines.append("preflight   each task looks for its videos and tries its ffmpeg before the first clip")
    else:
        lines.append(f"preflight   all ranks meet within {site.preflight.meet_timeout_s:g} s")
    return tuple(lines)


def _requeues(site: ClusterConfig, kind: Kind) -> str:
    if not site.requeue:
        return "none (requeue: false); the same command goes on"
    what = "shards" if kind == "shards" else "reports" if kind == "evaluate" else "checkpoints"
    return f"after a signal, the time limit, a crash or a lost node, as long as there are new {what}"


def _exclusions(site: ClusterConfig, kind: Kind) -> str:
    if kind == "shards":
        if site.faulty_node == "report":
            return "none (faulty_node: report): a task that meets a fault of its machine fails"
        return "a node without its videos, or on which ffmpeg is killed, is left out, and its task requeued"
    way = {
        "report": "is only named",
        "stop": "is named, and the job stops",
        "exclude": "is left out, and the job requeued",
    }[site.preflight.slow_node]
    return f"a slow or sick node {way} (preflight.slow_node: {site.preflight.slow_node})"
