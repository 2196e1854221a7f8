"""What is said when a run meets more bad data than it may: how much, for which reason, an example, what to do.

    raise RunError(nothing_usable(batch_index, num_rows, bad_of_batch, texts=("caption",)))

Pure functions of what all ranks know: every rank comes to the same answer.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pipeline.data.batch import BadSample

_WAYS_OUT = {
    "shard_missing": "bring the tars back to their place",
    "shard_truncated": "the tars are shorter than when they were indexed: bring the whole ones back",
    "shard_changed": "the tars are not those that were indexed: bring them back, or index the set again",
    "media_changed": "the media differ from their hashes: bring the undamaged tars back, or write them again",
    "media_missing": "the samples hold no video and no image: index the set again, which leaves them out",
    "json_invalid": "their JSON cannot be read: index the set again, which leaves them out",
}
_ANY_WAY_OUT = "repair the shards, or leave the samples out by data.exclude in a new run"


def too_many(bad: Sequence[BadSample], num_read: int) -> str:
    """The distinct bad samples met so far are beyond the tolerance."""
    last = bad[-1]
    return (
        f"{len(bad)} bad samples in {num_read} ({by_reason(bad)}), the last one {last.key} of {last.shard}; repair "
        "the shards or exclude them, or raise data.max_bad_fraction"
    )


def too_many_of_a_source(bad: Sequence[BadSample], sizes: Mapping[str, int], max_bad_fraction: float) -> str:
    """Why the run may not go on where more than half of a source is bad; "" where it may.

    The grace is for a few samples of a large set: a small one is not to be lost within it. `sizes`: samples of each
    source. A larger `max_bad_fraction` allows more.
    """
    for source, samples in _by_source(bad, sizes).items():
        if len(samples) > max(0.5, max_bad_fraction) * sizes[source]:
            return (
                f"{len(samples)} of the {sizes[source]} samples of {source} are bad ({by_reason(samples)}), "
                f"{_example(samples)}; {way_out(samples)}; or raise data.max_bad_fraction"
            )
    return ""


def nothing_usable(index: int, num_rows: int, bad: Sequence[BadSample], texts: Sequence[str]) -> str:
    """Global batch `index` of `num_rows` samples has no row from which to learn: why, and what to do."""
    what = f"none of the {num_rows} samples of batch {index} is usable"
    if not bad:
        return (
            f"{what}: none has a {' or a '.join(texts)}, which the loss compares; check subtitle_from, caption_from "
            "and texts of data.sources, or choose another loss.name"
        )
    return f"{what}: {by_reason(bad)}, {_example(bad)}; {way_out(bad)}; then resume"


def by_reason(bad: Collection[BadSample]) -> dict[str, int]:
    """Bad samples counted by reason."""
    return dict(Counter(sample.reason for sample in bad))


def way_out(bad: Collection[BadSample]) -> str:
    """What to do about the commonest reason."""
    return _WAYS_OUT.get(_commonest(bad), _ANY_WAY_OUT)


def _example(bad: Sequence[BadSample]) -> str:
    """One sample that has the commonest reason."""
    sample = next(sample for sample in bad if sample.reason == _commonest(bad))
    return f"such as {sample.key} of {sample.shard} ({sample.reason})"


def _commonest(bad: Collection[BadSample]) -> str:
    return Counter(sample.reason for sample in bad).most_common(1)[0][0]


def _by_source(bad: Sequence[BadSample], sizes: Mapping[str, int]) -> dict[str, list[BadSample]]:
    """The bad samples of each source, known by the folder that its shards lie in."""
    found: dict[str, list[BadSample]] = {}
    for sample in bad:
        names = [source for source in sizes if sample.shard.startswith(f"{source}/")]
        if names:
            found.setdefault(max(names, key=len), []).append(sample)
    return found
