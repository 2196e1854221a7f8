"""The demo's picture: a contact sheet of held-out clips with their texts, the loss curve and the recall curve.

draw_demo(Path("runs/demo"), Path("data/sample"), Path("runs/demo/demo.png"))
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import lmdb
import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from pipeline.metrics_lines import read_lines

NUM_CLIPS = 6
NUM_FRAMES = 6
GAP_PX = 4
Frames = npt.NDArray[np.uint8]


def draw_demo(run: Path, corpus: Path, picture: Path) -> None:
    """Draw what the run in `run` was trained on and how it went, and write it as PNG."""
    clips = list(choose_clips(corpus))
    figure = pyplot.figure(figsize=(13, 9.5), layout="constrained")
    sheet, curves = figure.subfigures(2, 1, height_ratios=[6, 3])
    rows_of_axes = sheet.subplots(len(clips), 2, width_ratios=[3, 2])
    for (left, right), clip in zip(rows_of_axes, clips, strict=True):
        _draw_clip(left, right, clip)
    rows = read_lines(run / "metrics.jsonl").rows
    left, right = curves.subplots(1, 2)
    _draw_loss(left, rows)
    _draw_recall(right, rows)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=72)
    pyplot.close(figure)


def choose_clips(corpus: Path) -> Iterator[dict[str, Any]]:
    """Held-out clips with different verbs in their queries: frames and the three texts of each."""
    subtitles = dict(_read_subtitles(corpus / "subtitles.jsonl"))
    spans = dict(_read_spans(corpus / "metadata" / "heldout"))
    seen: set[str] = set()
    with lmdb.open(str(corpus / "captions_db"), readonly=True, lock=False) as captions, captions.begin() as reader:
        for line in (corpus / "queries.jsonl").read_text().splitlines():
            query = json.loads(line)
            clip_id, verb = query["clip_id"], query["text"].split()[3]
            caption = reader.get(clip_id.encode())
            if verb in seen or caption is None or clip_id not in subtitles:
                continue
            seen.add(verb)
            video_id = clip_id.rsplit(".", 2)[0]
            yield {
                "frames": read_frames(corpus / "videos" / f"{video_id}.mp4", *spans[clip_id]),
                "query": query["text"],
                "subtitle": subtitles[clip_id],
                "caption": caption.decode(),
            }
            if len(seen) == NUM_CLIPS:
                return


def read_frames(path: Path, start_s: float, end_s: float) -> list[Frames]:
    """NUM_FRAMES frames of the span, evenly spread."""
    with av.open(str(path)) as container:
        frames = [
            np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            for frame in container.decode(video=0)
            if frame.time is not None and start_s <= frame.time < end_s
        ]
    return [frames[int(index)] for index in np.linspace(0, len(frames) - 1, NUM_FRAMES)]


def _read_subtitles(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = json.loads(line)
        yield row["clip_id"], row["text"]


def _read_spans(folder: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    for part in sorted(folder.glob("*.jsonl")):
        for line in part.read_text().splitlines():
            for clip in json.loads(line)["clip"]:
                start_s, end_s = (_seconds(clock) for clock in clip["span"])
                yield clip["clip_id"], (start_s, end_s)


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _draw_clip(left: Axes, right: Axes, clip: dict[str, Any]) -> None:
    """One row: frames from left to right with gaps between, the texts beside them."""
    height_px = clip["frames"][0].shape[0]
    gap = np.full((height_px, GAP_PX, 3), 255, np.uint8)
    strip = [part for frame in clip["frames"] for part in (frame, gap)]
    left.imshow(np.concatenate(strip[:-1], axis=1), interpolation="nearest")
    left.axis("off")
    right.axis("off")
    texts = "\n".join(_wrapped(kind, clip[kind]) for kind in ("query", "subtitle", "caption"))
    right.text(0.0, 0.5, texts, transform=right.transAxes, va="center", ha="left", fontsize=10, linespacing=1.5)


def _wrapped(kind: str, text: str, width: int = 48) -> str:
    lines, line = [], f"{kind}:"
    for word in text.split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "   "
        line += " " + word
    return "\n".join([*lines, line])


def _draw_loss(axes: Axes, rows: list[dict[str, Any]]) -> None:
    steps, losses = _series(rows, "train/loss")
    axes.plot(steps, losses, color="0.8", linewidth=0.8)
    span = max(1, len(losses) // 40)
    if len(losses) > span:
        smooth = np.convolve(losses, np.ones(span) / span, "valid")
        axes.plot(steps[span - 1 :], smooth, color="C0")
    axes.set(title="training loss (V-S,C + F-C: six cross-entropies)", xlabel="step", ylim=(0, None))


def _draw_recall(axes: Axes, rows: list[dict[str, Any]]) -> None:
    names = {
        "t2v_r1": "text to video R@1",
        "t2v_r10": "text to video R@10",
        "pairs_motion": "pairs: kind of motion",
        "pairs_direction": "pairs: direction",
    }
    for number, (name, label) in enumerate(names.items()):
        keys = {key for row in rows for key in row if key.startswith("eval/") and key.endswith("/" + name)}
        for key in sorted(keys):
            steps, values = _series(rows, key)
            axes.plot(steps, [100 * value for value in values], marker=".", color=f"C{number}", label=label)
    axes.axhline(50, color="0.7", linestyle=":", linewidth=1)
    axes.set(title="held-out videos, % (dotted: chance of the pairs)", xlabel="step", ylim=(0, 100))
    axes.legend(fontsize=8, loc="upper left")


def _series(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, by step; a step that was logged again after a resume counts once."""
    values = {row["step"]: row[key] for row in rows if key in row}
    return sorted(values), [values[step] for step in sorted(values)]
