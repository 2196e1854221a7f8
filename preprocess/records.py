"""The records that flow from the first byte to the last: `Video` and `Clip` are planned, a clip ends as a `Sample` in
a shard or as a `Failure` in a table. Exactly one of the two, for every clip in the metadata.

    metadata -> Video(clips) -> plan -> decode -> Sample | Failure
"""

from dataclasses import dataclass

from pipeline.data.format import Reason
from pipeline.data.texts import clean_text as clean_text


@dataclass(frozen=True, slots=True)
class Clip:
    """One span of a video, as the metadata has it."""

    clip_id: str
    start_s: float
    end_s: float | None
    """None: to the end of the video."""
    subtitle: str | None = None
    """Texts that came in the metadata itself."""
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A source video and its clips."""

    video_id: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that is not delivered. `clip_id` is empty for a metadata line that names none."""

    clip_id: str
    video_id: str
    reason: Reason
    detail: str

    def row(self, shard: str) -> dict[str, str]:
        """The row of the failures table; texts from outside are made printable and cut to a sane length."""
        return {
            "clip_id": printable(self.clip_id),
            "video_id": printable(self.video_id),
            "shard": shard,
            "reason": str(self.reason),
            "detail": printable(" ".join(self.detail.split()), 300),
        }


@dataclass(frozen=True, slots=True)
class Media:
    """A delivered clip's media file, in memory."""

    clip: Clip
    data: bytes
    fps: float
    num_frames: int
    width_px: int
    height_px: int
    audio: bytes | None = None


class ClipError(Exception):
    """All clips that are being worked on fail for one reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def printable(text: str, max_chars: int = 1024) -> str:
    """`text` as valid Unicode without lone surrogates, cut to `max_chars`."""
    return text.encode("utf-8", "backslashreplace").decode()[:max_chars]
