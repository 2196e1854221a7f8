"""Texts of a sample, wherever its owner put them: the one reading of them for index, audit, report and training.

    facts = json_object(members["json"])                      # ValueError for anything that is not a JSON object
    caption = text_at("json:caption", members, facts)         # one line of valid text, "" where there is none

Standard library only.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

MAX_TEXT_BYTES = 16 << 20
"""Of a JSON or text member: far above any that was seen, far below what would harm a worker."""

_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
"""What no text holds: NUL, and halves of characters, as JSON writes an emoji that was cut in two."""


def text_at(source: str, members: Mapping[str, bytes], facts: Mapping[str, Any]) -> str:
    """The text at `json:FIELD` of `facts`, or in the member with extension `source`; "" where there is none.

    Raises ValueError for a member over MAX_TEXT_BYTES.
    """
    kind, _, field = source.partition(":")
    if kind == "json":
        return clean_text(facts.get(field)) or ""
    content = members.get(kind, b"")
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{len(content)} bytes of text, more than {MAX_TEXT_BYTES}")
    return clean_text(_decoded(content)) or ""


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`, in any encoding that JSON may have; stray bytes become U+FFFD.

    Raises ValueError for anything else, whatever the parser stumbles over: nesting without end is a RecursionError.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{len(content)} bytes of JSON, more than {MAX_TEXT_BYTES}")
    try:
        facts = json.loads(content.decode(json.detect_encoding(content), "replace"))
    except Exception as error:  # foreign bytes: whatever the parser raises, the sample is bad
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(f"a {type(facts).__name__}, not an object")
    return facts


def clean_text(value: Any) -> str | None:
    """`value` as one line of valid text; None for anything that says nothing."""
    if not isinstance(value, str):
        return None
    if not value.isascii() or "\0" in value:
        value = _NO_TEXT.sub(_shown, value)
    return " ".join(value.split()) or None


def _decoded(content: bytes) -> str:
    """UTF-8, or UTF-16 where a byte order mark says so."""
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf_16 else "utf-8-sig", "replace")


def _shown(char: "re.Match[str]") -> str:
    return " " if char[0] == "\0" else "\ufffd"
