"""A chain on this machine: link after link, and what is left of it when it is run again.

    run_links(links)                       # RunError for the link that fails; those after it are not started

Written shards and finished trainings stay as they are, a training that was begun goes on from its newest checkpoint,
and an evaluation is done again only where its config, its model, its data or its report have changed.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.local import run_local
from launch.options import Options
from launch.run_folder import JobFolder, progress_mark, read_json, write_json
from launch.start import write_config
from launch.training import Plan
from pipeline.config import read_yaml
from pipeline.errors import PipelineError, RunError

if TYPE_CHECKING:
    from launch.chain import Link

GO_ON = "run the same command again to go on"


def run_links(links: Sequence["Link"]) -> None:
    """Run the links of a chain in turn."""
    for number, link in enumerate(links):
        print(f"##### {link.kind} in {link.folder.run_folder}", flush=True)
        try:
            link.run()
        except PipelineError as error:
            rest = ", ".join(later.kind for later in links[number + 1 :])
            after = f"; not started: {rest}" if rest else ""
            raise RunError(f"{link.kind} failed: {error}{after}; {GO_ON}") from None


def train_here(plan: Plan, options: Options) -> None:
    """Train to the end: a job that the site's time limit made save and leave is started again if it got further."""
    work = plan.job.work
    write_config(plan)
    while not _is_finished(plan):
        before = progress_mark(work.progress)
        if run_local(plan.job, options.site, go_on=""):
            raise RunError("stopped, its state is saved")
        if not _is_finished(plan) and progress_mark(work.progress) == before:
            raise RunError(f"it ended before the last step, and without a new checkpoint; see {work.run_folder}/jobs")


def _is_finished(plan: Plan) -> bool:
    return any(Path(file).exists() for file in plan.job.work.finished)


def evaluate_here(plan: Plan, model: Path, options: Options) -> None:
    """Evaluate, unless the same was done before."""
    done = JobFolder(plan.job.work.run_folder).path / f"done-{plan.config_file.stem}.json"
    write_config(plan)
    before = read_json(done)
    if before is not None and before == what_it_rests_on(plan, model):
        print("nothing is left to do for evaluate")
        return
    done.unlink(missing_ok=True)
    if run_local(plan.job, options.site, go_on=""):
        raise RunError("stopped")
    write_json(done, what_it_rests_on(plan, model))


def what_it_rests_on(plan: Plan, model: Path) -> dict[str, str]:
    """Hashes of what an evaluation reads (the model by its newest checkpoint's seal) and of the reports it wrote."""
    config = read_yaml(plan.config_file)
    output = Path(config["output"])
    files = [*sorted(model.glob("checkpoints/step_*/COMPLETE.json")), model / "COMPLETE"]
    for name, chosen in config["sets"].items():
        files += [Path(chosen["shards"]) / "manifest.parquet", Path(chosen["queries"]), output / f"{name}.json"]
        files += [Path(path) for path in chosen["pairs"].values()]
        files += [Path(chosen["query_bank"])] if chosen["query_bank"] else []
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in files}
