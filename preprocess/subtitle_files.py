"""WebVTT and SRT files beside the videos, cut to the span of a clip.

    subtitles = SubtitleFiles("data/videos/{video_id}.en.vtt")
    subtitles(video_id, clip)          # str | None
    subtitles.take_problems()          # what could not be read since the last call, a line for each file

The words of a cue are spread over its time (`preprocess.cues`), and those whose moment falls into the span are taken: a
clip that starts in the middle of a cue gets the second half of it. UTF-8 and UTF-16, with any line ends.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.text_files import HEAD_BYTES, not_utf8_text, text_encoding
from preprocess.cues import Cue, Unread, parse_cues
from preprocess.faults import retried
from preprocess.records import Clip
from preprocess.videos import fixed_folder, is_file, paths_of

MAX_FILE_BYTES = 1 << 24
"""Ten hours of captions with a time for each word are a third of it; a larger file is no subtitle."""
_MAX_STRAY_SHARE = 0.1
"""Of a text in an encoding that is not UTF-8 but mostly ASCII a few letters are lost; of another nothing is left."""


@dataclass(frozen=True)
class SubtitleText:
    """The cues of one file, and in a few words what of it could not be read; empty: all could."""

    cues: list[Cue]
    problem: str


class SubtitleFiles:
    """Looks subtitles up in one file per video; the last file stays parsed, as clips come video by video."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._video_id: str | None = None
        self._cues: list[Cue] = []
        self._problems: list[str] = []

    def __call__(self, video_id: str, clip: Clip) -> str | None:
        if video_id != self._video_id:
            self._open(video_id)
        end_s = float("inf") if clip.end_s is None else clip.end_s
        said = ""
        for cue in self._cues:
            if cue.start_s < end_s and clip.start_s <= cue.end_s:
                for word in cue.words:
                    if clip.start_s <= word.moment_s < end_s:
                        said += word.text if word.is_joined else f" {word.text}"
        return said.strip() or None

    def take_problems(self) -> list[str]:
        """What could not be read since the last call, in order: "path: problem". A file is told of once per call."""
        problems, self._problems = self._problems, []
        self._video_id = None
        return problems

    def _open(self, video_id: str) -> None:
        self._cues, self._video_id = [], video_id
        path = next((path for path in paths_of(self._template, video_id) if is_file(path)), None)
        if path is None:
            return
        text = read_subtitles(path)
        self._cues = text.cues
        if text.problem:
            print(f"texts: {path}: {text.problem}", file=sys.stderr, flush=True)
            # The name below the fixed folder: sidecars hold it, and are the same wherever the set is made.
            self._problems.append(f"{path.relative_to(fixed_folder(self._template))}: {text.problem}")


def read_subtitles(path: Path) -> SubtitleText:
    """The cues of a .vtt or .srt file in order of time. Whatever it holds is no error, but a `problem`."""
    if retried(path.stat, path).st_size > MAX_FILE_BYTES:
        return SubtitleText([], f"is larger than {MAX_FILE_BYTES:,} bytes and was passed over")
    if not os.access(path, os.R_OK):
        return SubtitleText([], "cannot be read: Permission denied")
    data = retried(path.read_bytes, path)
    encoding = text_encoding(data[:HEAD_BYTES])
    if encoding.startswith("utf-8") and (complaint := not_utf8_text(data[:HEAD_BYTES])):
        return SubtitleText([], complaint)
    text = data.decode(encoding, "replace").replace("\0", " ")
    num_stray = text.count("\ufffd") - (data.count("\ufffd".encode()) if encoding.startswith("utf-8") else 0)
    problems = [f"{num_stray:,} bytes are no {encoding[:6].upper().rstrip('-')}, save it as UTF-8"] if num_stray else []
    if num_stray > _MAX_STRAY_SHARE * sum(char.isalpha() or char == "\ufffd" for char in text):
        return SubtitleText([], problems[0])
    unread = Unread()
    cues = parse_cues(text, unread)
    if unread.count:
        problems.append(f"{unread.count:,} time spans cannot be read, first {unread.first}")
    elif not cues and text.strip() and not text.lstrip("\ufeff").startswith("WEBVTT"):
        problems.append("holds no time span of WebVTT or SRT")
    return SubtitleText(cues, "; ".join(problems))


def read_cues(path: Path) -> list[Cue]:
    """The cues of a file, whatever of it cannot be read left out."""
    return read_subtitles(path).cues
