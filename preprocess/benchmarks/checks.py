"""What is looked at before any video is decoded: texts and names, counts against the published ones, leakage.

check_entries(split)                            # InputError for what no count can excuse
findings = check_counts(split)                  # mistakes that stop the conversion
facts = describe_split(split)                   # numbers and duplicates for the report
leaks = find_leakage(splits)                    # videos and texts that two splits share
"""

from collections import Counter
from itertools import combinations
from typing import Any

from pipeline.errors import InputError
from preprocess.benchmarks.split import Published, Split, same_name

SHOWN = 20
"""Examples in a report; the counts are always whole."""


def check_entries(split: Split) -> None:
    """InputError for a split without videos, a video that is listed twice, an empty text."""
    if not split.entries:
        raise InputError(f"split {split.name} holds no video; check its annotation file")
    name, times = Counter(entry.clip_id for entry in split.entries).most_common(1)[0]
    if times > 1:
        raise InputError(f"split {split.name} lists {name} {times} times; remove the repeated rows")
    silent = [entry.clip_id for entry in split.entries if not entry.texts or not all(map(str.strip, entry.texts))]
    if silent:
        raise InputError(
            f"split {split.name}: {len(silent):,} videos have an empty text, {silent[0]} for one; remove these texts"
        )


def check_counts(split: Split) -> list[str]:
    """One sentence per count that is not a published one."""
    texts = [text for entry in split.entries for text in entry.texts]
    found: list[tuple[str, int, Published | None]] = [
        ("videos", len(split.entries), split.videos),
        ("texts", len(texts), split.texts),
        ("distinct texts", len(set(texts)), split.distinct_texts),
    ]
    return [
        f"{split.name} has {count:,} {what}, but {published} are published"
        for what, count, published in found
        if published is not None and not published.allows(count)
    ]


def describe_split(split: Split) -> dict[str, Any]:
    """Counts and duplicates of one split."""
    times = Counter(text for entry in split.entries for text in entry.texts)
    repeated = {text: count for text, count in times.most_common() if count > 1}
    twice_for_one_video = sum(len(entry.texts) - len(set(entry.texts)) for entry in split.entries)
    return {
        "role": split.role,
        "videos": {"annotated": len(split.entries), "published": _stated(split.videos)},
        "texts": {
            "annotated": times.total(),
            "published": _stated(split.texts),
            "distinct": len(times),
            "published_distinct": _stated(split.distinct_texts),
        },
        "duplicates": {
            "texts_that_repeat": len(repeated),
            "repeated_for_one_video": twice_for_one_video,
            "examples": dict(list(repeated.items())[:SHOWN]),
        },
        "notes": list(split.notes),
    }


def find_leakage(splits: list[Split]) -> list[dict[str, Any]]:
    """Videos, and texts, that two splits share: a row per pair of splits that share any."""
    rows = []
    for one, other in combinations(splits, 2):
        videos = _videos(one) & _videos(other)
        texts = _texts(one) & _texts(other)
        if videos or texts:
            rows.append(
                {
                    "splits": [one.name, other.name],
                    "videos": len(videos),
                    "video_examples": sorted(videos)[:SHOWN],
                    "texts": len(texts),
                    "text_examples": sorted(texts)[:SHOWN],
                }
            )
    return rows


def _videos(split: Split) -> set[str]:
    return {same_name(entry.clip_id) for entry in split.entries}


def _texts(split: Split) -> set[str]:
    return {text for entry in split.entries for text in entry.texts}


def _stated(published: Published | None) -> str | None:
    return None if published is None else str(published)
