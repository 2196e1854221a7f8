"""WebVTT and SRT files beside the videos, cut to the span of a clip.

    subtitle = SubtitleFiles("data/videos/{video_id}.en.vtt")(video_id, clip)      # str | None

The words of a cue are spread evenly over its time, and those that fall into the span are taken: a clip that starts in
the middle of a cue gets the second half of it. Markup goes; a line that only repeats the line before (the rolling
captions of YouTube) is taken once.
"""

import html
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from preprocess.lines import read_lines
from preprocess.metadata import parse_time
from preprocess.records import Clip
from preprocess.videos import is_file

_ARROW = re.compile(r"^\s*([\d:.,]+)\s*-->\s*([\d:.,]+)")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_MAX_LINE_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 24
"""Ten hours of captions with a time for each word are a third of it; a larger file is no subtitle."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that are shown from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    words: tuple[str, ...]

    def between(self, start_s: float, end_s: float) -> list[str]:
        """The words whose moment lies in [start_s, end_s)."""
        step = (self.end_s - self.start_s) / len(self.words)
        return [
            word for number, word in enumerate(self.words) if start_s <= self.start_s + (number + 0.5) * step < end_s
        ]


class SubtitleFiles:
    """Looks subtitles up in one file per video; the last file stays parsed, as clips come video by video."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._video_id: str | None = None
        self._cues: list[Cue] = []

    def __call__(self, video_id: str, clip: Clip) -> str | None:
        if video_id != self._video_id:
            path = Path(self._template.format(video_id=video_id))
            self._cues = read_cues(path) if is_file(path) and _is_of_sane_size(path) else []
            self._video_id = video_id
        end_s = float("inf") if clip.end_s is None else clip.end_s
        cues = [cue for cue in self._cues if cue.start_s < end_s and clip.start_s < cue.end_s]
        return " ".join(word for cue in cues for word in cue.between(clip.start_s, end_s)) or None


def _is_of_sane_size(path: Path) -> bool:
    if path.stat().st_size <= MAX_FILE_BYTES:
        return True
    print(f"texts: {path} is larger than {MAX_FILE_BYTES} bytes and is passed over", file=sys.stderr, flush=True)
    return False


def read_cues(path: Path) -> list[Cue]:
    """The cues of a WebVTT or SRT file in order of time; what is no cue is passed over."""
    cues: list[Cue] = []
    span: tuple[float, float] | None = None
    lines: list[str] = []
    last_line = ""
    for line in [*_text_lines(path), ""]:
        arrow = _ARROW.match(line)
        if arrow or not line:
            fresh = [text for before, text in itertools.pairwise([last_line, *lines]) if text != before]
            words = tuple(" ".join(fresh).split())
            if span is not None and words and span[1] > span[0]:
                cues.append(Cue(*span, words))
            last_line = lines[-1] if lines else last_line
            span, lines = (_span(arrow) if arrow else None), []
        elif span is not None:
            lines.append(line)
    return sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))


def _text_lines(path: Path) -> list[str]:
    """The lines of the file without markup; an empty one where a blank line ends a cue."""
    lines: list[str] = []
    number = 0
    for raw in read_lines(path, _MAX_LINE_BYTES):
        if raw.data is None:
            continue
        if raw.number != number + 1:
            lines.append("")
        number = raw.number
        text = raw.data.decode("utf-8-sig", "replace").replace("\0", " ")
        clean = text if "-->" in text else html.unescape(_MARKUP.sub("", text))
        if clean := clean.strip():
            lines.append(clean)
    return lines


def _span(arrow: "re.Match[str]") -> tuple[float, float] | None:
    try:
        return parse_time(arrow[1]), parse_time(arrow[2])
    except ValueError:
        return None
