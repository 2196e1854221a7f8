"""One self-contained HTML page about a shard set: coverage, reasons, histograms, and random clips with both texts.

    python -m preprocess.report data/shards/hdvila [--clips 24] [--seed 0]      # writes OUTPUT/report.html

Histograms come from at most MAX_SHARDS random sidecars and MAX_TEXTS random samples, so that the page takes seconds for
any size of set. It loads nothing from anywhere: pictures are inside, drawings are SVG, there is no script.
"""

import argparse
import base64
import html
import io
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.format import SIDECAR_COLUMNS
from pipeline.data.frames import open_clip_bytes, uniform_indices
from pipeline.data.manifest_file import manifest_facts, read_manifest
from pipeline.data.sample import bad_where_it_fails
from pipeline.data.storage import DamagedSample
from pipeline.data.texts import json_object, text_at
from pipeline.errors import InputError, RunError, run_command
from preprocess.pack import read_facts
from preprocess.publish import sole_writer, write_atomically
from preprocess.published import published_shards

MAX_SHARDS = 200
MAX_TEXTS = 2000
_FRAMES_PER_CLIP = 4
_STATS = (
    *("num_clips", "num_delivered", "num_pending", "num_shards", "num_subtitles", "num_captions"),
    *("reasons", "hours", "bytes", "manifest_hash"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .2em 1em .2em 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5em; }
figure { margin: 0; } figcaption { font-size: .85em; color: #555; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1em; }
.clip { border: 1px solid #ddd; border-radius: 4px; padding: .6em; overflow-wrap: anywhere; }
.clip img { width: 100%; } .clip p { margin: .3em 0 0; font-size: .85em; } .id { color: #777; }
"""


@dataclass(frozen=True, slots=True)
class SampleText:
    """One random sample: its row, its texts, and where it lies."""

    shard: str
    row: dict[str, Any]
    subtitle: str | None
    caption: str | None


def render(output: Path, num_clips: int, seed: int) -> str:
    """The whole page."""
    stats = read_stats(output)
    read_manifest(str(output))  # says what to do where it is damaged
    rng = random.Random(seed)
    shards = published_shards(output)
    picked = sorted(rng.sample(shards, min(len(shards), MAX_SHARDS)))
    rows = [(shard, row) for shard in picked for row in _sidecar_rows(output, shard)]
    texts = _read_texts(output, rng.sample(rows, min(len(rows), MAX_TEXTS)))
    body = [
        f"<h1>{html.escape(output.name)}</h1>",
        _account_table(stats),
        f"<h2>Distributions</h2><p>From {len(rows):,} clips of {len(picked):,} random shards.</p>",
        '<div class="charts">',
        histogram([row["duration_s"] for _, row in rows], "length of a clip, s"),
        histogram([row["media_size"] / 1000 for _, row in rows], "size of a clip, kB"),
        histogram([row["num_frames"] for _, row in rows], "frames of a clip"),
        histogram(_words(sample.subtitle for sample in texts), "words of a subtitle"),
        histogram(_words(sample.caption for sample in texts), "words of a caption"),
        "</div>",
        "<h2>Random clips</h2>",
        '<div class="clips">',
        *(_clip_card(output, sample) for sample in texts[:num_clips]),
        "</div>",
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(output.name)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def histogram(values: list[float], label: str, num_bins: int = 30) -> str:
    """An SVG histogram; the last one in a hundred is left out of the axis, so that outliers do not squeeze the rest."""
    caption = f"<figcaption>{html.escape(label)}"
    if not values:
        return f"<figure>{caption}: none</figcaption></figure>"
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    top = max(float(np.quantile(ordered, 0.99)), float(ordered[0]) + 1e-9)
    counts, _ = np.histogram(ordered, bins=num_bins, range=(float(ordered[0]), top))
    width, height = 320, 120
    bar = width / num_bins
    bars = "".join(
        f'<rect x="{number * bar:.1f}" y="{height - height * count / counts.max():.1f}" width="{bar - 1:.1f}" '
        f'height="{height * count / counts.max():.1f}" fill="#47a"/>'
        for number, count in enumerate(counts)
    )
    summary = f"median {np.median(ordered):.4g}, mean {ordered.mean():.4g}, {ordered[0]:.4g} to {ordered[-1]:.4g}"
    return (
        f'<figure><svg width="{width}" height="{height}" role="img">{bars}</svg>{caption}<br>{summary}'
        "</figcaption></figure>"
    )


def _account_table(stats: dict[str, Any]) -> str:
    total = max(1, stats["num_clips"])
    delivered = max(1, stats["num_delivered"])
    lines = [("clips in the metadata", stats["num_clips"], 1.0), ("delivered", stats["num_delivered"], None)]
    lines += [(f"not delivered: {reason}", count, None) for reason, count in stats["reasons"].items()]
    if stats["num_pending"]:
        lines.append(("pending", stats["num_pending"], None))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count:,}</td><td>{(share or count / total):.2%}</td></tr>"
        for name, count, share in lines
    )
    skipped = "".join(
        f"<p>Skipped: {facts['count']:,} {html.escape(kind)}, such as {html.escape(facts['example'])}</p>"
        for kind, facts in stats.get("skipped", {}).items()
    )
    facts = (
        f"{stats['hours']:,.2f} hours, {stats['bytes'] / 1e9:,.3f} GB in {stats['num_shards']:,} shards. "
        f"Of the delivered clips {stats['num_subtitles'] / delivered:.2%} have a subtitle and "
        f"{stats['num_captions'] / delivered:.2%} a caption. Manifest {html.escape(stats['manifest_hash'])}."
    )
    return f"<h2>Account</h2><table>{rows}</table><p>{facts}</p>{skipped}"


def read_stats(output: Path) -> dict[str, Any]:
    """stats.json, checked. Raises `InputError` with the way out."""
    way_out = "run python -m preprocess.merge on it (preprocess.index for foreign tars)"
    try:
        stats = json.loads((output / "stats.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{output} has no stats.json ({error}); {way_out}") from None
    lacking = sorted(set(_STATS) - set(stats if isinstance(stats, dict) else ()))
    if not isinstance(stats, dict) or lacking:
        raise InputError(f"{output}/stats.json is damaged: it lacks {', '.join(lacking)}; {way_out}")
    return stats


def _sidecar_rows(output: Path, shard: str) -> list[dict[str, Any]]:
    path = output / f"{shard}.parquet"
    read_facts(path)  # says what to do where it is no sidecar
    table = pq.read_table(path)
    if lacking := sorted(set(SIDECAR_COLUMNS) - set(table.column_names)):
        raise InputError(f"{path} is no sidecar: it has no column {', '.join(lacking)}; write the shard again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _read_texts(output: Path, picked: list[tuple[str, dict[str, Any]]]) -> list[SampleText]:
    facts = manifest_facts(str(output))
    samples = []
    for shard, row in picked:
        places = [(name, row[f"{name}_offset"], row[f"{name}_size"]) for name in ("json", "txt")]
        members = {name: _read_from_tar(output, shard, offset, size) for name, offset, size in places if offset >= 0}
        try:
            found = json_object(members["json"]) if "json" in members else {}
        except ValueError:
            found = {}
        subtitle, caption = (text_at(facts[place], members, found) for place in ("subtitle_from", "caption_from"))
        samples.append(SampleText(shard, row, subtitle or None, caption or None))
    return samples


def _read_from_tar(output: Path, shard: str, offset: int, size: int) -> bytes:
    try:
        with open(output / f"{shard}.tar", "rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except FileNotFoundError:
        raise InputError(
            f"{output}/{shard}.tar is gone, its sidecar is there; run python -m preprocess.audit"
        ) from None


def _words(texts: Iterable[str | None]) -> list[float]:
    return [float(len(text.split())) for text in texts if text]


def _clip_card(output: Path, sample: SampleText) -> str:
    media = _read_from_tar(output, sample.shard, sample.row["media_offset"], sample.row["media_size"])
    texts = "".join(
        f"<p><b>{kind}</b> {html.escape(text or '(none)')}</p>"
        for kind, text in (("subtitle", sample.subtitle), ("caption", sample.caption))
    )
    name = html.escape(f"{sample.row['clip_id']}, {sample.row['duration_s']:.1f} s, {sample.shard}")
    return f'<div class="clip">{_strip(media, sample.row["media_ext"])}{texts}<p class="id">{name}</p></div>'


def _strip(media: bytes, extension: str) -> str:
    """Four frames side by side as an embedded JPEG."""
    try:
        with bad_where_it_fails("media_undecodable"):
            clip = open_clip_bytes(media, extension)
            frames = clip.read(uniform_indices(clip.num_frames, _FRAMES_PER_CLIP))
    except DamagedSample:
        return "<p>(cannot be decoded)</p>"
    gap = max(2, frames.shape[2] // 50)
    spaced = [np.pad(frame, ((0, 0), (0, gap), (0, 0)), constant_values=255) for frame in frames]
    picture = Image.fromarray(np.concatenate(spaced, axis=1))
    picture.thumbnail((640, 200))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocess.report", description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder of the shard set")
    parser.add_argument("--clips", type=int, default=24, help="random clips to show")
    parser.add_argument("--seed", type=int, default=0, help="which random clips")
    options = parser.parse_args(argv)
    if options.clips < 0:
        raise InputError(f"--clips must be at least 0, got {options.clips}")
    page = options.output / "report.html"
    text = render(options.output, options.clips, options.seed)
    with sole_writer(options.output, page.name):
        write_atomically(page, text.encode())
    print(f"{page}: {len(text) / 1e6:.1f} MB")
    if not (stats := read_stats(options.output))["num_delivered"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in stats["reasons"].items()) or "no clip is planned"
        raise RunError(f"{options.output} holds no delivered clip ({reasons}); see its failures folder")
    return 0


if __name__ == "__main__":
    run_command(main)
