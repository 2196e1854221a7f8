"""Several evaluations in one table per set, with the paper's numbers beside: zero-shot, post-pretrained, fine-tuned.

    reports = load_reports([Path("runs/clip"), Path("runs/msrvtt_b32")])
    rows = comparison_rows(reports);  print(markdown(rows));  write_comparison(rows, folder)

A row states its own N, split and selection; rows of one set with unlike galleries or protocols are marked, never mixed
in silence.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.evaluation.paper import PAPER
from pipeline.evaluation.report import make_folder

Row = dict[str, Any]

COLUMNS = {
    "model": "model",
    "t2v_r1": "t2v R@1",
    "t2v_r5": "R@5",
    "t2v_r10": "R@10",
    "t2v_mdr": "MdR",
    "v2t_r1": "v2t R@1",
    "v2t_r5": "R@5",
    "v2t_r10": "R@10",
    "dsl_official_t2v_r1": "t2v R@1 + DSL",
    "qb_norm_t2v_r1": "t2v R@1 + QB-Norm",
    "num_queries": "N",
    "num_videos": "v2t N",
    "note": "note",
}
PERCENT = ("r1", "r5", "r10")
COUNTS = ("num_queries", "num_videos")
PROTOCOL = ("num_frames", "clips_per_video", "num_text_tokens", "long_texts", "ties")
"""What makes figures of one set unlike where it differs."""


def load_reports(sources: list[Path]) -> list[tuple[str, Row]]:
    """(label, report) of every result file in run folders, evaluation folders, or of single files."""
    found: list[tuple[str, Row]] = []
    for source in sources:
        paths = [source] if source.is_file() else _result_files(source)
        reports = [(path, _read_report(path)) for path in paths]
        if not reports:
            raise InputError(f"{source} holds no evaluation; run: python -m pipeline.evaluate {source} --set NAME")
        found += [(_label(source, path), report) for path, report in reports]
    return found


def comparison_rows(reports: list[tuple[str, Row]]) -> list[Row]:
    """Rows by set: the evaluations in the order given, then the paper's."""
    rows: list[Row] = []
    for name in dict.fromkeys(report["set"] for _, report in reports):
        of_set = [(label, report) for label, report in reports if report["set"] == name]
        galleries = {(r["metrics"]["num_queries"], r["metrics"]["num_videos"]) for _, r in of_set}
        unlike = [key for key in PROTOCOL if len({str(report["protocol"].get(key)) for _, report in of_set}) > 1]
        rows += [_row(label, report, mixed=len(galleries) > 1, unlike=unlike) for label, report in of_set]
        for model, paper in PAPER.get(name, {}).items():
            values = {"t2v_r1": paper.r1, "t2v_r5": paper.r5, "t2v_r10": paper.r10}
            if paper.dsl_r1 is not None:
                values["dsl_official_t2v_r1"] = paper.dsl_r1
            rows.append({"set": name, "model": f"{model} (paper)", **values})
    return rows


def markdown(rows: list[Row]) -> str:
    """A table per set; it reads well in a terminal too."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = [[_shown(key, row.get(key)) for key in COLUMNS] for row in rows if row["set"] == name]
        headings = list(COLUMNS.values())
        used = [i for i in range(len(headings)) if any(line[i] for line in cells)]
        widths = [max(len(headings[i]), *(len(line[i]) for line in cells)) for i in used]
        align = [str.ljust if list(COLUMNS)[i] in ("model", "note") else str.rjust for i in used]
        lines = [
            "| " + " | ".join(fit(text, width) for fit, text, width in zip(align, line, widths, strict=True)) + " |"
            for line in ([headings[i] for i in used], *([line[i] for i in used] for line in cells))
        ]
        rule = "|" + "|".join(
            "-" * (width + 2) if fit is str.ljust else "-" * (width + 1) + ":"
            for fit, width in zip(align, widths, strict=True)
        )
        parts.append("\n".join([f"### {name}", "", lines[0], rule + "|", *lines[1:], ""]))
    return "\n".join(parts)


def write_comparison(rows: list[Row], folder: Path) -> list[Path]:
    """comparison.json, .md and .csv; returns their paths."""
    make_folder(folder)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["set", *COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = {"json": json.dumps(rows, indent=1) + "\n", "md": markdown(rows), "csv": stream.getvalue()}
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"comparison.{suffix}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def _row(label: str, report: Row, *, mixed: bool, unlike: list[str]) -> Row:
    metrics = report["metrics"]
    values = {key: _percent(key, metrics[key]) for key in COLUMNS if key in metrics and key not in COUNTS}
    for method, result in report["rescored"].items():
        key = f"{method}_t2v_r1"
        if key in COLUMNS:
            values[key] = _percent(key, result["metrics"]["t2v_r1"])
    asked = int(metrics["num_queries_asked"])
    notes = [f"of {asked:,} queries asked"] if asked != int(metrics["num_queries"]) else []
    notes += [f"{int(metrics['num_videos']):,} videos: not the same gallery"] if mixed else []
    notes += [f"{key} {report['protocol'].get(key)}" for key in unlike]
    notes += ["validation split"] if report["split"] == "val" else []
    notes += [report["chosen_by"]] if report["chosen_by"] else []
    return {
        "set": report["set"],
        "model": label,
        **values,
        **{key: int(metrics[key]) for key in COUNTS},
        "note": "; ".join(notes),
    }


def _percent(key: str, value: float) -> float:
    return 100 * value if key.rsplit("_", 1)[-1] in PERCENT else value


def _shown(key: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    return f"{value:,}" if key in COUNTS else f"{value:.1f}" if isinstance(value, float) else str(value)


def _result_files(folder: Path) -> list[Path]:
    where = folder / "evaluation" if (folder / "evaluation").is_dir() else folder
    return [path for path in sorted(where.glob("*.json")) if path.name != "comparison.json" and _is_report(path)]


def _is_report(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"set", "metrics", "protocol"} <= content.keys()


def _read_report(path: Path) -> Row:
    if not _is_report(path):
        raise InputError(f"{path} is no evaluation result; give a run folder or a file written by pipeline.evaluate")
    report: Row = json.loads(path.read_text(encoding="utf-8"))
    return report


def _label(source: Path, path: Path) -> str:
    """The run's name; of `x_evaluation` folders, x."""
    folder = path.parent if source.is_file() else source
    name = folder.resolve().parent.name if folder.name == "evaluation" else folder.resolve().name
    return name.removesuffix("_evaluation")
