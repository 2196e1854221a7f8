"""What a stored config and a new one differ in: one comparison for training, launching and preprocessing.

before = with_defaults(TrainConfig, read_yaml("runs/b32/config.yaml"))
differences(before, config.model_dump(mode="json"), ignored=CHANGEABLE)     # ["optim.lr (5e-06 there, 1e-05 now)"]
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.config import Section

_Place = tuple[int | str, ...]
_NOT_THERE = "nothing"
_MAX_SHOWN = 60


def with_defaults(kind: type[Section], stored: dict[str, Any]) -> dict[str, Any]:
    """The values of a stored config; options that came since it was written are at their defaults.

    What `kind` no longer knows or allows stays as it is, and thus differs. A config that `kind` cannot take at all is
    returned as it is.
    """
    content, refused = stored, dict[_Place, Any]()
    for _ in range(3):  # a value may be refused only once another one is out
        try:
            values = kind.model_validate(content).model_dump(mode="json")
        except ValidationError as error:
            places = [one["loc"] for one in error.errors() if one["type"] != "missing"]
            refused |= {place: value for place in places if (value := _at(stored, place)) is not None}
            content = _without(content, refused)
            continue
        for place, value in refused.items():
            section = _at(values, place[:-1])
            if isinstance(section, dict):
                section[place[-1]] = value
        return values
    return stored


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, only: Sequence[str] = (), ignored: Collection[str] = ()
) -> list[str]:
    """Every differing value, as "key (old there, new now)" with the dotted key, in the order of the keys.

    `only`: none but what lies at or below these dotted keys; `ignored`: not what lies at or below these.
    """
    return [
        "{} ({} there, {} now)".format(key, *_shown(str(old), str(new)))
        for key, old, new in _leaves(before, now)
        if not _is_below(key, ignored) and (not only or _is_below(key, only))
    ]


def listed(found: Sequence[str], limit: int = 8) -> str:
    """The differences in one line; of many, the first.

    >>> listed(["a (1 there, 2 now)", "b (1 there, 2 now)", "c (1 there, 2 now)"], limit=2)
    'a (1 there, 2 now), b (1 there, 2 now) and 1 more'
    """
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def _leaves(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(before.keys() | now.keys()):
        key, old, new = f"{prefix}{name}", before.get(name, _NOT_THERE), now.get(name, _NOT_THERE)
        sections = [{} if side == _NOT_THERE else side for side in (old, new)]  # one may lack the whole section
        if all(isinstance(section, dict) for section in sections):
            yield from _leaves(sections[0], sections[1], f"{key}.")
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            yield from _items(old, new, key)
        elif old != new:
            yield key, old, new


def _items(old: list[Any], new: list[Any], key: str) -> Iterator[tuple[str, Any, Any]]:
    """Of two lists of sections, such as data.sources, what differs in each; any other list is one value."""
    if all(isinstance(item, dict) for item in [*old, *new]):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(one, other, f"{key}[{number}].")
    elif old != new:
        yield key, old, new


def _is_below(key: str, places: Collection[str]) -> bool:
    return any(key == place or key.startswith((f"{place}.", f"{place}[")) for place in places)


def _shown(old: str, new: str) -> tuple[str, str]:
    """Both values, long ones around the first place in which they differ."""
    same = next((place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), 0)
    start = max(0, same - _MAX_SHOWN // 2) if max(len(old), len(new)) > _MAX_SHOWN else 0
    return _cut(old, start), _cut(new, start)


def _cut(text: str, start: int) -> str:
    part = text[start : start + _MAX_SHOWN]
    return f"{'...' * (start > 0)}{part}{'...' * (start + len(part) < len(text))}"


def _at(content: Any, place: _Place) -> Any:
    """What lies at a place; None where there is nothing, or where it lies in a list."""
    for name in place:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _without(content: dict[str, Any], places: Collection[_Place]) -> dict[str, Any]:
    """`content` without what lies at these places."""
    kept = {}
    for name, value in content.items():
        below = [place[1:] for place in places if place[:1] == (name,)]
        if () not in below:
            kept[name] = _without(value, below) if below and isinstance(value, dict) else value
    return kept
