"""The end of every launcher: show the plan, or check that nothing is missing and start it.

return start(plan, options)
"""

from collections.abc import Sequence

from launch.checks import active_jobs
from launch.dry_run import Report, guards, show_reports
from launch.job import Work
from launch.local import run_local
from launch.options import Options
from launch.run_folder import JobFolder
from launch.submit import batch_script, run_debug, submit
from launch.training import Plan
from launch.wait import wait_for
from pipeline.errors import InputError


def start(plan: Plan, options: Options) -> int:
    """Dry run, or submit (and wait), or run here."""
    if options.dry_run:
        return show_reports([report(plan, options)], allow_missing=options.allow_missing)
    require(plan, options)
    write_config(plan)
    for fact in plan.facts:
        print(fact)
    if options.cluster == "debug":
        return run_debug(plan.job, options.site)
    if options.cluster == "local":
        run_local(plan.job, options.site)
        return 0
    job = submit(plan.job, options.site, options.after)
    announce(job, plan.job.work)
    return wait_for(job, JobFolder(plan.job.work.run_folder)) if options.wait else 0


def require(plan: Plan, options: Options) -> None:
    """Refuse a job that lacks something, unless the job that it waits for may still make it."""
    if plan.missing and not options.after:
        raise InputError("; ".join(plan.missing))
    for line in plan.missing:
        print(f"expected from job {' or '.join(options.after)}: {line}")


def hold_folder(folder: JobFolder) -> None:
    """Refuse a folder for which a job is queued or running."""
    busy = active_jobs(folder)
    if busy:
        raise InputError(f"{folder.run_folder} is the folder of {busy}; wait for it, cancel it, or give another --name")


def write_config(plan: Plan) -> None:
    """Put the resolved config where the job reads it."""
    plan.config_file.parent.mkdir(parents=True, exist_ok=True)
    plan.config_file.write_text(plan.config_text)


def announce(job: str, work: Work) -> None:
    """Say what was queued, and how to follow it."""
    print(f"queued job {job}: {work.kind} in {work.run_folder}")
    print(f"follow it with: python launch/status.py {work.run_folder}", flush=True)


def report(plan: Plan, options: Options, after: Sequence[str] = ()) -> Report:
    """Everything about a job that can be known before it is queued."""
    job = plan.job
    return Report(
        kind=job.work.kind,
        config_text=plan.config_text,
        facts=plan.facts,
        missing=(*plan.missing, *plan.doubts),
        guards=guards(options, job.work.kind, job.resources.num_tasks),
        scripts=(batch_script(job, options.site, after or options.after),) if options.cluster == "slurm" else (),
        outlook=plan.outlook,
    )
