"""Sizes of the published sets that the recipes name, for a plan before their shards are there.

published_set("data/benchmarks/msrvtt/train_9k/shards").samples      # 180,000 pairs in an epoch
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSet:
    """A training split."""

    name: str
    clips: int
    """Videos or clips that are stored."""
    samples: int
    """Of an epoch: with `texts`, a clip comes once with every text."""


PUBLISHED_SETS = {
    "hdvila": PublishedSet("HD-VILA-100M (usable clips)", 92_000_000, 92_000_000),
    "msrvtt": PublishedSet("MSR-VTT (9,000 videos, 20 captions each)", 9_000, 180_000),
    "didemo": PublishedSet("DiDeMo (one paragraph a video)", 8_394, 8_394),
    "lsmdc": PublishedSet("LSMDC (about 101,000 clips)", 101_000, 101_000),
    "activitynet": PublishedSet("ActivityNet Captions (one paragraph a video)", 10_009, 10_009),
}
"""By what their folders are called; CLIP-ViP's tables and the sets' own annotations."""


def published_set(shards: str) -> PublishedSet | None:
    """The set whose name is part of a path of shards: data/shards/hdvila, s3://bucket/msr-vtt/train."""
    words = [re.sub(r"[^a-z0-9]", "", part) for part in shards.lower().split("/")]
    for name, found in PUBLISHED_SETS.items():
        if any(word.startswith(name) for word in words):
            return found
    return None
