"""Pins what the clips of a plan take from text sources and the video index, so that no set mixes two states of them.

    OUTPUT/plan/sources.json      of each source: the index that was made of it, or the texts of some planned clips

    check_sources(config, plan)   # InputError where a text that planned clips rest on is another one now

Added rows are no change, nor is a file that was moved, packed or sorted: texts are compared, not files. Tables are
compared by the index of the old state, which lies in the set, with the new one; LMDB folders and subtitle files by the
clips of SAMPLED_SHARDS shards. Sets of before have no pins: that is said once, and they are pinned from then on.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from preprocess.config import PreprocessConfig
from preprocess.faults import refuse_trouble
from preprocess.plan import Plan
from preprocess.publish import sole_writer, write_atomically
from preprocess.published import published_shards
from preprocess.records import Clip
from preprocess.text_index import TextIndex, index_folder, is_sound
from preprocess.texts import Texts, TextsConfig, id_variants

SAMPLED_SHARDS = 128
_FILE = "sources.json"
_MAX_DIFFERENCES = 100_000
Pin = dict[str, Any]
Role = Literal["subtitles", "captions"]


class _Changed(Exception):
    """A text that planned clips rest on is another one now."""


def check_sources(config: PreprocessConfig, plan: Plan, videos_may_differ: bool = False) -> None:
    """Compare the sources with the pins of the set and pin what came since. Raises `InputError` where shards were
    written from another state of them; before the first shard the last one to come has it."""
    path = config.output / "plan" / _FILE
    with sole_writer(path.parent, path.name):
        before = _read(path)
        has_shards = bool(published_shards(config.output))
        if before is None and has_shards:
            print(
                f"{config.output}: its text sources were not pinned when its shards were written; they are from now on",
                file=sys.stderr,
                flush=True,
            )
        now = _pins(config, plan)
        now["generation"] = 0 if before is None else before["generation"]
        try:
            if before is not None:
                _compare(before, now, config, plan, videos_may_differ)
        except _Changed as change:
            if has_shards:
                raise InputError(
                    f"{change}, and shards of {config.output} are written from the old state; bring that back, give "
                    "another output, or remove the folder to start over (added rows are no obstacle)"
                ) from None
            now["generation"] += 1
        if now != before:
            write_atomically(path, json.dumps(now, indent=1).encode())


def pinned_generation(output: Path) -> int:
    """Raised where the sources changed before the first shard; a worker that began before must not publish."""
    pins = _read(output / "plan" / _FILE)
    return 0 if pins is None else int(pins["generation"])


def _read(path: Path) -> Pin | None:
    try:
        pins = json.loads(path.read_bytes())
        if not isinstance(pins, dict) or not {"subtitles", "captions", "videos_index", "generation"} <= set(pins):
            raise ValueError("it holds no pins")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; remove it") from None
    except (OSError, ValueError) as error:
        refuse_trouble(error, path)
        print(f"{path} is damaged ({error}); the text sources are pinned anew", file=sys.stderr, flush=True)
        return None
    return pins


def _pins(config: PreprocessConfig, plan: Plan) -> Pin:
    return {
        "subtitles": [_pin(name, "subtitles", config.output, plan) for name in config.texts.subtitles],
        "captions": [_pin(name, "captions", config.output, plan) for name in config.texts.captions],
        "videos_index": {
            "path": str(Path(config.videos.index).resolve()),
            "index": index_folder(Path(config.videos.index), config.output, "videos").name,
        }
        if config.videos.index
        else None,
    }


def _pin(name: str, role: Role, output: Path, plan: Plan) -> Pin:
    path = Path(name)
    if "{video_id" not in name and not path.is_dir():
        return {"source": name, "index": index_folder(path, output, "texts").name}
    facts = (path / "data.mdb").stat() if path.is_dir() else None
    return {
        "source": name,
        "state": None if facts is None else [str(path.resolve()), facts.st_size, facts.st_mtime_ns],
        "texts": _sampled_texts(name, role, output, plan),
    }


def _sampled_texts(name: str, role: Role, output: Path, plan: Plan) -> dict[str, str]:
    """clip id -> digest of its text, of clips all over the plan that have one in this source."""
    source = Texts.open(TextsConfig(**{role: (name,)}), output)
    found = {}
    for video_id, clip in _sampled_clips(plan):
        texts = source.of(video_id, clip)
        if (text := texts.subtitle if role == "subtitles" else texts.caption) is not None:
            found[clip.clip_id] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def _sampled_clips(plan: Plan) -> Iterator[tuple[str, Clip]]:
    """The first and the last clip of the first video of each sampled shard, without texts of their own."""
    for number in range(0, plan.num_shards, max(1, plan.num_shards // SAMPLED_SHARDS)):
        video = plan.shard(number).videos[0]
        for clip in {video.clips[0], video.clips[-1]}:
            yield video.video_id, Clip(clip.clip_id, clip.start_s, clip.end_s)


def _compare(before: Pin, now: Pin, config: PreprocessConfig, plan: Plan, videos_may_differ: bool) -> None:
    """Raise `_Changed` where a pinned source is another one now. Sources that came behind them are as added rows."""
    roles: tuple[Role, ...] = ("subtitles", "captions")
    for role in roles:
        for old, new in itertools.zip_longest(before[role], now[role]):
            if new is None:
                raise _Changed(f"texts.{role}: {old['source']} is no longer on the list")
            if old is not None and old != new:
                _compare_texts(old, new, f"texts.{role}: {new['source']}", config.output, plan)
    old, new = before["videos_index"], now["videos_index"]
    if not videos_may_differ and old and new and old["path"] == new["path"]:
        _compare_index(old, new, config.output / "plan" / "videos", f"videos.index: {new['path']}", plan)


def _compare_texts(old: Pin, new: Pin, where: str, output: Path, plan: Plan) -> None:
    if "index" in old and "index" in new:
        _compare_index(old, new, output / "plan" / "texts", where, plan)
    elif "texts" in old and "texts" in new:
        if old["state"] is None or old["state"] != new["state"]:
            changed = [clip_id for clip_id, text in old["texts"].items() if new["texts"].get(clip_id) != text]
            if changed:
                raise _Changed(f"{where} has another text for clip {changed[0]!r} than it had")
    else:
        raise _Changed(f"{where} stands where {old['source']} stood")


def _compare_index(old: Pin, new: Pin, folder: Path, where: str, plan: Plan) -> None:
    """Raise `_Changed` where a row of the old index is another one in the new, and a planned clip or video rests on it.

    Where the index of the old state is lost, any change is taken for one."""
    if old["index"] == new["index"]:
        return
    if not is_sound(folder / old["index"]):
        raise _Changed(f"{where} has changed, and {folder / old['index']}, which would tell how, is gone")
    before, now = TextIndex(folder / old["index"]), TextIndex(folder / new["index"])
    differing = {
        found: (text, there) for found, text, there in itertools.islice(before.differences(now), _MAX_DIFFERENCES)
    }
    if differing and (found := _first_planned(differing, plan)):
        text, there = differing[found]
        is_now = "gone" if there is None else f"{there[:60]!r} now"
        raise _Changed(f"{where} has changed for {found!r} ({text[:60]!r} before, {is_now})")


def _first_planned(differing: Mapping[str, Any], plan: Plan) -> str | None:
    for number in range(plan.num_shards):
        for video in plan.shard(number).videos:
            names = itertools.chain([video.video_id], *(id_variants(clip.clip_id) for clip in video.clips))
            if found := next((name for name in names if name in differing), None):
                return found
    return None if len(differing) < _MAX_DIFFERENCES else next(iter(differing))
