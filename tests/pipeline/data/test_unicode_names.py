"""Names of a set composed (NFC), of a list decomposed (NFD), and the reverse: both mean the same clips."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.format import sample_key
from pipeline.data.sources import SourceConfig
from pipeline.data.stream import DataConfig, Stream

FORMS = [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")]


def write_set(make_set: Any, folder: Path, video: str) -> str:
    """Three clips of `video` and two of another one."""
    pattern = make_set([1])
    kind = type(pattern.clips[0])
    named = type("Named", (kind,), {"key": property(lambda clip: sample_key(f"v{clip.video}.{clip.number}.mp4"))})
    written = type(pattern)(folder)
    written.add_shard([named(number, video=video if number < 3 else "other") for number in range(5)])
    return str(folder)


def stream_of(shards: str, texts: Path | None = None, **options: Any) -> Stream:
    config = DataConfig(
        sources=[SourceConfig(shards=shards, texts=texts)], num_frames=2, num_text_tokens=3, num_workers=0, **options
    )
    return Stream(
        config,
        global_batch_size=1,
        image_size_px=32,
        tokenize=lambda t: torch.ones(len(t), 3, dtype=torch.int64),
        seed=1,
    )


@pytest.mark.parametrize(("of_set", "of_list"), FORMS)
@pytest.mark.parametrize("name", ["v{}", "v{}.0.mp4"])
def test_excluded_clips_never_come(name: str, of_set: str, of_list: str, make_set: Any, tmp_path: Path) -> None:
    shards = write_set(make_set, tmp_path / "named", unicodedata.normalize(of_set, "Zo\u00eb"))
    (tmp_path / "no.txt").write_text(name.format(unicodedata.normalize(of_list, "Zo\u00eb")))
    assert stream_of(shards, exclude=[tmp_path / "no.txt"]).samples_per_epoch == (2 if name == "v{}" else 4)


@pytest.mark.parametrize(("of_set", "of_list"), FORMS)
def test_texts_find_their_clips(of_set: str, of_list: str, make_set: Any, tmp_path: Path) -> None:
    shards = write_set(make_set, tmp_path / "named", unicodedata.normalize(of_set, "Zo\u00eb"))
    clip_id = unicodedata.normalize(of_list, "vZo\u00eb.1.mp4")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"clip_id": clip_id, "text": t}) + "\n" for t in "ab"))
    assert stream_of(shards, tmp_path / "t.jsonl").samples_per_epoch == 2
