"""Every reason of the failures table, brought about by real inputs and through the whole job."""

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.format import Reason
from preprocess.config import PreprocessConfig
from preprocess.decode import first_words
from preprocess.ffmpeg_binary import find_ffmpeg
from preprocess.merge import check_account, merge
from preprocess.planning import make_plan
from preprocess.run import run
from preprocess.shard import Tools, build_shard, shard_facts

Values = dict[str, Any]
Painter = Callable[..., Path]
Hdvila = Callable[..., Path]


def config_of(values: Values, **changes: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate({**values, **changes})


def failures(output: Path, stats: dict[str, Any]) -> dict[str, str]:
    """clip id -> reason; checks that the account adds up and counts each of them once."""
    rows = [row for path in output.glob("failures/*.parquet") for row in pq.read_table(path).to_pylist()]
    answer = {row["clip_id"]: row["reason"] for row in rows}
    assert len(answer) == len(rows) == stats["num_failed"] == sum(stats["reasons"].values())
    assert all(row["detail"] and "\n" not in row["detail"] for row in rows)
    check_account(stats)
    return answer


def write_silence(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_without_key_frames(source: Path, path: Path) -> None:
    """Packets with nothing to start from: the file is in order, and no frame of it can ever be shown."""
    command = [find_ffmpeg(), "-v", "error", "-i", str(source), "-c", "copy", "-bsf:v", "noise=drop=key", str(path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)


def write_bad_videos(folder: Path, painted: Painter) -> None:
    good = folder / "-vid_0.mp4"
    (folder / "broken.mp4").write_bytes(good.read_bytes()[:700])
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile '-vid_0.mp4'\n")
    write_silence(folder / "silence.mp4")
    write_without_key_frames(good, folder / "keyless.mp4")
    painted(folder / "huge.mp4", size=(320, 240), num_frames=5)


BAD_CLIPS: dict[str, list[tuple[str, float, float]]] = {
    "gone": [("gone.1.mp4", 0, 1)],
    "broken": [("broken.1.mp4", 0, 1), ("broken.2.mp4", 1, 2)],
    "list": [("list.1.mp4", 0, 1)],
    "silence": [("silence.1.mp4", 0, 1)],
    "huge": [("huge.1.mp4", 0, 0.1)],
    "-vid_1": [("late.1.mp4", 50, 51), ("none.1.mp4", 2, 1), ("-vid_0.0.mp4", 0, 1), ("x" * 2000, 0, 1)],
    "banned": [("banned.1.mp4", 0, 1)],
    "../videos/-vid_2": [("outside.1.mp4", 0, 1)],
}
EXPECTED = {
    "gone.1.mp4": Reason.VIDEO_MISSING,
    "broken.1.mp4": Reason.VIDEO_UNREADABLE,
    "broken.2.mp4": Reason.VIDEO_UNREADABLE,
    "list.1.mp4": Reason.FORBIDDEN_FORMAT,
    "silence.1.mp4": Reason.NO_VIDEO_STREAM,
    "huge.1.mp4": Reason.TOO_LARGE,
    "late.1.mp4": Reason.SPAN_BEYOND_END,
    "none.1.mp4": Reason.SPAN_INVALID,
    "-vid_0.0.mp4": Reason.DUPLICATE_CLIP,
    "x" * 1024: Reason.CLIP_ID_INVALID,
    "banned.1.mp4": Reason.EXCLUDED,
    "outside.1.mp4": Reason.METADATA_INVALID,
    "": Reason.METADATA_INVALID,
}
"""An id is cut to 1,024 characters in the table; a line that is no JSON names no clip."""


def test_what_metadata_and_files_can_do_wrong(
    small_set: Values, hdvila: Hdvila, painted: Painter, tmp_path: Path
) -> None:
    write_bad_videos(tmp_path / "videos", painted)
    hdvila(tmp_path / "hdvila_part1.jsonl", BAD_CLIPS)
    with open(tmp_path / "hdvila_part1.jsonl", "a") as stream:
        stream.write("{this is no line\n")
    (tmp_path / "banned.txt").write_text("banned\n")
    metadata = {**small_set["metadata"], "exclude": [str(tmp_path / "banned.txt")]}
    stats = run(config_of(small_set, metadata=metadata, limits={"max_frame_pixels": 100 * 100}))
    assert failures(Path(small_set["output"]), stats) == EXPECTED
    assert (stats["num_delivered"], stats["num_clips"]) == (12, 12 + len(EXPECTED))


def test_no_frames(small_set: Values, tmp_path: Path) -> None:
    """A whole video, so that no span can be at fault."""
    write_without_key_frames(tmp_path / "videos" / "-vid_0.mp4", tmp_path / "videos" / "keyless.mp4")
    (tmp_path / "whole.csv").write_text("video_id\nkeyless\n-vid_1\n")
    metadata = {"files": [str(tmp_path / "whole.csv")], "layout": "table"}
    stats = run(config_of(small_set, metadata=metadata))
    assert failures(Path(small_set["output"]), stats) == {"keyless.mp4": Reason.NO_FRAMES}
    assert stats["num_delivered"] == 1


def test_no_text(small_set: Values) -> None:
    stats = run(config_of(small_set, texts={**small_set["texts"], "require": "subtitle"}))
    assert failures(Path(small_set["output"]), stats) == {"-vid_3.2.mp4": Reason.NO_TEXT}
    assert stats["num_delivered"] == 11


def test_time_limit(small_set: Values) -> None:
    """Less time than ffmpeg takes to start."""
    stats = run(config_of(small_set, limits={"time_s": 0.001}))
    assert set(failures(Path(small_set["output"]), stats).values()) == {Reason.TIME_LIMIT}
    assert stats["num_failed"] == 12


@pytest.mark.heavy
def test_memory_limit(small_set: Values, hdvila: Hdvila, painted: Painter, tmp_path: Path) -> None:
    options = {"cpu-used": "8", "deadline": "realtime"}
    video = tmp_path / "videos" / "4k.webm"
    painted(video, size=(3840, 2160), num_frames=2, codec="libvpx-vp9", options=options)
    hdvila(tmp_path / "hdvila_part0.jsonl", {"4k": [("4k.1.mp4", 0, 0.1)]})
    stats = run(config_of(small_set, limits={"memory_mb": 272}))
    assert failures(Path(small_set["output"]), stats) == {"4k.1.mp4": Reason.MEMORY_LIMIT}


def test_caption_failed(small_set: Values) -> None:
    """A captioner that has nothing to say about one clip; in this process, so that it can be told what to say."""
    captioner = {"kind": "transformers", "batch_size": 5}
    config = config_of(small_set, captioner=captioner, texts={"require": "caption"})
    tools = Tools.open(config_of(small_set, texts={}))
    tools = dataclasses.replace(
        tools,
        config=config,
        captioner=lambda images, ids: [None if clip_id == "-vid_1.2.mp4" else "a caption" for clip_id in ids],
    )
    plan = make_plan(config.output, config.metadata, config.shards, config.seed, 1 << 20)
    for number in range(plan.num_shards):
        list(build_shard(plan.shard(number), tools, shard_facts("test")))
    stats = merge(config.output)
    assert failures(config.output, stats) == {"-vid_1.2.mp4": Reason.CAPTION_FAILED}
    assert stats["num_delivered"] == stats["num_captions"] == 11


def test_no_reason_is_left_out() -> None:
    apart = {Reason.NO_FRAMES, Reason.NO_TEXT, Reason.TIME_LIMIT, Reason.MEMORY_LIMIT, Reason.CAPTION_FAILED}
    assert set(EXPECTED.values()) | apart == set(Reason)


def test_a_detail_is_the_cause_and_the_same_in_every_run(small_set: Values, tmp_path: Path) -> None:
    """ffmpeg's own words hold addresses, and its last ones only say that nothing was written."""
    path = tmp_path / "videos" / "-vid_1.mp4"
    content = path.read_bytes()
    media = content.index(b"mdat") + 4
    end = content.index(b"moov") if content.index(b"moov") > media else len(content)
    path.write_bytes(content[:media] + b"\xff" * (end - 4 - media) + content[end - 4 :])
    details = []
    for name in ("one", "two"):
        run(config_of(small_set, output=str(tmp_path / name)))
        tables = sorted((tmp_path / name / "failures").glob("*.parquet"))
        details.append([row["detail"] for table in tables for row in pq.read_table(table).to_pylist()])
    assert details[0] == details[1] and len(details[0]) == 3
    assert all("[h264] Invalid NAL unit size" in detail for detail in details[0])


def test_first_words_of_ffmpeg() -> None:
    said = b"[mov @ 0x55d0] moov atom not found\n[out#0/nut @ 0x5628ccf1bbc0] Nothing was written into output file"
    assert first_words(said) == "[mov] moov atom not found"
    assert first_words(b" \n") == ""
