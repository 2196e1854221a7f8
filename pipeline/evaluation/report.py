"""One set's result as a table to read, and as JSON, Markdown and CSV to keep.

    report = set_report(found, checkpoint="runs/b32")     # plain data: what {set}.json holds
    print(console_table(report))
    write_report(report, folder)                          # folder/{set}.json, .md, .csv

A report never gives a number without its N: queries used "of" queries asked, gallery size, tie rule, split. Re-scored
results stand apart, each with a word on whether it saw the test queries.
"""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.bootstrap import bootstrap_intervals
from pipeline.evaluation.metrics import RECALL_LEVELS, chance_metrics, recall_metrics
from pipeline.evaluation.protocol import TieRule
from pipeline.evaluation.rescoring import SEES_TEST_QUERIES, RescoreMethod
from pipeline.evaluation.retrieval import Retrieval

DIRECTIONS = {"t2v": "text -> video", "v2t": "video -> text"}
COLUMNS = [*(f"r{k}" for k in RECALL_LEVELS), "gm", "mdr", "mnr"]
METRIC_HEADINGS = [*(f"R@{k}" for k in RECALL_LEVELS), "GM", "MdR", "MnR"]
HEADINGS = [*METRIC_HEADINGS, "N"]
TIE_RULES: tuple[TieRule, ...] = ("average", "optimistic", "pessimistic")

Report = dict[str, Any]


def set_report(
    found: Retrieval,
    *,
    checkpoint: str,
    rescored: dict[RescoreMethod, dict[str, float]] | None = None,
    chosen_by: str = "",
    precision: str = "fp32",
) -> Report:
    """Everything about one set's result as plain data. `chosen_by`: how the checkpoint was selected."""
    config, questions = found.config, found.questions
    ranks = {"t2v": found.t2v, "v2t": found.v2t}
    groups = {"t2v": questions.video_of_query, "v2t": np.arange(questions.num_gallery)}
    captions_of_video = np.bincount(questions.video_of_query, minlength=questions.num_gallery)
    by_rule = {
        rule: {name: value for d, r in ranks.items() for name, value in recall_metrics(r.by_rule(rule), d).items()}
        for rule in TIE_RULES
    }
    return {
        "set": config.name,
        "split": config.split,
        "checkpoint": checkpoint,
        "protocol": config.model_dump(mode="json"),
        "metrics": found.metrics(),
        "chance": {
            **chance_metrics(np.ones(len(questions.query_ids), dtype=np.int64), questions.num_gallery, "t2v"),
            **chance_metrics(captions_of_video, len(questions.query_ids), "v2t"),
            **{f"pairs_{kind}": 0.5 for kind in questions.pairs},
        },
        "ties": {
            "rule": config.ties,
            "queries_with_ties": {d: int(np.sum(r.tied > 0)) for d, r in ranks.items()},
            # All three rules only where the choice moves a number.
            **({"by_rule": by_rule} if any(by_rule[rule] != by_rule["average"] for rule in TIE_RULES) else {}),
        },
        "intervals": {
            name: interval
            for d, r in ranks.items()
            for name, interval in bootstrap_intervals(r.by_rule(config.ties), groups[d], d).items()
        },
        "rescored": {
            method: {"sees_test_queries": SEES_TEST_QUERIES[method], "metrics": metrics}
            for method, metrics in (rescored or {}).items()
        },
        "chosen_by": chosen_by,
        "precision": precision,
        "num_pairs": {kind: len(rows.videos) for kind, rows in questions.pairs.items()},
        "missing_videos": found.missing,
    }


def console_table(report: Report) -> str:
    """The report for a terminal."""
    lines = [headline(report), f"{'':16}" + "".join(f"{heading:>8}" for heading in HEADINGS)]
    for label, cells in table_rows(report):
        lines.append(f"{label:16}" + "".join(f"{shown:>8}" for shown in cells))
    return "\n".join([*lines, *notes(report)])


def markdown_table(report: Report) -> str:
    """The report as Markdown."""
    lines = [
        f"### {headline(report)}",
        "",
        f"Checkpoint: `{report['checkpoint']}`",
        "",
        "| | " + " | ".join(HEADINGS) + " |",
        "|---|" + "---:|" * len(HEADINGS),
    ]
    for label, cells in table_rows(report):
        lines.append(f"| {label.strip()} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note.strip()}" for note in notes(report))]).rstrip() + "\n"


def csv_table(report: Report) -> str:
    """One line per number: set, split, name, value, chance, and of how many queries (for v2t these are the videos)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["set", "split", "metric", "value", "chance", "num_queries"])
    named = [("", report["metrics"]), *((f"{m}_", r["metrics"]) for m, r in report["rescored"].items())]
    for prefix, metrics in named:
        for name, value in metrics.items():
            chance = report["chance"].get(name, "")
            asked = _num_asked(report, name)
            writer.writerow([report["set"], report["split"], f"{prefix}{name}", value, chance, asked])
    return stream.getvalue()


def _num_asked(report: Report, metric: str) -> int | str:
    """The N of a metric; nothing for the counts themselves."""
    if metric.startswith("pairs_"):
        return int(report["num_pairs"][metric.removeprefix("pairs_")])
    count = {"t2v": "num_queries", "v2t": "num_videos"}.get(metric.partition("_")[0])
    return "" if count is None else int(report["metrics"][count])


def make_folder(folder: Path) -> None:
    """Make a folder for reports. InputError where none can be made, or nothing written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; set output= to a folder that can be") from None


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write {set}.json, .md and .csv; returns their paths."""
    make_folder(folder)
    texts = {
        "json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        "md": markdown_table(report),
        "csv": csv_table(report),
    }
    paths = []
    for suffix, text in texts.items():
        path = folder / f"{report['set']}.{suffix}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def headline(report: Report) -> str:
    """Set, split, and of how many queries among how many videos the numbers are."""
    metrics = report["metrics"]
    return (
        f"{report['set']} ({report['split']}): N = {metrics['num_queries']:,.0f} of "
        f"{metrics['num_queries_asked']:,.0f} queries, {metrics['num_videos']:,.0f} videos"
    )


def table_rows(report: Report) -> list[tuple[str, list[str]]]:
    """(label, a cell per heading): both directions, chance below each."""
    rows = []
    for direction, label in DIRECTIONS.items():
        rows.append((label, [*_cells(report["metrics"], direction), f"{_num_asked(report, direction):,}"]))
        rows.append(("  chance", [*_cells(report["chance"], direction), ""]))
    return rows


def _cells(values: dict[str, float], direction: str) -> list[str]:
    return [
        f"{values[f'{direction}_{column}']:.1f}"
        if column in ("mdr", "mnr")
        else f"{100 * values[f'{direction}_{column}']:.1f}"
        for column in COLUMNS
    ]


def notes(report: Report) -> list[str]:
    """What belongs to the numbers: pairs, intervals, re-scored results, ties, missing videos, choice of checkpoint."""
    return [
        *_pair_lines(report),
        *_interval_lines(report),
        *_rescored_lines(report),
        *_tie_lines(report),
        *_missing_lines(report),
        *([f"checkpoint chosen by: {report['chosen_by']}"] if report["chosen_by"] else []),
        *([f"encoded in {report['precision']}, not in fp32"] if report["precision"] != "fp32" else []),
    ]


def _interval_lines(report: Report) -> list[str]:
    shown = [
        f"{label} {100 * low:.1f} to {100 * high:.1f}"
        for direction, label in DIRECTIONS.items()
        for low, high in [report["intervals"][f"{direction}_r1"]]
    ]
    return [f"R@1, 95% bootstrap over videos: {'; '.join(shown)}"]


def _rescored_lines(report: Report) -> list[str]:
    lines = []
    for method, result in report["rescored"].items():
        seen = "sees all test queries" if result["sees_test_queries"] else "does not see the test queries"
        shown = "; ".join(
            f"{label} " + " / ".join(_cells(result["metrics"], direction)[: len(RECALL_LEVELS)])
            for direction, label in DIRECTIONS.items()
            if f"{direction}_r1" in result["metrics"]
        )
        lines.append(f"re-scored, {method} ({seen}): R@1 / R@5 / R@10 {shown}")
    return lines


def _pair_lines(report: Report) -> list[str]:
    return [
        f"pairs {kind}: {100 * report['metrics'][f'pairs_{kind}']:.1f}% of {count} right (chance 50%)"
        for kind, count in report["num_pairs"].items()
    ]


def _tie_lines(report: Report) -> list[str]:
    ties = report["ties"]
    counts = ", ".join(f"{DIRECTIONS[d]} {count}" for d, count in ties["queries_with_ties"].items())
    lines = [f"ties: {ties['rule']} rank among equal scores; queries with a tie: {counts}"]
    for rule, values in ties.get("by_rule", {}).items():
        shown = "; ".join(f"{label} " + " / ".join(_cells(values, d)) for d, label in DIRECTIONS.items())
        lines.append(f"  {rule}: {' / '.join(METRIC_HEADINGS)} {shown}")
    return lines


def _missing_lines(report: Report) -> list[str]:
    missing = report["missing_videos"]
    if not missing:
        return []
    return [f"missing: {len(missing)} videos: " + ", ".join(f"{name} ({why})" for name, why in missing.items())]
