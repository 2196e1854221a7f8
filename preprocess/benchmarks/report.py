"""The converter's report for the terminal and as Markdown: N of N, and what is missing, doubled or leaked.

print(console_report(report)); path.write_text(markdown_report(report))
"""

from typing import Any

SHOWN = 10


def console_report(report: dict[str, Any]) -> str:
    """The essence; the whole lists are in report.md and report.json."""
    return "\n".join([f"{report['set']}:", *(f"  {line}" for line in _lines(report, shown=SHOWN))])


def markdown_report(report: dict[str, Any]) -> str:
    """Everything, with every clip that was not delivered."""
    return "\n".join([f"# {report['set']}", "", *(f"- {line}" for line in _lines(report, shown=None)), ""])


def _lines(report: dict[str, Any], shown: int | None) -> list[str]:
    lines = []
    for name, split in report["splits"].items():
        videos, texts = split["videos"], split["texts"]
        lines.append(
            f"{name}: {split['delivered']:,} of {videos['annotated']:,} videos{_published(videos['published'])}, "
            f"{split['texts_with_video']:,} of {texts['annotated']:,} texts{_published(texts['published'])}"
        )
        lines.append(
            f"{name}: {texts['distinct']:,} distinct texts{_published(texts['published_distinct'])}; "
            f"{split['duplicates']['texts_that_repeat']:,} of them repeat, "
            f"{split['duplicates']['repeated_for_one_video']:,} times for the same video"
        )
        lines += [f"{name}: {note}" for note in split["notes"]]
        if split["not_delivered"]:
            listed = list(split["not_delivered"].items())[:shown]
            more = len(split["not_delivered"]) - len(listed)
            named = "; ".join(f"{clip_id} ({why})" for clip_id, why in listed)
            rest = f"; and {more:,} more" if more else ""
            lines.append(f"{name}: not delivered, {len(split['not_delivered']):,}: {named}{rest}")
    lines += [f"count: {finding}" for finding in report["count_findings"]]
    for row in report["leakage"]:
        one, other = row["splits"]
        lines.append(
            f"leakage: {one} and {other} share {row['videos']:,} videos and {row['texts']:,} texts"
            + _examples([*row["video_examples"], *row["text_examples"]][:5])
        )
    return lines or ["nothing converted"]


def _published(stated: str | None) -> str:
    return "" if stated is None else f" (published: {stated})"


def _examples(examples: list[str]) -> str:
    return f", such as {'; '.join(examples)}" if examples else ""
