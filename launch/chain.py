"""The links of a chain: planned against what the links before them will have written.

links, finished = plan_links(options, shard_configs=[...], files={"pretrain": ..., "evaluate": ...})
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.chain_here import evaluate_here, train_here
from launch.dry_run import Report
from launch.options import Options
from launch.run_folder import JobFolder
from launch.shards import plan_shards, report_shards, run_shards_here, submit_shards
from launch.start import report, require, write_config
from launch.submit import submit
from launch.training import Plan, folder_of_finished, plan_training, read_train_config
from pipeline.errors import InputError, RunError

if TYPE_CHECKING:
    from pipeline.model.config import ModelConfig

BEFORE = ("<the job before>",)


@dataclass(frozen=True)
class Link:
    """One job of the chain (for shards: the arrays and their merge)."""

    kind: str
    folder: JobFolder
    submit: Callable[[tuple[str, ...]], tuple[str, ...]]
    """Queue it after these jobs; returns the ids of its jobs, last the one that the next link waits for."""
    run: Callable[[], None]
    """Do it on this machine; RunError or InputError where that fails."""
    report: Callable[[], Report]
    """What a dry run says about it."""
    ends_stage: bool = True
    """The next link waits for this one; false for all shard sets but the last, which are written side by side."""


def plan_links(options: Options, shard_configs: Sequence[str], files: dict[str, str]) -> tuple[list[Link], list[str]]:
    """Plan and check every link; InputError for the first that is wrong.

    Returns the links, and a line for each run that is finished, which needs no link any more.
    """
    finished: list[str] = []
    # A link that asks for no GPU gets none, though others do.
    options = replace(options, gpus_given=False)
    overrides = split_overrides(options.overrides, ["shards", *files])
    links: list[Link] = []
    to_come: list[Path] = []
    without_gpus = options.site.model_copy(update={"gpus_per_node": 0})
    for number, config in enumerate(shard_configs):
        mine = replace(options, config=(config,), overrides=overrides["shards"], name=None, site=without_gpus)
        with of_link("shards"):
            plan = plan_shards(mine)
        to_come.append(plan.output)
        links.append(
            Link(
                "shards",
                JobFolder(plan.merge.work.run_folder),
                lambda after, plan=plan, mine=mine: submit_shards(plan, mine, after),  # type: ignore[misc]
                lambda plan=plan, mine=mine: run_shards_here(plan, mine, go_on=""),  # type: ignore[misc]
                lambda plan=plan, mine=mine: report_shards(plan, mine),  # type: ignore[misc]
                ends_stage=number == len(shard_configs) - 1,
            )
        )
    trained: Path | None = None
    model: ModelConfig | None = None
    for kind in ("pretrain", "finetune"):
        if kind not in files:
            continue
        words = overrides[kind]
        if kind == "finetune" and trained is not None and not any(word.startswith("init_from=") for word in words):
            words = (*words, f"init_from={trained}")
        mine = replace(options, config=(files[kind],), overrides=words, name=_name(options, kind))
        # The same chain again goes on; a run of another config is refused all the same.
        with of_link(kind):
            mine = replace(mine, resume=read_train_config(mine).resume != "never")
        with of_link(kind):
            done = folder_of_finished(mine)
        if done is not None:
            finished.append(f"nothing is left to do for {kind}: {done}")
            trained, model = done, None
            continue
        with of_link(kind):
            training = plan_training(mine, "pretrain" if kind == "pretrain" else "finetune", to_come)
        links.append(_link(kind, training, mine, lambda plan=training, mine=mine: train_here(plan, mine)))  # type: ignore[misc]
        trained = training.job.work.run_folder
        # What it starts from may be to come as well; only its shapes count here.
        model = read_train_config(mine).model.model_copy(update={"pretrained": None})
        to_come.append(trained)
    if "evaluate" in files:
        from launch.slurm_evaluate import plan_evaluation

        if trained is None:
            raise InputError("--evaluate needs --pretrain or --finetune in the chain, or use launch/slurm_evaluate.py")
        mine = replace(
            options, config=(files["evaluate"],), overrides=overrides["evaluate"], name=_name(options, "evaluate")
        )
        with of_link("evaluate"):
            evaluation = plan_evaluation(mine, trained, tuple(to_come), model)
        links.append(_link("evaluate", evaluation, mine, lambda: evaluate_here(evaluation, trained, mine)))
    if not links and trained is None:
        raise InputError("an empty chain; give --shards, --pretrain, --finetune, --evaluate")
    return links, finished


@contextmanager
def of_link(kind: str) -> Iterator[None]:
    """Put the link's name before what is wrong with it: its keys are those after the name on the command line."""
    try:
        yield
    except (InputError, RunError) as error:
        raise (InputError if isinstance(error, InputError) else RunError)(f"{kind}: {error}") from None


def _name(options: Options, kind: str) -> str | None:
    return f"{options.name}_{kind}" if options.name else None


def _link(kind: str, plan: Plan, options: Options, run: Callable[[], None]) -> Link:
    """A link of one job. What it lacks must come from the links before; anything else is refused here already."""
    if not options.dry_run:
        require(plan, options)

    def send(after: tuple[str, ...]) -> tuple[str, ...]:
        write_config(plan)
        return (submit(plan.job, options.site, after),)

    return Link(kind, JobFolder(plan.job.work.run_folder), send, run, lambda: report(plan, options, BEFORE))


def split_overrides(words: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Overrides by link, without the link's name.

    >>> split_overrides(["pretrain.optim.lr=1"], ["pretrain", "shards"])
    {'pretrain': ('optim.lr=1',), 'shards': ()}
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    for word in words:
        link, _, rest = word.partition(".")
        if link not in found or "=" not in rest:
            raise InputError(f"override {word!r} must start with the name of a link of this chain: {', '.join(names)}")
        found[link].append(rest)
    return {name: tuple(rest) for name, rest in found.items()}
