"""Tells a lost mount from videos that are not there, which is the normal case: most of a web corpus may be gone.

Shards draw their videos at random. So a shard in which far fewer are there than in the shards before it is no chance:
`max_missing_odds` says from which odds on it is taken for a lost mount, which stops the job before it is published.

    before = seen_in(output, published)
    check_share(before, Seen(found=0, missing=33), max_odds=1e-6, where="shards/000012")       # MachineFault
"""

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq

from pipeline.data.format import Reason
from pipeline.errors import MachineFault

_SHARDS_LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class Seen:
    """How many videos were there, and how many were not."""

    found: int = 0
    missing: int = 0

    def __add__(self, other: Self) -> "Seen":
        return Seen(self.found + other.found, self.missing + other.missing)


def seen_in(output: Path, shards: Sequence[str]) -> Seen:
    """The videos of some of these published shards, by their sidecars and failures. Unreadable ones do not count."""
    step = max(1, len(shards) // _SHARDS_LOOKED_AT)
    seen = Seen()
    for shard in shards[::step][:_SHARDS_LOOKED_AT]:
        try:
            found = set(pq.read_table(output / f"{shard}.parquet", columns=["video_id"])["video_id"].to_pylist())
            rows = pq.read_table(output / "failures" / f"{Path(shard).name}.parquet", columns=["video_id", "reason"])
        except (OSError, ValueError):
            continue  # a damaged shard is named where the job ends
        missing = {row["video_id"] for row in rows.to_pylist() if row["reason"] == Reason.VIDEO_MISSING}
        found |= {row["video_id"] for row in rows.to_pylist() if row["reason"] != Reason.VIDEO_MISSING}
        seen += Seen(len(found - missing), len(missing))
    return seen


def odds_of(before: Seen, now: Seen) -> float:
    """The probability that so few videos are found, given the others of the set: a beta-binomial tail.

    >>> odds_of(Seen(2, 0), Seen(0, 2)) > 0.05, odds_of(Seen(90, 10), Seen(0, 20)) < 1e-9
    (True, True)
    """
    num = now.found + now.missing
    return math.fsum(math.exp(_log_probability(before, count, num)) for count in range(now.found + 1))


def _log_probability(before: Seen, count: int, num: int) -> float:
    """Of `count` found among `num`, where every share of found videos was as likely before any was looked for."""
    choose = math.lgamma(num + 1) - math.lgamma(count + 1) - math.lgamma(num - count + 1)
    found, missing = before.found + 1, before.missing + 1
    return choose + _log_beta(found + count, missing + num - count) - _log_beta(found, missing)


def _log_beta(first: int, second: int) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)


def check_share(before: Seen, now: Seen, max_odds: float, where: str) -> None:
    """Raise `MachineFault` where the found videos of shard `where` are too few to be so by chance."""
    if now.missing == 0 or odds_of(before, now) >= max_odds:
        return
    raise MachineFault(
        f"{now.missing} of {now.found + now.missing} videos of {where} are missing on {socket.gethostname()}, and "
        f"{before.missing} of {before.found + before.missing} before it: a lost mount rather than chance, so the "
        "shard is not written; mend the mount and run the same command again, or set videos.max_missing_odds=0 if "
        "these videos are really gone"
    )
