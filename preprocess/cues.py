"""WebVTT and SRT text to words, each with the moment at which it is said.

    unread = Unread()
    cues = parse_cues(text, unread)      # [Cue(start_s, end_s, words)]; what cannot be read is counted

A cue ends at an empty line (one of blanks is part of it, as players have it). Inline times (`<00:00:01.000>`) say when
the words behind them are said; between two times words are spread evenly. Captions that roll repeat the line before in
the next cue: it is taken once.
"""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from preprocess.times import parse_time

_ARROW = re.compile(r"^\s*(\S+?)\s*-->\s*([^\s<]+)")
_INLINE_TIME = re.compile(r"<([0-9]+:[0-9:.,]+)>")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|</?>|<[0-9][0-9:.,]*>|\{\\[^{}]*\}")
_LINE_END = re.compile(r"\r*\n|\r")
"""\\r\\r\\n too, which some tools make of \\r\\n: an empty line there would end the cue before its text."""
_COMMENT = re.compile(r"(NOTE|STYLE|REGION)(\s|$)")
_TOUCH_S = 0.1
"""A cue that begins so soon after the one before goes on with it."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a part of one that has a time of its own."""

    text: str
    moment_s: float
    """The middle of the time in which it is said."""
    is_joined: bool
    """No space before it: in a script without spaces a time may stand anywhere."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that are shown from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    words: tuple[Word, ...]


@dataclass(slots=True)
class Unread:
    """Time spans of a file that cannot be read."""

    count: int = 0
    first: str = ""

    def add(self, number: int, line: str) -> None:
        """Count one, and keep the first."""
        self.count += 1
        self.first = self.first or f"line {number}, {line.strip()[:80]!r}"


@dataclass(frozen=True, slots=True)
class _Block:
    """A cue as it stands in the file: raw lines, with markup."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Its lines as one sees them, blank ones left out."""
        return tuple(text for line in self.lines if (text := _plain(line)))


def parse_cues(text: str, unread: Unread) -> list[Cue]:
    """The cues of a file in order of time, each line of a rolling caption once."""
    blocks = _without_repeats(_blocks(text, unread))
    cues = [Cue(block.start_s, block.end_s, words) for block in blocks if (words := tuple(_words(block)))]
    return sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))


def _blocks(text: str, unread: Unread) -> Iterator[_Block]:
    span: tuple[float, float] | None = None
    lines: list[str] = []
    in_comment = False
    for number, line in enumerate([*_LINE_END.split(text), ""], start=1):
        if in_comment or (span is None and not lines and _COMMENT.match(line)):
            in_comment = bool(line)
        elif "-->" in line:
            if span is not None:
                yield _Block(*span, tuple(_without_counter(lines)))
            span, lines = _span(line), []
            if span is None:
                unread.add(number, line)
        elif line:
            lines.append(line)
        else:
            if span is not None:
                yield _Block(*span, tuple(lines))
            span, lines = None, []


def _without_counter(lines: list[str]) -> list[str]:
    """The lines before a time span that no empty line parts from them: the counter of the next cue is among them."""
    return lines[:-1] if lines and lines[-1].strip().isdigit() else lines


def _span(line: str) -> tuple[float, float] | None:
    arrow = _ARROW.match(line)
    if arrow is None or ":" not in arrow[1] or ":" not in arrow[2]:
        return None
    try:
        start_s, end_s = parse_time(arrow[1]), parse_time(arrow[2])
    except ValueError:
        return None
    return (start_s, end_s) if end_s >= start_s else None


def _without_repeats(blocks: Iterable[_Block]) -> Iterator[_Block]:
    """Each line of a rolling caption in the cue that shows it first.

    A cue that begins with the last lines of the one before and adds others has rolled. One that only repeats it without
    a gap goes on with it; after a gap the same words are said again.
    """
    before: _Block | None = None  # as it stands in the file
    last: _Block | None = None  # without what it repeats, and not yet handed out
    for block in blocks:
        if not block.shown:
            continue
        repeated = 0 if before is None else _overlap(before.shown, block.shown)
        is_repeat = repeated == len(block.shown)
        if last is not None and before is not None and is_repeat and block.start_s - before.end_s <= _TOUCH_S:
            last = _prolonged(last, block)
        else:
            if last is not None:
                yield last
            last = block if is_repeat else replace(block, lines=_without_first(block.lines, repeated))
        before = block
    if last is not None:
        yield last


def _prolonged(last: _Block, block: _Block) -> _Block:
    """A cue whose words are shown once more, spread over both; where they have times of their own these hold."""
    if last.shown != block.shown or _INLINE_TIME.search("".join(last.lines)):
        return last
    return replace(last, end_s=max(last.end_s, block.end_s))


def _overlap(before: tuple[str, ...], shown: tuple[str, ...]) -> int:
    """How many lines at the beginning of `shown` are the last ones of `before`."""
    longest = min(len(before), len(shown))
    return next((count for count in range(longest, 0, -1) if before[-count:] == shown[:count]), 0)


def _without_first(lines: tuple[str, ...], count: int) -> tuple[str, ...]:
    """`lines` without the first `count` that show anything."""
    for position, line in enumerate(lines):
        if count == 0:
            return lines[position:]
        count -= bool(_plain(line))
    return ()


def _words(block: _Block) -> Iterator[Word]:
    """The words of a block, in the order of the text."""
    pieces = _INLINE_TIME.split("\n".join(block.lines))
    starts, texts = [block.start_s], [pieces[0]]
    for time, text in zip(pieces[1::2], pieces[2::2], strict=True):
        time_s = _inline_s(time)
        if time_s is None or not starts[-1] <= time_s <= block.end_s:
            texts[-1] += text  # a time that does not fit the cue says nothing
        else:
            starts.append(time_s)
            texts.append(text)
    joined = False
    for start_s, end_s, text in zip(starts, [*starts[1:], block.end_s], texts, strict=True):
        clean = html.unescape(_MARKUP.sub("", text)).replace("\0", " ")
        words = clean.split()
        step_s = (end_s - start_s) / max(1, len(words))
        for number, word in enumerate(words):
            is_joined = joined and number == 0 and not clean[0].isspace()
            yield Word(word, start_s + (number + 0.5) * step_s, is_joined)
        if clean:
            joined = not clean[-1].isspace()


def _inline_s(text: str) -> float | None:
    try:
        return parse_time(text)
    except ValueError:
        return None


def _plain(line: str) -> str:
    """What is seen of a line."""
    return " ".join(html.unescape(_MARKUP.sub("", line)).replace("\0", " ").split())
