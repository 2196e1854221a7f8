"""Which videos go to which shard: a pure function of the metadata and the seed, in bounded memory."""

from pydantic import Field

from pipeline.config import Section


class ShardsConfig(Section):
    """Size of the shards."""

    clips_per_shard: int = Field(default=1000, ge=1, le=100_000)
    """A shard is closed as soon as it holds this many clips; a video is never split."""
